"""Weights under TransformerLens's names: ordinary tensors, one key for each query head."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from lensbridge.errors import WeightError
from lensbridge.model import LensModel
from lensbridge.native.linear import fetch
from lensbridge.native.parts import AttentionPart, BlockPart
from lensbridge.tensors.layouts import repeat_kv
from lensbridge.tensors.weight_copy import WeightCopy

T = TypeVar("T")
Reader: TypeAlias = Callable[[], Tensor]

_SHARED = ("W_K", "W_V", "b_K", "b_V")
_BUFFERS = (".mask", ".IGNORE", ".rotary_sin", ".rotary_cos")
"""Entries of TransformerLens's states that are not weights."""


@dataclass(frozen=True)
class Weights:
    """The weights of one model, as functions that read them.

    Args:
        stored: weights by their name in a state. Where several query heads share a key, that is
            `attn._W_K`.
        beside: weights that can be read and are not in a state: then `attn.W_K` and the like, with
            a copy for each query head; and the ones and zeros of norms that were folded.
        scaled: embeddings that the model multiplies after they are looked up -> by how much. They
            are read multiplied, as TransformerLens has them, so `W_E[tokens]` is `hook_embed`.
    """

    stored: dict[str, Reader]
    beside: dict[str, Reader]
    scaled: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, lens: LensModel, folded: bool = False, scales: bool = True) -> "Weights":
        """The weights of a model. An RMSNorm has no bias, and a norm that was folded no weights.

        Args:
            lens: the model.
            folded: whether its norms were folded into the weights that read them.
            scales: whether embeddings are read multiplied.
        """
        grouped, rms = _grouped(lens), lens.cfg.normalization_type == "RMS"
        stored: dict[str, Reader] = {}
        beside: dict[str, Reader] = {}
        for name, (read, _) in lens.components.weights.items():
            path, _, last = name.rpartition(".")
            of_norm = path.rpartition(".")[2].startswith("ln")
            if last == "b_gate" or (of_norm and rms and last == "b"):
                continue
            if of_norm and folded:
                beside[name] = read
            elif last in _SHARED and path in grouped:
                stored[f"{path}._{last}"] = read
                beside[name] = partial(_repeated, read, grouped[path])
            else:
                stored[name] = read
        stored.update(_norms_of_heads(lens))
        return cls(stored, beside, _scaled(lens) if scales else {})

    def __contains__(self, name: object) -> bool:
        return name in self.stored or name in self.beside

    def __getitem__(self, name: str) -> Reader:
        if name in self.scaled:
            return partial(_multiplied, self.stored[name], self.scaled[name])
        return self.stored[name] if name in self.stored else self.beside[name]

    def in_state(self) -> dict[str, Tensor]:
        """Every weight that is in a state."""
        return {name: self[name]() for name in self.stored}

    @property
    def names(self) -> list[str]:
        """Every name."""
        return [*self.stored, *self.beside]

    def fitting(self, state: Mapping[str, Tensor], strict: bool) -> dict[str, Tensor]:
        """The weights in a state that this model has.

        Raises:
            WeightError: with `strict`, some are missing or unknown.
        """
        given = {name: one for name, one in state.items() if not f".{name}".endswith(_BUFFERS)}
        strange = [name for name in given if name not in self.stored]
        absent = [name for name in self.stored if name not in given]
        if strict and (strange or absent):
            raise WeightError(
                f"These weights do not fit the model: {len(absent)} are missing, such as "
                f"{absent[:3]}, and {len(strange)} are unknown, such as {strange[:3]}."
            )
        return {name: one for name, one in given.items() if name in self.stored}

    def below(self, path: str) -> "Weights":
        """The weights of a part, by their names in it."""
        return Weights(_in(path, self.stored), _in(path, self.beside), _in(path, self.scaled))

    def write_state(self, state: Mapping[str, Tensor], strict: bool) -> None:
        """Write the weights in a state that this model has.

        Raises:
            WeightError: with `strict`, some are missing or unknown; or they cannot be written.
        """
        self.write(self.fitting(state, strict))

    def write(self, values: Mapping[str, Tensor]) -> None:
        """Write into the model, all or nothing.

        Raises:
            WeightError: an unknown name, another shape, a weight whose reads are copies, or two
                values for one tied tensor.
        """
        for name, value in values.items():
            self._check(name, value)
        native = {name: one / self.scaled.get(name, 1.0) for name, one in values.items()}
        self._check_tied(native)
        with torch.no_grad():
            for name, value in native.items():
                target = self._native(name)()
                if type(target) is not WeightCopy:  # a copy has the value already
                    target.copy_(value.to(target))

    def _native(self, name: str) -> Reader:
        return self.stored.get(name) or self.beside[name]

    def _check(self, name: str, value: Tensor) -> None:
        if name not in self:
            raise WeightError(f"There is no weight {name!r} to set.")
        held = self._native(name)()
        if held.shape != value.shape:
            raise WeightError(f"{name} has shape {tuple(held.shape)}, not {tuple(value.shape)}.")
        copied = held.data_ptr() != self._native(name)().data_ptr()
        if copied and not torch.equal(held, value.to(held)):
            raise WeightError(
                f"{name} is computed when it is read (quantized, offloaded, adapted, one copy for "
                "each query head, or a bias that does not exist), so writing to it would not "
                "reach the model."
            )

    def _check_tied(self, values: Mapping[str, Tensor]) -> None:
        ends = ("embed.W_E", "unembed.W_U")
        if not all(end in values for end in ends):
            return
        embed, unembed = (self._native(end)().data_ptr() for end in ends)
        if embed == unembed and not torch.equal(values[ends[0]], values[ends[1]].mT):
            raise WeightError(
                "W_E and W_U are one tied tensor in this model, and these are two different ones."
            )


def _in(path: str, held: Mapping[str, T]) -> dict[str, T]:
    """What is below a path, by its name there."""
    before = f"{path}."
    inside = {name: one for name, one in held.items() if name.startswith(before)}
    return {name.removeprefix(before): one for name, one in inside.items()}


def _attentions(lens: LensModel) -> Iterator[tuple[str, BlockPart, AttentionPart]]:
    """The path of each attention, its layer and itself."""
    for stack in lens.native.stacks:
        for i, block in enumerate(stack.blocks):
            for name, part in (("attn", block.attn), ("cross_attn", block.cross)):
                if part is not None:
                    yield f"{stack.prefix}.{i}.{name}", block, part


def _grouped(lens: LensModel) -> dict[str, int]:
    """Paths of attentions whose query heads share keys -> the number of query heads."""
    parts = _attentions(lens)
    return {path: part.n_heads for path, _, part in parts if part.n_kv < part.n_heads}


def _norms_of_heads(lens: LensModel) -> dict[str, Reader]:
    """The gains of norms of queries and keys (Qwen 3): `blocks.0.attn.q_norm.w`."""
    return {
        f"{path}.{letter}_norm.w": partial(_gain, norm, _has_offset(block))
        for path, block, part in _attentions(lens)
        for letter, norm in (("q", part.q_norm), ("k", part.k_norm))
        if norm is not None and isinstance(getattr(norm, "weight", None), Tensor)
    }


def _has_offset(block: BlockPart) -> bool:
    return block.ln1 is not None and block.ln1.unit_offset


def _gain(norm: nn.Module, has_offset: bool) -> Tensor:
    weight = fetch(norm, "weight")
    return WeightCopy.of(1.0 + weight) if has_offset else weight


def _scaled(lens: LensModel) -> dict[str, float]:
    """Names of embeddings that a model multiplies by a number -> the number."""
    found = {}
    for stack in lens.native.stacks:
        name = f"{lens.native.front_of(stack)}embed.W_E"
        if stack.embed is not None and name in lens.components.weights:
            inside = _factor(stack.embed, lens.components.weights[name][0]())
            found[name] = inside * stack.embed_scale.number
    return {name: number for name, number in found.items() if number != 1.0}


def _factor(embed: nn.Module, table: Tensor) -> float:
    """What a module multiplies the rows of its table by: Gemma's does, and others do nothing."""
    own = getattr(embed, "weight", None)
    if not isinstance(own, Tensor) or own.is_meta or own.shape != table.shape or not len(own):
        return 1.0
    with torch.no_grad():
        token = torch.tensor([[1 % len(own)]], device=own.device)
        given, row = embed.forward(token)[0, 0].double(), own[token[0, 0]].double()
    at = row.abs().argmax()
    return 1.0 if torch.equal(given, row) or not bool(row[at]) else float(given[at] / row[at])


def _multiplied(read: Reader, number: float) -> Tensor:
    return WeightCopy.of(read() * number)


def _repeated(read: Reader, heads: int) -> Tensor:
    return repeat_kv(read(), heads, axis=0)
