"""One of vLLM's models taken apart, as `native/resolve` takes one of HuggingFace's apart."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.engines.vllm.description import described
from lensbridge.engines.vllm.shards import input_shards, output_shards, rows_together
from lensbridge.native.holding import PLAIN, Held
from lensbridge.native.linear import Linear
from lensbridge.native.parts import (
    AttentionPart,
    BlockPart,
    MLPPart,
    ResolvedModel,
    Role,
    StackPart,
)
from lensbridge.native.resolve import resolve

SOURCE = "its vLLM class"


@dataclass(frozen=True)
class ParallelLinear(Linear):
    """One of vLLM's projections, which may have packed its weight for the CPU's own kernels."""

    @property
    def held(self) -> Held:
        """As it is."""
        return PLAIN

    def weight(self) -> Tensor:
        """Shapes: `[in, out]`. Of a packed weight, what the projection makes of each channel."""
        module: Any = self.module
        stored: Tensor = module.weight
        if stored.shape == (self.n_out, self.n_in):
            return stored.mT
        given, returned = input_shards(module), output_shards(module)
        width = self.n_in if given is None else given.sections[0]
        rows = torch.eye(width, dtype=stored.dtype, device=stored.device)
        found: Tensor = module.quant_method.apply(module, rows, None)
        if given is not None:
            return rows_together(found)
        return found if returned is None else returned.whole(found)

    def bias(self) -> Tensor:
        """Shapes: `[out]`. Zeros where the module has none."""
        module: Any = self.module
        stored: Tensor | None = getattr(module, "bias", None)
        returned = output_shards(module)
        if stored is None:
            return module.weight.new_zeros(self.n_out)
        return stored if returned is None else returned.whole(stored)


@dataclass(frozen=True)
class HeadLinear(ParallelLinear):
    """vLLM's head. It is stored with rows after the vocabulary's last, and is not called itself."""

    def weight(self) -> Tensor:
        """Shapes: `[d_model, d_vocab]`"""
        stored: Any = self.module.weight
        return rows_together(stored)[: self.n_out].mT

    def bias(self) -> Tensor:
        """Shapes: `[d_vocab]`. Zeros where the head has none."""
        stored: Any = getattr(self.module, "bias", None)
        weight: Any = self.module.weight
        if stored is None:
            return weight.new_zeros(self.n_out)
        return rows_together(stored)[: self.n_out]


_PARTS = (StackPart, BlockPart, AttentionPart, MLPPart, Role)


def parts_of(core: nn.Module) -> ResolvedModel:
    """The parts of a model.

    Raises:
        UnsupportedArchitectureError: nobody has described its class.
        ArchitectureMismatchError: a module is not as described.
    """
    native = resolve(core, described(core), SOURCE)
    head = getattr(core, "lm_head", None) or native.main.embed
    sizes, unembed = native.sizes, None
    if isinstance(head, nn.Module) and hasattr(core, "compute_logits"):
        unembed = HeadLinear(head, False, sizes.d_model, sizes.d_vocab)
    return replace(
        native,
        main=_parallel(native.main),
        unembed=unembed,
        returns_logits=unembed is not None,
    )


def _parallel(part: Any) -> Any:
    """A part in which every projection is one of vLLM's."""
    if type(part) is Linear:
        return ParallelLinear(part.module, False, part.n_in, part.n_out)
    if isinstance(part, tuple):
        return tuple(map(_parallel, part))
    if not isinstance(part, _PARTS):
        return part
    return replace(part, **{one.name: _parallel(getattr(part, one.name)) for one in fields(part)})


def logits_of(core: Any) -> Callable[[Tensor], Tensor | None]:
    """What makes logits of the final norm's output; None in workers that get none.

    Shapes: `[token, d_model]` -> `[token, v]`
    """
    return lambda hidden: core.compute_logits(hidden)


def stream_modules(native: ResolvedModel) -> tuple[frozenset[nn.Module], frozenset[nn.Module]]:
    """The modules that may be given the stream as two summands, and those that return it so."""
    layers = frozenset(block.module for block in native.blocks)
    norms = [norm.module for block in native.blocks for norm in block.norms.values()]
    last = [] if native.ln_final is None else [native.ln_final.module]
    return layers | frozenset([*norms, *last]), layers
