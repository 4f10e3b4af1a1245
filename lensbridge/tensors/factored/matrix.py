"""Products of two thin matrices, kept as their factors, such as a head's QK and OV."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import ShapeError
from lensbridge.tensors.factored.factors import (
    SVD,
    common_leading,
    expanded,
    norm_of,
    one_number,
    require_meeting,
    svd_of,
    transposed,
    upcast,
    versions,
)
from lensbridge.tensors.factored.indexing import ALL, MatrixIndex


class FactoredMatrix:
    """The matrix `A @ B`, kept as `A` and `B`.

    Everything is computed from the factors: for a head's W_V @ W_O of rank 64, only `AB` makes a
    d_model x d_model matrix. Factors may be lazy stacks over layers; then `product[5, 3]` reads
    only layer 5.

    Args:
        A: the left factor.
        B: the right factor. Leading axes are broadcast against those of `A`.

    Shapes: `A [..., ldim, mdim]`, `B [..., mdim, rdim]`.

    Units: linear algebra on 16-bit factors is computed and returned in float32.

    Raises:
        ShapeError: the factors cannot be multiplied.

    Example:
        >>> product = FactoredMatrix(torch.randn(12, 768, 64), torch.randn(12, 64, 768))
        >>> product
        FactoredMatrix(shape=(12, 768, 768), mdim=64)
        >>> product[3].S.shape
        torch.Size([64])
    """

    def __init__(self, A: Tensor, B: Tensor) -> None:
        leading = common_leading(A, B)
        self.A = expanded(A, leading)
        self.B = expanded(B, leading)
        self._kept: tuple[tuple[int, ...], SVD] | None = None

    def __repr__(self) -> str:
        return f"FactoredMatrix(shape={tuple(self.shape)}, mdim={self.mdim})"

    # --- sizes -------------------------------------------------------------------------------

    @property
    def ldim(self) -> int:
        """Rows of the product."""
        return self.A.shape[-2]

    @property
    def mdim(self) -> int:
        """The width between the factors, which bounds the rank."""
        return self.A.shape[-1]

    @property
    def rdim(self) -> int:
        """Columns of the product."""
        return self.B.shape[-1]

    @property
    def shape(self) -> torch.Size:
        """The shape of the product: leading axes, ldim, rdim."""
        return torch.Size((*self.A.shape[:-1], self.rdim))

    @property
    def ndim(self) -> int:
        """Axes of the product."""
        return self.A.ndim

    @property
    def has_leading_dims(self) -> bool:
        """Whether these are several matrices."""
        return self.ndim > 2

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the left factor."""
        return self.A.dtype

    @property
    def device(self) -> torch.device:
        """The device of the left factor."""
        return self.A.device

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Both factors."""
        return self.A, self.B

    # --- products ----------------------------------------------------------------------------

    @property
    def AB(self) -> Tensor:
        """The product itself. Shapes: `[..., ldim, rdim]`."""
        return self.A @ self.B

    @property
    def BA(self) -> Tensor:
        """The factors multiplied in the other order. Shapes: `[..., mdim, mdim]`.

        Raises:
            ShapeError: the product is not square.
        """
        if self.ldim != self.rdim:
            raise ShapeError(f"BA needs a square product; this one is {tuple(self.shape)}.")
        return self.B @ self.A

    @property
    def T(self) -> "FactoredMatrix":
        """The transpose of the last two axes."""
        return FactoredMatrix(transposed(self.B), transposed(self.A))

    def __matmul__(self, other: "Tensor | FactoredMatrix") -> Any:
        """Times a matrix or a factored one: factored. Times a vector `[rdim]`: `[..., ldim]`.

        The brackets are set so that the width between the factors is the smaller one.
        """
        if isinstance(other, FactoredMatrix):
            return _chained(self, other)
        if not isinstance(other, Tensor):
            return NotImplemented
        require_meeting(self.shape, other.shape)
        if other.ndim == 1:
            return (self.A @ (self.B @ other.unsqueeze(-1))).squeeze(-1)
        if self.rdim < self.mdim:  # AB is smaller than A
            return FactoredMatrix(self.AB, other)
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Tensor) -> Any:
        """A matrix times this: factored. A vector `[ldim]` times this: `[..., rdim]`."""
        if not isinstance(other, Tensor):
            return NotImplemented
        require_meeting(other.shape, self.shape)
        if other.ndim == 1:
            return ((other.unsqueeze(-2) @ self.A) @ self.B).squeeze(-2)
        if self.ldim < self.mdim:
            return FactoredMatrix(other, self.AB)
        return FactoredMatrix(other @ self.A, self.B)

    def __mul__(self, scalar: float | Tensor) -> "FactoredMatrix":
        """Times a number."""
        return FactoredMatrix(self.A * one_number(scalar), self.B)

    __rmul__ = __mul__

    def __truediv__(self, scalar: float | Tensor) -> "FactoredMatrix":
        """Divided by a number."""
        return FactoredMatrix(self.A / one_number(scalar), self.B)

    # --- linear algebra ----------------------------------------------------------------------

    def svd(self) -> SVD:
        """The singular value decomposition, `M = U @ diag(S) @ V.mT`, from the factors.

        It is kept until one of the tensors is written to, but not where gradients are needed.
        """
        if self._kept is None or self._kept[0] != versions(*self.pair, *self._kept[1]):
            found = svd_of(*self.pair)
            stamp = versions(*self.pair, *found)
            self._kept = None if stamp is None else (stamp, found)
            return found
        return self._kept[1]

    @property
    def U(self) -> Tensor:
        """Left singular vectors. Shapes: `[..., ldim, k]`."""
        return self.svd().U

    @property
    def S(self) -> Tensor:
        """Singular values, largest first. Shapes: `[..., k]`."""
        return self.svd().S

    @property
    def V(self) -> Tensor:
        """Right singular vectors as columns. Shapes: `[..., rdim, k]`."""
        return self.svd().V

    @property
    def Vh(self) -> Tensor:
        """`V`, not its transpose: TransformerLens's name for it. Shapes: `[..., rdim, k]`."""
        return self.svd().V

    @property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of a square product, filled up to mdim with zeros.

        Shapes: `[..., mdim]`, complex.

        Raises:
            ShapeError: the product is not square.
        """
        reverse = self.BA  # it has the eigenvalues of the product, except for zeros
        if self.mdim <= self.ldim:
            return torch.linalg.eigvals(upcast(reverse))
        found = torch.linalg.eigvals(upcast(self.AB))
        zeros = found.new_zeros(*found.shape[:-1], self.mdim - self.ldim)
        return torch.cat([found, zeros], dim=-1)

    def norm(self) -> Tensor:
        """The Frobenius norm. Shapes: `[...]`."""
        return norm_of(*self.pair)

    def make_even(self) -> "FactoredMatrix":
        """The same product, with the factors `U @ diag(S).sqrt()` and `diag(S).sqrt() @ V.mT`."""
        U, S, V = self.svd()
        root = S.sqrt()
        return FactoredMatrix(U * root.unsqueeze(-2), root.unsqueeze(-1) * V.mT)

    def collapse_l(self) -> Tensor:
        """`diag(S) @ V.mT`: the product without its left rotation `U`. Shapes: `[..., k, rdim]`."""
        _, S, V = self.svd()
        return S.unsqueeze(-1) * V.mT

    def collapse_r(self) -> Tensor:
        """`U @ diag(S)`: the product without its right rotation `V`. Shapes: `[..., ldim, k]`."""
        U, S, _ = self.svd()
        return U * S.unsqueeze(-2)

    # --- parts -------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> "FactoredMatrix":
        """Index the product without making it.

        Leading axes behave as those of a tensor. Rows and columns keep their axis under an int,
        and each is chosen separately: `product[..., [0, 2], [1, 3]]` is a 2 x 2 matrix.

        Raises:
            IndexError: an index that does not fit.
        """
        at = MatrixIndex.of(index, self.shape)
        A, B = (x[at.leading] if at.leading else x for x in self.pair)
        A = A if _is_all(at.row) else A[..., at.row, :]
        B = B if _is_all(at.column) else B[..., at.column]
        for _ in range(at.between):
            A, B = A.unsqueeze(-2), B.unsqueeze(-3)
        for _ in range(at.after):
            A, B = B.mT.unsqueeze(-3), A.unsqueeze(-1)
        return FactoredMatrix(A, B)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator["FactoredMatrix"]:
        return (self[i] for i in range(len(self)))

    def get_corner(self, k: int = 3) -> Tensor:
        """The first k entries along every axis, as a tensor."""
        return self[(slice(k),) * self.ndim].AB

    def unsqueeze(self, k: int) -> "FactoredMatrix":
        """A new leading axis at `k`.

        Raises:
            ShapeError: `k` is not among the leading axes.
        """
        at = k if k >= 0 else k + self.ndim + 1
        if not 0 <= at <= self.ndim - 2:
            raise ShapeError(
                f"unsqueeze({k}) of {tuple(self.shape)}: a new axis goes before the rows, at 0 to "
                f"{self.ndim - 2}."
            )
        return FactoredMatrix(self.A.unsqueeze(at), self.B.unsqueeze(at))

    def to(self, *args: Any, **kwargs: Any) -> "FactoredMatrix":
        """Both factors on another device or in another dtype."""
        return FactoredMatrix(self.A.to(*args, **kwargs), self.B.to(*args, **kwargs))

    def detach(self) -> "FactoredMatrix":
        """Both factors outside the autograd graph."""
        return FactoredMatrix(self.A.detach(), self.B.detach())


def _chained(left: FactoredMatrix, right: FactoredMatrix) -> FactoredMatrix:
    require_meeting(left.shape, right.shape)
    if left.rdim < min(left.mdim, right.mdim):
        return FactoredMatrix(left.AB, right.AB)
    middle = left.B @ right.A
    if right.mdim < left.mdim:
        return FactoredMatrix(left.A @ middle, right.B)
    return FactoredMatrix(left.A, middle @ right.B)


def _is_all(item: Any) -> bool:
    return isinstance(item, slice) and item == ALL
