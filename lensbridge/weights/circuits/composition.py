"""How strongly one head's writing is read by another: composition scores of their matrices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lensbridge.errors import ShapeError
from lensbridge.tensors.factored import FactoredMatrix
from lensbridge.tensors.factored.factors import upcast


class CompositionScores(Tensor):
    """Scores `[layer, head, later layer, later head]`, and which layers and heads these are.

    What torch makes of it is an ordinary tensor.

    Attributes:
        layer_indices: row i, on either layer axis, is layer `layer_indices[i]`.
        head_labels: names of the heads, in the order of either pair of axes.
    """

    layer_indices: list[int]
    head_labels: list[str]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def of(scores: Tensor, layers: Sequence[int], labels: Sequence[str]) -> "CompositionScores":
        """Scores with names."""
        named = scores.as_subclass(CompositionScores)
        named.layer_indices, named.head_labels = list(layers), list(labels)
        return named

    @property
    def scores(self) -> Tensor:
        """The same numbers as an ordinary tensor."""
        return self.as_subclass(Tensor)


def composition_scores(
    left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True
) -> Tensor:
    """`||left @ right|| / (||left|| ||right||)` in the Frobenius norm, from the factors.

    Args:
        left: what is written first.
        right: what reads it.
        broadcast_dims: score every matrix of `left` against every one of `right`; False scores them
            in pairs, leading axes broadcast as usual.

    Shapes: `[*leading of left, *leading of right]`, or their broadcast.

    Units: between 0 and 1; a product with a matrix that is zero has no score, and gives nan.

    Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

    Raises:
        ShapeError: `left` writes another width than `right` reads.

    Example:
        >>> ov = FactoredMatrix(torch.eye(8)[:, :2], torch.eye(8)[:2])
        >>> composition_scores(ov, ov)
        tensor(0.7071)
    """
    if left.rdim != right.ldim:
        raise ShapeError(
            f"left {tuple(left.shape)} writes {left.rdim} numbers and right {tuple(right.shape)} "
            f"reads {right.ldim}."
        )
    writes, reads = _writing(left), _reading(right)
    whole = torch.linalg.matrix_norm(writes), torch.linalg.matrix_norm(reads)
    if broadcast_dims:
        return _all_pairs(writes, reads) / _outer(*whole)
    return torch.linalg.matrix_norm(writes @ reads) / (whole[0] * whole[1])


def scores_between_layers(writers: FactoredMatrix, readers: FactoredMatrix) -> Tensor:
    """Scores of every layer's heads with those of later layers; one pair of layers at a time.

    Args:
        writers: `[layer, head, m, m]`; lazy ones are read layer by layer.
        readers: likewise.

    Shapes: `[layer, head, later layer, later head]`, zero where the second is not later.
    """
    written = [_writing(writers[0])]
    count, heads = len(writers), len(written[0])
    scores = written[0].new_zeros(count, heads, count, heads)
    for later in range(1, count):
        reads = _reading(readers[later])
        size = torch.linalg.matrix_norm(reads)
        for earlier, writes in enumerate(one.to(reads.device) for one in written):
            sizes = _outer(torch.linalg.matrix_norm(writes), size)
            scores[earlier, :, later] = _all_pairs(writes, reads) / sizes
        written.append(_writing(writers[later]))
    return scores


def _writing(product: FactoredMatrix) -> Tensor:
    """The product without what rotates its rows, which no score sees. Shapes: `[..., k, m]`."""
    return torch.linalg.qr(upcast(product.A))[1] @ upcast(product.B)


def _reading(product: FactoredMatrix) -> Tensor:
    """The product without what rotates its columns. Shapes: `[..., m, k]`."""
    return upcast(product.A) @ torch.linalg.qr(upcast(product.B).mT)[1].mT


def _all_pairs(writes: Tensor, reads: Tensor) -> Tensor:
    """`||writes[i] @ reads[j]||` for all i and j, in one product of two matrices."""
    rows = writes.reshape(-1, writes.shape[-1])
    columns = reads.movedim(-2, 0).reshape(reads.shape[-2], -1)
    product = (rows @ columns).reshape(*writes.shape[:-1], *reads.shape[:-2], reads.shape[-1])
    axis = writes.ndim - 2
    return torch.linalg.vector_norm(product, dim=(axis, -1))


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left.reshape((*left.shape, *[1] * right.ndim)) * right
