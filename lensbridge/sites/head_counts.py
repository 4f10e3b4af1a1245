"""Whether an attention kernel is called with as many heads as a description says."""

from torch import Tensor

from lensbridge.errors import HookError


def has_other_heads(x: Tensor, batch: int, heads: int, positions: int) -> bool:
    """Whether a tensor is `[b, ·, p, ·]` with another number of heads."""
    of_pass = x.ndim == 4 and x.shape[0] == batch and x.shape[2] == positions
    return of_pass and x.shape[1] != heads


def miscounted(name: str, what: str, x: Tensor, said: int, field: str) -> HookError:
    """The error for a kernel that is called with another number of heads.

    Args:
        name: the point that is read.
        what: what the tensor is: queries, keys or values, scores.
        x: `[b, h, p, ·]`, as the kernel gets it.
        said: the number of heads by the description.
        field: the field of `Dims` that says so.
    """
    return HookError(
        f"{name}: the attention kernel gets {what} of {x.shape[1]} heads, {tuple(x.shape)}, and "
        f"dims.{field} of the description says {said}. Name the config field with {x.shape[1]}: "
        f"Dims({field}='...')."
    )
