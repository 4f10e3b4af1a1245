"""Inside attention to several sequences that are in one row, such as the patches of all images.

The module cuts queries, keys and values into sequences, and calls the kernel for each. Scores and
pattern of the whole row have no weight from one sequence to another.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lensbridge.errors import HookError
from lensbridge.sites.call import Chain
from lensbridge.sites.derived import Change, substitute
from lensbridge.sites.kernel.axes import KernelAxes
from lensbridge.sites.kernel.scores import masked_scores, safe_softmax
from lensbridge.sites.kernel.site import KernelSite
from lensbridge.sites.kernel.tap import KernelTap, stronger
from lensbridge.sites.mapped import MappedChain
from lensbridge.tensors.layouts import repeat_kv


def without_batch(chain: Chain) -> Chain:
    """A chain for a value of one row, which the kernel has with a batch of one."""
    return MappedChain(chain, lambda value: value.squeeze(0), lambda value: value.unsqueeze(0))


@dataclass(frozen=True)
class RowKernelSite(KernelSite):
    """A value inside the kernels that one attention module calls for the sequences of a row."""

    through: Callable[[Chain], Chain] = without_batch

    def _tap(self, given: Tensor) -> KernelTap:
        axes = KernelAxes(self.name, self.n_heads, self.n_kv, 1, given.shape[0])
        return RowKernelTap(axes, given.dtype)


class RowKernelTap(KernelTap):
    """Watches one call of an attention module that calls a kernel for each sequence in a row."""

    def __init__(self, axes: KernelAxes, dtype: torch.dtype) -> None:
        super().__init__(axes, dtype)
        self.wholes: list[Tensor] = []
        self.lengths: list[int] = []
        self.how: Change = "none"
        self.pattern: Tensor | None = None
        self.raw: Tensor | None = None
        self.scale: float | None = None
        self.mixes = 0

    def handler(self, func: Any) -> Callable[..., Any] | None:
        """How a function is called instead."""
        return _HANDLERS.get(func) or super().handler(func)

    @property
    def wants_scores(self) -> bool:
        """Whether scores or pattern of the whole row are read or edited."""
        return "scores" in self.chains or "pattern" in self.chains

    def split(
        self, func: Callable[..., Any], tensor: Tensor, sizes: Any, dim: int = 0, **more: Any
    ) -> Any:
        """Queries, keys and values, in this order, are cut into sequences."""
        whole = tensor.ndim == 4 and dim in (2, -2) and tensor.shape[2] == self.axes.positions
        if whole and isinstance(sizes, list | tuple) and len(self.wholes) < 3:
            edits = (self.edit_queries, self.edit_keys, self.edit_values)
            tensor = edits[len(self.wholes)](tensor)
            self.wholes.append(tensor)
            self.lengths = list(sizes)
            self.expected = len(self.lengths)
        return func(tensor, sizes, dim, **more)

    def fused_kernel(
        self,
        func: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """`scaled_dot_product_attention` of one sequence."""
        if len(self.wholes) < 3:
            return super().fused_kernel(func, query, key, value, *args, **kwargs)
        part, self.kernels = self.kernels, self.kernels + 1
        native = func(query, key, value, *args, **kwargs)
        if part == 0 and self.wants_scores:
            scale = kwargs.get("scale")
            self._run_chains(query.shape[-1] ** -0.5 if scale is None else scale)
        return self._mix(part, native)

    def softmax(
        self, func: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Eager attention of one sequence: its pattern, which the next product takes."""
        if len(self.wholes) < 3:
            return super().softmax(func, input, *args, **kwargs)
        part, self.kernels = self.kernels, self.kernels + 1
        if part == 0 and self.wants_scores:
            if self.scale is None:
                raise HookError(
                    f"{self.axes.point}: the kernel's multiplier of the scores was not seen. Load "
                    "the model with attn_implementation='sdpa'."
                )
            self._run_chains(self.scale)
        return func(input, *args, **kwargs)

    def product(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Eager attention of one sequence: queries with keys, then the pattern with values."""
        if len(self.wholes) < 3:
            return super().product(func, *args, **kwargs)
        native = func(*args, **kwargs)
        if self.mixes == self.kernels:  # no softmax since the last one
            self.raw = native
            return native
        part, self.mixes = self.mixes, self.mixes + 1
        return self._mix(part, native)

    def multiplied(self, func: Callable[..., Any], one: Any, other: Any, **more: Any) -> Any:
        """What eager attention multiplies its first product by is the multiplier of the scores."""
        if one is self.raw and self.raw is not None and isinstance(other, float | int):
            self.scale = float(other)
        return func(one, other, **more)

    # --- the whole row -----------------------------------------------------------------------

    def _sequences(self) -> Iterator[slice]:
        start = 0
        for length in self.lengths:
            yield slice(start, start + length)
            start += length

    def _run_chains(self, scale: float) -> None:
        """Run the chains of scores and pattern, for all sequences at once."""
        query, key, _ = self.wholes
        shape = (*query.shape[:3], self.axes.positions)
        scores = query.new_full(shape, -torch.inf)
        for own in self._sequences():
            part = masked_scores(query[:, :, own], key[:, :, own], None, False, scale)
            scores[:, :, own, own] = part
        self.how, scores = self.run_chain("scores", scores)
        how, self.pattern = self.run_chain("pattern", self._pattern(scores))
        self.how = stronger(self.how, how)

    def _pattern(self, scores: Tensor) -> Tensor:
        """The pattern; without an edit, as each kernel computes it: of its own sequence."""
        if self.how == "changed":
            return safe_softmax(scores)
        pattern = torch.zeros_like(scores)
        for own in self._sequences():
            pattern[:, :, own, own] = safe_softmax(scores[:, :, own, own])
        return pattern

    def _mix(self, part: int, native: Tensor) -> Tensor:
        """What the kernel returns for one sequence, with its rows of the pattern."""
        if self.how == "none" or self.pattern is None:
            return native
        own = list(self._sequences())[part]
        values = repeat_kv(self.wholes[2], self.axes.n_heads, axis=1)
        rows = self.pattern[:, :, own].to(values.dtype)
        return substitute(native, rows @ values, self.how)


_HANDLERS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys([torch.split, Tensor.split], RowKernelTap.split),
    **dict.fromkeys([torch.mul, Tensor.mul, Tensor.__mul__], RowKernelTap.multiplied),
    F.scaled_dot_product_attention: RowKernelTap.fused_kernel,
    **dict.fromkeys([F.softmax, torch.softmax, Tensor.softmax], RowKernelTap.softmax),
    **dict.fromkeys(
        [torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm],
        RowKernelTap.product,
    ),
}
