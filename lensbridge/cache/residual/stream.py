"""Methods of `ActivationCache` for the residual stream: how it grows, and what is added to it.

The terms sum exactly to the stream: post-norms, multipliers, parallel branches, mixers and
cross-attention are followed as the model computes them (`decomposition.py`). Heads and neurons are
in `shares.py`, logits in `attribution.py`.
"""

from collections.abc import Iterable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache.residual.decomposition import Decomposition
from lensbridge.cache.residual.reader import Stacked, StreamReader
from lensbridge.cache.residual.target import Target
from lensbridge.cache.residual.terms import Kind, Term
from lensbridge.errors import InputError
from lensbridge.native.parts import StackPart
from lensbridge.points.names import expand_short, layer_of
from lensbridge.tensors.slices import PosSlice, RowColumns, taken

Mode: TypeAlias = Literal["all", "mlp", "attn"]
"""Which branches have rows: all, only MLPs, or only attention."""

_MODES: dict[Mode, frozenset[Kind]] = {
    "mlp": frozenset({"mlp"}),
    "attn": frozenset({"attn", "cross", "mixer"}),
}


class StreamMethods(StreamReader):
    """The stream as it grows, and its terms."""

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        mlp_input: bool = False,
        return_labels: bool = False,
        stack: str | None = None,
    ) -> Stacked:
        """The stream as it grows: what each layer up to `layer` reads.

        Args:
            layer: the last layer whose input is a row; None or -1: up to the output of the last.
            incl_mid: whether the inputs of the MLPs are rows too.
            apply_ln: whether rows go through a norm. If they end after the last layer, it is the
                final norm, with each row's own statistics, gain and bias. Then `@ W_U + b_U` is the
                logit lens, and the last row gives the model's logits, up to multipliers and
                soft-caps of the head (`logit_lens` applies these). For an earlier layer it is as in
                `apply_ln_to_stack`.
            pos_slice: which positions of each text; an int removes the axis.
            mlp_input: whether to end with the input of the MLP of `layer`.
            return_labels: whether to return labels of the rows too: `0_pre`, ..., `final_post`.
            stack: the prefix of another stack than the main one, such as "encoder".

        Shapes: `[row, batch, pos, d_model]`.

        Raises:
            InputError: there is no such layer.
            NotCachedError: the run did not keep the stream.
        """
        part = self._stack(stack)
        target = self._target(part, layer, mlp_input)
        labels, names = zip(*self._grown(part, target, incl_mid), strict=True)
        self.require(names)
        columns = self._columns(pos_slice, stack)
        rows = self._streams(part, names, columns)
        if apply_ln:
            rows = self._normed(rows, target, columns, None, labels[-1] == "final_post")
        return (rows, list(labels)) if return_labels else rows

    def _streams(
        self, part: StackPart, names: Iterable[str], columns: PosSlice | RowColumns
    ) -> Tensor:
        """The stream at some points of a stack.

        Shapes: `[name, batch, pos, d_model]`.
        """
        letters = part.residual_axes.split()
        axis = letters.index("p") - len(letters)
        return torch.stack([taken(self._together[name], columns, axis) for name in names])

    def _grown(self, part: StackPart, target: Target, incl_mid: bool) -> Iterable[tuple[str, str]]:
        """The points of the stream up to the target, and before each its label."""
        for i in range(len(part.blocks)):
            at = f"{part.prefix}.{i}."
            for end in ("pre", "mid", "mid_cross"):
                name = f"{at}hook_resid_{end}"
                wanted = end == "pre" or incl_mid or target.point == name
                if wanted and name in self.vocabulary.index:
                    yield f"{i}_{end}", name
                if target.point == name:
                    return
        yield "final_post", target.point

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Mode = "all",
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
        check: bool = False,
        stack: str | None = None,
    ) -> Stacked:
        """The stream as the sum of what embeddings, attention, MLPs and mixers add.

        In post-norm models every term is followed through the later norms, and the biases of these
        norms are separate terms. What the embeddings' points do not include (token types, computed
        positions) is `embed_rest`.

        Args:
            layer: the sum is the input of this layer; None or -1: the output of the last.
            mlp_input: whether the sum is the input of that layer's MLP instead.
            mode: "attn" (with mixers and cross-attention) or "mlp" for only these terms.
            apply_ln: whether each goes through the norm that reads the sum (`apply_ln_to_stack`).
            pos_slice: which positions of each text; an int removes the axis.
            incl_embeds: whether to include the terms of the embeddings.
            return_labels: whether to return labels of the rows too: `embed`, `0_attn_out`, ...
            check: whether to raise if the terms do not sum to the stream of this run.
            stack: the prefix of another stack than the main one, such as "encoder".

        Shapes: `[term, batch, pos, d_model]`.

        Raises:
            InputError: an unknown mode, or `check` without all terms.
            LensbridgeError: `check` failed.
        """
        _require_mode(mode, incl_embeds, check)
        taking = self._decomposition(stack, layer, mlp_input, pos_slice, apply_ln)
        terms, labels = self._terms(taking, mode, incl_embeds, check)
        return (terms, labels) if return_labels else terms

    def _terms(
        self, taking: Decomposition, mode: Mode, incl_embeds: bool, check: bool
    ) -> tuple[Tensor, list[str]]:
        """The terms of the branches that a mode means, and their labels."""
        self.require(
            term.point for term, _ in taking.written if _is_in(mode, term) and term.is_point
        )
        found = taking.terms if incl_embeds else taking.written
        kept = [one for one in found if one[0].layer is None or _is_in(mode, one[0])]
        terms = taking.wholes(kept)
        if check:
            taking.check(terms)
        return terms, [term.label for term, _ in kept]

    def stack_activation(
        self,
        activation_name: str,
        layer: int | None = -1,
        sublayer_type: str | None = None,
        stack: str | None = None,
    ) -> Tensor:
        """One kind of activation, of every layer before `layer` that has it.

        Args:
            activation_name: a short name, such as "pattern".
            layer: the layer before which to end; None or -1: after the last.
            sublayer_type: the part that has the point, if the name is not enough: "ln1", "attn".
            stack: the prefix of another stack than the main one.

        Shapes: `[layer, ...]`.

        Raises:
            AbsentPointError: no layer has it.
            InputError: its shape differs between layers.
        """
        part = self._stack(stack)
        end = len(part.blocks) if layer is None or layer == -1 else layer
        _, _, point = expand_short(activation_name, 0, sublayer_type).partition(".0.")
        names = [f"{part.prefix}.{i}.{point}" for i in range(len(part.blocks))]
        wanted = self._there(names, end, activation_name)
        self.require(wanted)
        found = [self._together[name] for name in wanted]
        shapes = sorted({tuple(one.shape) for one in found})
        if len(shapes) != 1:
            raise InputError(
                f"{activation_name} cannot be stacked: in the {len(found)} layers before {end} "
                f"that have it, its shapes are {shapes}. Take them one by one."
            )
        return torch.stack(found)

    def _there(self, names: list[str], end: int, asked: str) -> list[str]:
        """Those of the points of all layers that the model has before a layer."""
        there = [name for name in names if name in self.vocabulary.index]
        if not there:
            self.vocabulary.canonical(names[0])  # says why
        wanted = [name for name in there if (layer_of(name) or 0) < end]
        if not wanted:
            raise InputError(
                f"No layer before {end} has {asked}; the first that has it is "
                f"{layer_of(there[0])}. Pass a later layer, or None for all."
            )
        return wanted


def _is_in(mode: Mode, term: Term) -> bool:
    return mode == "all" or term.kind in _MODES[mode]


def _require_mode(mode: Mode, incl_embeds: bool, check: bool) -> None:
    if mode not in ("all", *_MODES):
        raise InputError(f"mode must be 'all', 'attn' or 'mlp', not {mode!r}.")
    if check and not (mode == "all" and incl_embeds):
        raise InputError("check needs every term. Pass mode='all' and incl_embeds=True.")
