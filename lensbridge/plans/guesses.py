"""Answers to questions about values that a run without values cannot know."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_ALL = (_aten.all.default, _aten.all.dim, _aten.all.dims, _aten._is_all_true.default)
UNCOUNTED = -100
"""The label that a loss does not count."""

EVEN = "tokens are spread evenly over the experts"


class Guesses(TorchDispatchMode):
    """Inside, questions about values are answered as in a usual run.

    What is compared is equal, since a hook that only reads changes nothing. A check that all values
    are right holds, and none is found that is wrong or needs a special treatment. Tokens are spread
    evenly over experts. Other questions raise torch's error for tensors without values.

    Args:
        experts: how many experts a layer has; None: there are none.

    Attributes:
        made: the guesses that sizes depend on, in words.
    """

    def __init__(self, experts: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.experts = experts
        self.made: dict[str, None] = {}
        self._answers: dict[Any, Callable[..., Any]] = {
            _aten.equal.default: lambda *args: True,
            _aten._local_scalar_dense.default: self._truth,
            _aten.nonzero.default: self._found,
            _aten.index.Tensor: _chosen,
        }
        if hasattr(_aten, "_grouped_mm"):  # PyTorch 2.8 or newer
            self._answers[_aten._grouped_mm.default] = _grouped

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        answer = self._answers.get(func)
        found = NotImplemented if answer is None else answer(*args, **(kwargs or {}))
        if found is not NotImplemented:
            return found
        out = func(*args, **(kwargs or {}))
        if func in _ALL:
            out.asks_for_all = True
        elif func is _aten.eq.Scalar and args[0].ndim == 2:
            out.is_equal_to = args[1]
        elif func is _aten.ne.Scalar and args[1] == UNCOUNTED:
            out.is_counted = True
        return out

    def _truth(self, tensor: Tensor) -> Any:
        if tensor.dtype is not torch.bool:
            return NotImplemented
        return hasattr(tensor, "asks_for_all")

    def _found(self, tensor: Tensor) -> Any:
        """Where the chosen expert is the one that is looked for."""
        expert, count = getattr(tensor, "is_equal_to", None), self.experts
        if not count or not isinstance(expert, int) or not 0 <= expert < count:
            return NotImplemented
        self.made[EVEN] = None
        share = (expert + 1) * tensor.numel() // count - expert * tensor.numel() // count
        return tensor.new_empty((share, tensor.ndim), dtype=torch.long)


def _chosen(tensor: Tensor, indices: Sequence[Tensor | None]) -> Any:
    """The labels that are counted, which are looked at to find one that is wrong: there is none."""
    mask = indices[0] if len(indices) == 1 else None
    if mask is None or not hasattr(mask, "is_counted"):
        return NotImplemented
    return tensor.new_empty((0, *tensor.shape[mask.ndim :]))


def _grouped(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """A product of groups of rows, of which torch knows the shape in some dtypes and sizes only."""
    shape = [a.shape[-2], b.shape[-1]]
    if a.ndim == b.ndim:
        shape = [a.shape[0] if offs is None else offs.numel(), *shape]
    return a.new_empty(shape, dtype=out_dtype or a.dtype)
