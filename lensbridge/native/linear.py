"""Projections and their weights as the model uses them, whatever way the weight is held.

`Linear.weight` gives a plain weight as a view, so writing to it edits the model. The others come as
copies, and `Linear.held` says why.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lensbridge.native.fsdp import is_fully_sharded, shard_of
from lensbridge.native.holding import (
    Held,
    Holding,
    execution_device,
    held,
    opaque,
    place_of,
    proof,
    read,
)

State: TypeAlias = Holding | Literal["composed"]
"""How a weight under one of the field's names is held. composed: a product of several weights
(latent attention, a multiplier), so a copy."""

fetch = read

_KNOWN = ("torch.nn.modules.linear.Linear.", "transformers.pytorch_utils.Conv1D.")


@dataclass(frozen=True)
class Linear:
    """A projection of the model, whatever way its weight is stored.

    Args:
        module: the native module.
        transposed: whether it stores `[in, out]` (Conv1D) rather than `[out, in]` (Linear).
        n_in: the width of its input.
        n_out: the width of its output.
    """

    module: nn.Module
    transposed: bool
    n_in: int
    n_out: int

    @property
    def state(self) -> Holding:
        """How the weight is held, which decides whether a read is a view or a copy."""
        return self.held.holding

    @property
    def held(self) -> Held:
        """How the weight is held, and by what. The first time, two rows go through the module."""
        found = held(self.module)
        cut = found.holding == "sharded" and is_fully_sharded(self.module)
        if cut and not proof.is_usual(self.module, _KNOWN):
            called = type(self.module).__name__
            return opaque(f"sharded by fully_shard in a {called}, which uses it in its own way")
        if found.holding not in ("plain", "offloaded"):
            return found
        weight = self.module._parameters.get("weight")
        if weight is None or weight.ndim != 2 or weight.numel() != self.n_in * self.n_out:
            return opaque(f"not stored as one matrix of {self.n_in} by {self.n_out}")
        why = proof.hindrance(self.module, "weight", self._kind)
        return opaque(f"not used as it is: {why}") if why else found

    def weight(self) -> Tensor:
        """Shapes: `[in, out]`. A view of the native parameter when `state` is "plain"."""
        shape = (self.n_in, self.n_out) if self.transposed else (self.n_out, self.n_in)
        stored = read(self.module, "weight", self._by_identity, self.held, shape)
        return stored if self.transposed else stored.mT

    def bias(self) -> Tensor:
        """Shapes: `[out]`. Zeros where the module has none."""
        how = self.held
        stored = getattr(self.module, "bias", None)
        if callable(stored) and how.holding == "quantized":  # PyTorch's own: a method
            return self._by_zeros()
        measured = how.holding in ("adapted", "opaque")
        if measured or stored is not None:
            own = read(
                self.module, "bias", self._by_zeros, how if measured else None, (self.n_out,)
            )
            return own if how.writable else own.clone()
        like = self._float()
        return torch.zeros(self.n_out, dtype=like.dtype, device=place_of(self.module, like))

    def _float(self) -> Tensor:
        """The stored weight where it is one of floats, which need not be fetched for its dtype."""
        held = shard_of(self.module, "weight")
        held = self.module._parameters.get("weight") if held is None else held
        is_float = held is not None and held.is_floating_point() and held.itemsize > 1
        return held if held is not None and is_float else self.weight()

    @property
    def _kind(self) -> proof.Kind:
        return proof.Kind("multiply its input by it", ("weight", "bias"), _KNOWN, self._prove)

    def _prove(self, module: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A row of random numbers, and one that picks a single input channel."""
        rows = torch.zeros(2, self.n_in, dtype=weight.dtype, device=weight.device)
        rows[0] = proof.rows_like(weight, self.n_in)
        rows[1, self.n_in // 2] = 1.0
        added = rows @ (weight if self.transposed else weight.mT)
        bias = module._parameters.get("bias")
        wanted = added if bias is None else added + bias
        size = added.abs() + wanted.abs()
        size[0] = 4 * size[0].amax()
        size[1] /= 8  # nothing is added up but the bias
        return _product(type(module).forward(module, rows)), wanted, size

    def _by_identity(self) -> Tensor:
        """The weight as it is stored, measured: what the module makes of each input channel."""
        out = self._apply(torch.cat([torch.eye(self.n_in), torch.zeros(1, self.n_in)]))
        found = out[:-1] - out[-1]
        return found if self.transposed else found.mT

    def _by_zeros(self) -> Tensor:
        """The bias, measured: what the module makes of nothing."""
        return self._apply(torch.zeros(1, self.n_in))[0]

    def _apply(self, rows: Tensor) -> Tensor:
        with proof.settled(self.module):  # no LoRA dropout in a weight
            like = next(
                (p for p in self.module.parameters() if p.is_floating_point() and p.itemsize > 1),
                torch.empty(0, device=execution_device(self.module)),
            )
            device = execution_device(self.module) or like.device
            rows = rows.to(device, like.dtype)
            proof.prepare(self.module, rows)
            return _product(self.module.forward(rows))


def _product(returned: Any) -> Tensor:
    """What a projection gives; I-BERT's comes with a scaling factor."""
    product: Tensor = returned[0] if isinstance(returned, tuple) else returned
    return product
