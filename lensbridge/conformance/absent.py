"""Words of a description that name what no layer and no config of the model has.

They are about what only some models of a class have, so loading does not require them.
"""

from collections.abc import Iterator

from lensbridge.conformance.claim import Claim
from lensbridge.conformance.subject import Subject, config_of
from lensbridge.errors import suggest
from lensbridge.native.parts import BlockPart, StackPart
from lensbridge.native.resolve.config_reader import ConfigReader
from lensbridge.spec import Attention, Block, Stack


def claims_of_absent(subject: Subject) -> Iterator[Claim]:
    """Claims on the words that name something which is nowhere."""
    spec = subject.model.architecture
    yield from _of_field(config_of(subject, spec), "logit_softcap", spec.logit_softcap)
    for stack, part in zip((spec, *spec.towers), subject.stacks.values(), strict=True):
        config = config_of(subject, stack)
        for number, block in enumerate(_described(stack)):
            yield from _of_block(config, block, _read_with(part, number))


def _described(stack: Stack) -> tuple[Block, ...]:
    return stack.block if isinstance(stack.block, tuple) else (stack.block,)


def _read_with(part: StackPart, number: int) -> list[BlockPart]:
    """The layers that are read with one of the blocks that are described."""
    return [block for block in part.blocks if block.variant == number]


def _of_block(config: ConfigReader, block: Block, layers: list[BlockPart]) -> Iterator[Claim]:
    if not layers:
        return
    yield from _of_norms(block, layers)
    for name in ("attn", "cross"):
        said: Attention | None = getattr(block, name)
        if said is None:
            continue
        parts = [getattr(layer, name) for layer in layers]
        yield from _of_field(config, f"{name}.clip", said.clip)
        found = any(part.position_bias is not None for part in parts)
        yield from _of_part(f"{name}.position_bias", said.position_bias, found)
        found = any(part.writer.bias is not None for part in parts)
        yield from _of_part(f"{name}.out_bias", said.out_bias, found)


def _of_norms(block: Block, layers: list[BlockPart]) -> Iterator[Claim]:
    found = any(norm.inner is not None for layer in layers for norm in layer.norms.values())
    yield from _of_part("norms.inner", block.norms.inner, found)
    if block.norms.gate is not None and block.norms.inner is None:
        yield Claim("norms.gate", False, "it is a module beside the norm that inner names")


def _of_part(word: str, said: str | None, found: bool) -> Iterator[Claim]:
    if said is not None:
        yield Claim(word, found, f"no layer that is read with it has {said!r}")


def _of_field(config: ConfigReader, word: str, said: str | None) -> Iterator[Claim]:
    """A field that is not there, while one with a similar name is: some configs have neither."""
    if said is None or config.optional(said) is not None:
        return
    parent, _, last = said.rpartition(".")
    names = _fields(config.optional(parent) if parent else config.config)
    near = "" if last in names else suggest(last, names)
    yield Claim(word, not near, f"the config has no field {said!r}.{near}".rstrip("."))


def _fields(holder: object) -> list[str]:
    """The names in a config or in a part of one."""
    found = holder.to_dict() if hasattr(holder, "to_dict") else holder
    return list(found) if isinstance(found, dict) else []
