"""Which matrices read the output of which norm, and why a norm cannot be folded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import nn

from lensbridge.native.norm import Norm
from lensbridge.native.parts import (
    AttentionPart,
    BlockPart,
    MLPPart,
    MoEPart,
    ResolvedModel,
    StackPart,
)
from lensbridge.processing import matrix
from lensbridge.processing.accounting import outsiders, strangers
from lensbridge.processing.matrix import Matrix


@dataclass
class Reading:
    """One norm and everything that reads its output.

    Args:
        norm: the norm.
        names: its name; several if layers share the module.
        readers: the matrices that read it.
        hindrances: the reasons why it cannot be folded.
    """

    norm: Norm
    names: list[str] = field(default_factory=list)
    readers: list[Matrix] = field(default_factory=list)
    hindrances: list[str] = field(default_factory=list)

    def add(self, found: "Matrix | str") -> None:
        """Add a reader, or the reason why one is no matrix."""
        if isinstance(found, str):
            self.hindrances.append(found)
        elif all(one.parameter is not found.parameter for one in self.readers):
            self.readers.append(found)


def processed_stacks(native: ResolvedModel) -> tuple[StackPart, ...]:
    """The main stack, and the encoder of an encoder-decoder; other towers are not changed."""
    return native.stacks if native.is_encoder_decoder else (native.main,)


def readings(native: ResolvedModel) -> list[Reading]:
    """Every norm between the stream and a branch or the head, with its readers."""
    found: dict[nn.Module, Reading] = {}

    def of(norm: Norm, name: str) -> Reading:
        reading = found.setdefault(norm.module, Reading(norm))
        if name not in reading.names:
            reading.names.append(name)
        return reading

    for stack in processed_stacks(native):
        for i, block in enumerate(stack.blocks):
            _of_block(f"{stack.prefix}.{i}.", block, stack.sizes.d_model, of)
        if stack.ln_final is not None:
            main = stack is native.main
            reading = of(stack.ln_final, "ln_final" if main else f"{stack.prefix}.ln_final")
            _of_the_end(native, stack, reading)
    return list(found.values())


def _of_block(at: str, block: BlockPart, d_model: int, of: Callable[[Norm, str], Reading]) -> None:
    unknown = strangers(block, axes=2)  # only a matrix can read a norm
    branches = (
        ("ln1", block.ln1, "attn", block.attn or block.mixer),
        ("ln_cross", block.norms.get("ln_cross"), "cross", block.cross),
        ("ln2", block.ln2, "mlp", block.mlp),
    )
    for slot, norm, branch, part in branches:
        if norm is None:
            continue
        shared = slot == "ln2" and block.ln1 is not None and norm.module is block.ln1.module
        reading = of(norm, f"{at}{'ln1' if shared else slot}")
        reading.hindrances += _of_the_stream(block)
        reading.hindrances += [
            f"{path} of the layer is not described, so whether it reads this norm is not known"
            for path, where in unknown.items()
            if where in (branch, "")
        ]
        if slot == "ln1" and block.mixer is not None:
            reading.add(f"a mixer ({type(block.mixer.module).__name__}) reads it")
        if part is None:
            reading.add("the branch that reads it is not described")
        for reader in _readers(slot, block, d_model):
            reading.add(reader)


def _of_the_stream(block: BlockPart) -> Iterator[str]:
    """The reasons why no norm of this layer can be folded."""
    if block.residual == "post_norm":
        yield "post-norm: its output is the residual stream itself, gain and bias included"
    elif block.residual is None:
        yield "the inside of the layer is not described"
    if block.skip_norm:
        yield "the branch is added to its output, gain and bias included"


def _readers(slot: str, block: BlockPart, d_model: int) -> "Iterator[Matrix | str]":
    if slot == "ln1" and block.attn is not None:
        yield from _into_attention(block.attn)
    elif slot == "ln_cross" and block.cross is not None:
        query = block.cross.roles["q"]
        yield matrix.of_linear(query.linear, query.in_scale)
    elif slot == "ln2":
        if isinstance(block.mlp, MLPPart):
            yield from _into_mlp(block.mlp)
        elif isinstance(block.mlp, MoEPart):
            yield from _into_experts(block.mlp, d_model)
        elif block.mlp is not None:
            yield f"the inside of {type(block.mlp.module).__name__} is not described"


def _into_attention(attn: AttentionPart) -> "Iterator[Matrix | str]":
    if attn.q is None:
        kind = type(attn.module).__name__
        yield f"no projections to queries, keys and values of {kind} are described"
        return
    scale = attn.q.in_scale
    if attn.latent is not None:
        yield matrix.of_linear(attn.latent.q_down or attn.q.linear, scale)
        yield matrix.of_linear(attn.latent.kv_down, scale)
        return
    for role in attn.roles.values():
        yield matrix.of_linear(role.linear, role.in_scale)


def _into_mlp(mlp: MLPPart) -> "Iterator[Matrix | str]":
    if mlp.token_shift is not None or mlp.out_gate is not None:
        yield "its MLP reads it at two positions, or makes a gate of it too"
    for role in (mlp.gate, mlp.up):
        if role is not None:
            yield matrix.of_linear(role.linear, role.in_scale)


def _into_experts(moe: MoEPart, d_model: int) -> "Iterator[Matrix | str]":
    yield matrix.of_router(moe.router, moe.n_experts, d_model)
    if moe.experts is None:
        yield "its experts cannot be read one by one"
    else:
        yield matrix.of_experts(moe.experts, moe.experts.up)
    if moe.shared is not None:
        yield from _into_mlp(moe.shared)


def _of_the_end(native: ResolvedModel, stack: StackPart, reading: Reading) -> None:
    """The readers of a final norm: the head, or for an encoder every cross-attention."""
    if stack is not native.main:
        for block in native.main.blocks:
            if block.cross is not None:
                for role in (block.cross.k, block.cross.v):
                    if role is not None:
                        reading.add(matrix.of_linear(role.linear, role.in_scale))
        return
    if native.unembed is None:
        reading.add("there is no head, so its output is the model's output")
    elif native.head_hidden is not None or native.pooler is not None:
        reading.add("there is more than one matrix between it and the logits")
    elif native.unembed.n_in != reading.norm.width:
        reading.add("the head does not read its output")
    else:
        reading.add(matrix.of_linear(native.unembed, native.head_scale))
    for path, module in outsiders(native).items():
        if isinstance(module, nn.Linear) and module.in_features == reading.norm.width:
            reading.add(f"{path} is not described, so whether it reads this norm is not known")
