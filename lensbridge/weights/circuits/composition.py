"""Composition scores: how much of what one head writes another head reads."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lensbridge.errors import ShapeError
from lensbridge.tensors.factored import FactoredMatrix
from lensbridge.tensors.factored.factors import upcast
from lensbridge.viz import Drawn, Heatmap
from lensbridge.viz.drawing import heatmap_of


class CompositionScores(Drawn, Tensor):
    """Scores `[layer, head, later layer, later head]`, with the names of the layers and heads.

    Torch functions return ordinary tensors for it.

    Attributes:
        layer_indices: row i of both layer axes is layer `layer_indices[i]`.
        head_labels: names of the heads, in the order of both pairs of axes.
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

    def plot(self, *, title: str = "Composition") -> Heatmap:
        """A heatmap: earlier heads from top to bottom, later heads from left to right.

        Pairs whose second head is not in a later layer have no cell.

        Raises:
            InputError: there are too many heads for a picture.
        """
        count, heads = self.shape[:2]
        later = torch.ones(count, count).triu(1).bool()
        table = self.scores.detach().float().cpu().clone()
        table[~later[:, None, :, None].expand_as(table)] = torch.nan
        axes = {"earlier head": self.head_labels, "later head": self.head_labels}
        whole = table.reshape(count * heads, count * heads)
        advice = "Draw the scores of some layers with lensbridge.viz.plot."
        return heatmap_of(whole, axes, title, advice=advice, unit="composition score")


def composition_scores(
    left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True
) -> Tensor:
    """`||left @ right|| / (||left|| ||right||)` in the Frobenius norm, from the factors.

    Args:
        left: the matrices of the earlier heads, which write.
        right: the matrices of the later heads, which read.
        broadcast_dims: whether to score every matrix of `left` with every one of `right`. False
            scores them in pairs, with leading axes broadcast as usual.

    Shapes: `[*leading of left, *leading of right]`, or their broadcast.

    Units: between 0 and 1; nan where one of the matrices is zero.

    Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

    Raises:
        ShapeError: the width that `left` writes is not the one that `right` reads.

    Example:
        >>> ov = FactoredMatrix(torch.eye(8)[:, :2], torch.eye(8)[:2])
        >>> composition_scores(ov, ov)
        tensor(0.7071)
    """
    if left.rdim != right.ldim:
        raise ShapeError(
            f"left {tuple(left.shape)} writes {left.rdim} dimensions, and right "
            f"{tuple(right.shape)} reads {right.ldim}. Pass matrices whose inner sizes agree."
        )
    writes, reads = _writing(left), _reading(right)
    whole = torch.linalg.matrix_norm(writes), torch.linalg.matrix_norm(reads)
    if broadcast_dims:
        return _all_pairs(writes, reads) / _outer(*whole)
    return torch.linalg.matrix_norm(writes @ reads) / (whole[0] * whole[1])


def scores_between_layers(writers: FactoredMatrix, readers: FactoredMatrix) -> Tensor:
    """Scores of the heads of every layer with those of later layers, one pair at a time.

    Args:
        writers: `[layer, head, m, m]`; lazy stacks are read layer by layer.
        readers: the same.

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
    """The product up to a rotation of its rows, which changes no score. Shapes: `[..., k, m]`."""
    return torch.linalg.qr(upcast(product.A))[1] @ upcast(product.B)


def _reading(product: FactoredMatrix) -> Tensor:
    """The product up to a rotation of its columns. Shapes: `[..., m, k]`."""
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
