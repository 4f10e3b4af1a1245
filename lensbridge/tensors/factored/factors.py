"""Two factors of a product: their shapes, and linear algebra that never multiplies them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lensbridge.errors import ShapeError
from lensbridge.tensors.layer_stack import LayerStack


class SVD(NamedTuple):
    """`M = U @ diag(S) @ V.mT`. With k the smallest of ldim, mdim and rdim:

    Shapes: `U [..., ldim, k]`, `S [..., k]`, `V [..., rdim, k]`.
    """

    U: Tensor
    S: Tensor
    V: Tensor


def upcast(x: Tensor) -> Tensor:
    """16-bit numbers as float32, for linear algebra."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def svd_of(A: Tensor, B: Tensor) -> SVD:
    """The decomposition of `A @ B`, from the QR decompositions of the factors."""
    left, left_core = torch.linalg.qr(upcast(A))
    right, right_core = torch.linalg.qr(upcast(B).mT)
    U, S, Vh = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
    return SVD(left @ U, S, right @ Vh.mT)


def norm_of(A: Tensor, B: Tensor) -> Tensor:
    """The Frobenius norm of `A @ B`; orthogonal columns on the left do not change it."""
    left = upcast(A)
    if A.shape[-2] > A.shape[-1]:
        left = torch.linalg.qr(left)[1]
    return torch.linalg.matrix_norm(left @ upcast(B))


def versions(*tensors: Tensor) -> tuple[int, ...] | None:
    """Numbers that change when a tensor is written to; None for graphs and uncounted tensors."""
    for x in tensors:
        if type(x) not in (Tensor, nn.Parameter) or x.is_inference():
            return None
        if x.requires_grad and torch.is_grad_enabled():
            return None
    return tuple(x._version for x in tensors)


def transposed(x: Tensor) -> Tensor:
    """Rows and columns exchanged; a lazy stack stays lazy."""
    return x.each(lambda layer: layer.mT) if isinstance(x, LayerStack) else x.mT


def common_leading(A: Tensor, B: Tensor) -> torch.Size:
    """The leading axes of `A @ B`.

    Raises:
        ShapeError: they cannot be multiplied.
    """
    for side, factor in (("A", A), ("B", B)):
        if not isinstance(factor, Tensor) or factor.ndim < 2:
            given = tuple(factor.shape) if isinstance(factor, Tensor) else type(factor).__name__
            raise ShapeError(
                f"{side} of a FactoredMatrix is a tensor with two axes or more; got {given}."
            )
    require_meeting(A.shape, B.shape)
    return torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])


def require_meeting(left: torch.Size, right: torch.Size) -> None:
    """Check that a product of two shapes exists, a vector on either side included.

    Raises:
        ShapeError: it does not.
    """
    inner = right[-2:][:1]
    if not inner or left[-1:] != inner:
        raise ShapeError(f"{tuple(left)} @ {tuple(right)}: the inner sizes differ.")
    try:
        torch.broadcast_shapes(left[:-2], right[:-2])
    except RuntimeError:
        raise ShapeError(
            f"{tuple(left)} @ {tuple(right)}: the leading axes cannot be broadcast together."
        ) from None


def expanded(x: Tensor, leading: torch.Size) -> Tensor:
    """A matrix with these leading axes; one that has them is returned itself and stays lazy."""
    return x if x.shape[:-2] == leading else x.expand(*leading, *x.shape[-2:])


def one_number(scalar: float | Tensor) -> float | Tensor:
    """A number, or the one number in a tensor.

    Raises:
        ShapeError: the tensor has several numbers.
    """
    if not isinstance(scalar, Tensor):
        return scalar
    if scalar.numel() != 1:
        raise ShapeError(
            f"A factored matrix is multiplied by one number; got {tuple(scalar.shape)}. Use @ for "
            "a matrix."
        )
    return scalar.reshape(())
