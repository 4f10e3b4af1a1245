"""Singular vectors of the weights of heads and neurons, read as tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError, WeightError
from lensbridge.hooked_model import HookedModel
from lensbridge.tensors.factored.factors import SVD, upcast
from lensbridge.viz import Bars, Drawn
from lensbridge.weights.mlp_views import MLPView, MoEView
from lensbridge.weights.views import BlockView

VectorType: TypeAlias = Literal["OV", "w_in", "w_gate", "w_out"]
"""Which weight is decomposed."""

Expert: TypeAlias = "int | Literal['shared'] | None"
"""An expert of a mixture, or the MLP that all tokens share."""

_WEIGHTS: dict[str, Callable[[MLPView | MoEView], Tensor]] = {
    "w_in": attrgetter("W_in"),
    "w_gate": attrgetter("W_gate"),
    "w_out": attrgetter("W_out"),
}


@dataclass(frozen=True)
class SVDInterpreter:
    """The singular vectors of a model's weights, on the side of the residual stream.

    For a head's OV these are the directions that it writes; for `w_in` and `w_gate` those that the
    neurons read, with the gain of the norm before them; for `w_out` those that the neurons write.

    Args:
        model: any model; with a mixture of experts pass `expert_index`.

    Source: Millidge and Black 2022, The Singular Value Decompositions of Transformer Weight
        Matrices are Highly Interpretable.
    """

    model: HookedModel

    @torch.no_grad()
    def get_singular_vectors(
        self,
        vector_type: VectorType,
        layer_index: int,
        num_vectors: int = 10,
        head_index: int | None = None,
        expert_index: Expert = None,
    ) -> Tensor:
        """The dot product of each token's column of `W_U` with the first singular vectors.

        Args:
            vector_type: "OV", "w_in", "w_gate" or "w_out".
            layer_index: the layer.
            num_vectors: how many, those with the largest singular values.
            head_index: which head, for "OV".
            expert_index: which expert of a mixture, or "shared" for the shared one.

        Shapes: `[d_vocab, 1, num_vectors]`.

        Units: dot products. The sign of a singular vector means nothing; `singular_readout` shows
            both ends.

        Raises:
            InputError: a layer, head, expert or number of vectors that is out of range.
            WeightError: this layer has no such weight.
        """
        found = self.decompose(vector_type, layer_index, head_index, expert_index)
        _require_rank(found, num_vectors)
        unembed = upcast(self.model.W_U).to(found.V)
        if len(unembed) != len(found.V):
            raise WeightError(
                f"W_U reads {len(unembed)} numbers from a layer of the head, not the stream of "
                f"{len(found.V)}, so singular vectors cannot be read as tokens. Use "
                "decompose(...)."
            )
        return (unembed.mT @ found.V[:, :num_vectors]).unsqueeze(1)

    @torch.no_grad()
    def decompose(
        self,
        vector_type: VectorType,
        layer_index: int,
        head_index: int | None = None,
        expert_index: Expert = None,
    ) -> SVD:
        """The decomposition `U`, `S`, `V`, with `V` `[d_model, k]`.

        The arguments are those of `get_singular_vectors`.
        """
        block = self._block(layer_index)
        if vector_type == "OV":
            heads = block.attn.OV
            return heads[_one_of("head", head_index, len(heads))].svd()
        if vector_type not in _WEIGHTS:
            raise InputError(
                f"vector_type is 'OV', 'w_in', 'w_gate' or 'w_out', not {vector_type!r}."
            )
        neurons = _neurons(block, vector_type, expert_index)
        U, S, Vh = torch.linalg.svd(upcast(neurons), full_matrices=False)
        return SVD(U, S, Vh.mT)

    def _block(self, layer_index: int) -> BlockView:
        count = len(self.model.blocks)
        if not 0 <= layer_index < count:
            raise InputError(f"layer_index is 0 to {count - 1}, not {layer_index}.")
        return self.model.blocks[layer_index]


@dataclass(frozen=True, repr=False)
class SingularDirection(Drawn):
    """One singular vector, read as tokens. Its sign is such that the strongest token is in `top`.

    Args:
        value: its singular value.
        share: its share of the matrix's squared norm.
        direction: `[d_model]`, of length 1.
        top: the tokens with the largest dot products, and these.
        bottom: the tokens with the smallest.
    """

    value: float
    share: float
    direction: Tensor
    top: list[tuple[str, float]]
    bottom: list[tuple[str, float]]

    def plot(self, *, title: str = "") -> Bars:
        """Bars of the tokens at both ends."""
        ends = {**dict(self.top), **dict(reversed(self.bottom))}
        title = title or f"Singular value {self.value:.3g}, {self.share:.1%} of the squared norm"
        return Bars(title, list(ends.values()), list(ends), "dot product")

    def __repr__(self) -> str:
        first = ", ".join(repr(token) for token, _ in self.top[:3])
        return f"SingularDirection({self.value:.3g}, {self.share:.1%} of the norm: {first}, ...)"

    def __str__(self) -> str:
        ends = ("+", self.top), ("-", self.bottom)
        shown = (f"  {sign} " + ", ".join(repr(t) for t, _ in tokens) for sign, tokens in ends)
        return "\n".join([f"{self.value:.3g} ({self.share:.1%})", *shown])


@torch.no_grad()
def singular_readout(
    model: HookedModel,
    vector_type: VectorType,
    layer_index: int,
    head_index: int | None = None,
    expert_index: Expert = None,
    num_vectors: int = 10,
    k: int = 8,
) -> list[SingularDirection]:
    """The tokens with the largest and smallest logits along the first singular vectors.

    Vectors are read as by the model's head: centred if the final norm centres, times its gain,
    times `W_U`. Only the division by the norm is left out.

    Args:
        model: any model whose head is a norm and a matrix.
        vector_type: this and the next three as in `SVDInterpreter.get_singular_vectors`.
        layer_index: the layer.
        head_index: for "OV".
        expert_index: for a mixture of experts.
        num_vectors: how many, those with the largest singular values.
        k: tokens at each end.

    Raises:
        WeightError: the head is not linear after its norm, or the weight does not exist.
    """
    if model.native.head_hidden is not None:
        raise WeightError(
            "This model's head has another layer before W_U, so a direction of the stream has no "
            "logits. SVDInterpreter(model).decompose(...) gives the vectors."
        )
    found = SVDInterpreter(model).decompose(vector_type, layer_index, head_index, expert_index)
    _require_rank(found, num_vectors)
    rows = found.V[:, :num_vectors].mT
    norm = model.native.ln_final
    read = rows if norm is None else norm.linear(rows, torch.ones_like(rows[:, :1])).to(rows)
    scores = read @ upcast(model.W_U).to(rows)
    signs = torch.sign(scores.gather(1, scores.abs().argmax(1, keepdim=True)))
    share = found.S.square() / found.S.square().sum()
    return [
        SingularDirection(
            value=float(found.S[i]),
            share=float(share[i]),
            direction=rows[i] * signs[i],
            top=_ends(model, scores[i] * signs[i], k),
            bottom=_ends(model, scores[i] * -signs[i], k, -1.0),
        )
        for i in range(num_vectors)
    ]


def _ends(model: HookedModel, scores: Tensor, k: int, sign: float = 1.0) -> list[tuple[str, float]]:
    values, ids = scores.topk(min(k, len(scores)))
    return [(_text(model, int(t)), sign * float(v)) for v, t in zip(values, ids, strict=True)]


def _text(model: HookedModel, token: int) -> str:
    return str(token) if model.tokenizer is None else model.to_single_str_token(token)


def _neurons(block: BlockView, vector_type: VectorType, expert: Expert) -> Tensor:
    """One row for each neuron. Shapes: `[d_mlp, d_model]`."""
    mlp, read = block.mlp, _WEIGHTS[vector_type]
    if isinstance(mlp, MoEView):
        weight = _of_expert(mlp, read, expert)
    elif expert is not None:
        raise InputError(
            f"expert_index={expert!r}, and the MLP of this layer is not a mixture of experts."
        )
    else:
        weight = read(mlp)
    if vector_type == "w_out":
        return weight
    norm = None if block.part.residual == "post_norm" else block.part.ln2
    return weight.mT if norm is None else weight.mT * norm.fixed_gain().to(weight)


def _of_expert(mlp: MoEView, read: Callable[[MLPView | MoEView], Tensor], expert: Expert) -> Tensor:
    if expert == "shared":
        return read(mlp.shared)
    weights = read(mlp)
    return weights[_one_of("expert", expert, len(weights))]


def _one_of(what: str, index: int | None, count: int) -> int:
    if index is None or not 0 <= index < count:
        raise InputError(
            f"{what}_index is one of the {count} {what}s, 0 to {count - 1}, not {index}."
        )
    return index


def _require_rank(found: SVD, num_vectors: int) -> None:
    rank = found.S.shape[-1]
    if not 0 < num_vectors <= rank:
        raise InputError(
            f"num_vectors is at most {rank}, the number of singular vectors, not {num_vectors}."
        )
