"""Methods of `ActivationCache` for the residual stream: how it grows, and what is added to it.

The terms sum exactly to the stream: post-norms, multipliers, parallel branches, mixers and
cross-attention are followed as the model computes them (`decomposition.py`). Heads and neurons are
in `shares.py`, logits in `attribution.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache.owner import CachedModel
from lensbridge.cache.residual.decomposition import Decomposition
from lensbridge.cache.residual.norm_map import NormMap
from lensbridge.cache.residual.one_device import OnOneDevice
from lensbridge.cache.residual.target import Target
from lensbridge.cache.residual.terms import Kind, Term
from lensbridge.errors import InputError
from lensbridge.inputs.positions import ColumnOwner, column_owner
from lensbridge.native.norm import Norm
from lensbridge.native.parts import StackPart
from lensbridge.points.names import expand_short, layer_of
from lensbridge.points.point_names import PointNames
from lensbridge.tensors.positions import padded, token_positions
from lensbridge.tensors.slices import PosSlice, RowColumns, taken

Mode: TypeAlias = Literal["all", "mlp", "attn"]
"""Which branches have rows: all, only MLPs, or only attention."""

Stacked: TypeAlias = "Tensor | tuple[Tensor, list[str]]"
"""Rows, or with `return_labels` rows and their labels."""

_MODES: dict[Mode, frozenset[Kind]] = {
    "mlp": frozenset({"mlp"}),
    "attn": frozenset({"attn", "cross", "mixer"}),
}


class StreamReader:
    """What the methods that decompose the stream need of a cache."""

    model: CachedModel | None
    vocabulary: PointNames
    has_batch_dim: bool
    tokens: Tensor | None
    attention_mask: Tensor | None
    decoder_attention_mask: Tensor | None
    processed: tuple[str, ...]
    require: Callable[[Iterable[str]], None]
    axes: Callable[..., str]
    __getitem__: Callable[..., Tensor]
    __iter__: Callable[..., Iterator[str]]

    def _model(self) -> CachedModel:
        if self.model is None:
            raise InputError(
                "This cache has no model, and this needs the model's weights. Pass it: "
                "ActivationCache.load(path, model=...)."
            )
        return self.model

    def _same_weights(self) -> None:
        """Require that the model's weights are those of the run.

        Raises:
            InputError: they were processed differently in the run.
        """
        model = self._model()
        now = model.processed_by
        if now != self.processed:
            raise InputError(
                "What heads and neurons add is computed with the weights of the run, and these "
                f"changed: processed by {', '.join(self.processed) or 'nothing'} then, by "
                f"{', '.join(now) or 'nothing'} now. Call this in the same "
                "`with model.processed(...)`, or run again."
            )

    def _columns(self, pos_slice: PosSlice, stack: str | None = None) -> PosSlice | RowColumns:
        """Positions, which count the tokens of each text, as columns of a stack's activations.

        A cache of chosen positions has other columns than its text; there positions are columns.
        """
        masks = (self.attention_mask, self.decoder_attention_mask)
        if pos_slice is None or all(mask is None for mask in masks):
            return token_positions(pos_slice, None)
        part = self._stack(stack)
        inside = (name for name in self if name.startswith(f"{part.prefix}."))
        for name in inside:
            letters = self.axes(name).split()
            if "p" in letters and not name.endswith(("cross_attn.hook_k", "cross_attn.hook_v")):
                size = self[name].shape[letters.index("p")]
                return token_positions(pos_slice, self.real_tokens(size, part.prefix))
        return token_positions(pos_slice, None)

    def real_tokens(self, size: int, stack: str | None = None) -> Tensor | None:
        """Which columns of an activation hold tokens; None if all do, or if it is not known.

        It is not known for caches of chosen positions.

        Args:
            size: how many columns the activation has.
            stack: the prefix of its stack; None: the main one.

        Shapes: `[batch, size]`
        """
        owner = "text" if self.model is None else self._owner(stack)
        decodes = owner == "decoder"
        mask = self.decoder_attention_mask if decodes else self.attention_mask
        tokens = None if decodes else self.tokens
        if owner == "tower" or mask is None or mask.shape[-1] < size:
            return None
        if size != (mask.shape[-1] if tokens is None else tokens.shape[-1]):
            return None
        return padded(mask if mask.ndim > 1 else mask[None], size)

    def _owner(self, stack: str | None) -> ColumnOwner:
        part = self._stack(stack)
        return column_owner(self._model().native, f"{part.prefix}.0.hook_resid_pre")

    def _stack(self, prefix: str | None) -> StackPart:
        native = self._model().native
        if prefix is None:
            return native.main
        found = {stack.prefix: stack for stack in native.stacks}
        if prefix not in found:
            raise InputError(f"There is no stack {prefix!r}. Pass one of: {', '.join(found)}.")
        return found[prefix]

    @property
    def _together(self) -> Mapping[str, Tensor]:
        """The activations on one device, so that they can be added and stacked."""
        values: Mapping[str, Tensor] = self  # type: ignore[assignment]
        return OnOneDevice.of(values)

    def _target(self, part: StackPart, layer: int | None, mlp_input: bool) -> Target:
        front = self._model().native.front_of(part)
        return Target.of(part, front, self.vocabulary, layer, mlp_input)

    def _decomposition(
        self,
        stack: str | None,
        layer: int | None,
        mlp_input: bool = False,
        pos_slice: PosSlice = None,
        apply_ln: bool = False,
        directions: Tensor | None = None,
    ) -> Decomposition:
        part = self._stack(stack)
        width = part.sizes.d_model
        if directions is not None and len(directions) != width:
            raise InputError(
                f"project_output_onto has {len(directions)} channels; the stream has {width}."
            )
        front = self._model().native.front_of(part)
        target = self._target(part, layer, mlp_input)
        columns = self._columns(pos_slice, stack)
        return Decomposition(
            self._together,
            self.vocabulary,
            part,
            front,
            target,
            columns,
            apply_ln,
            directions,
            from_ids=self.tokens is not None,
        )

    def _normed(
        self,
        rows: Tensor,
        target: Target,
        columns: PosSlice | RowColumns,
        batch_slice: PosSlice,
        recompute: bool,
    ) -> Tensor:
        """Rows after the norm that reads the target: as summands, or each normalized by itself."""
        norm = target.norm
        if norm is None:
            return rows
        if recompute:
            with torch.set_grad_enabled(rows.requires_grad):
                return torch.stack([norm.gated(norm.affine(norm.normalize(row))) for row in rows])
        divisor = taken(self._together[target.scale], columns, -2)
        if self.has_batch_dim and batch_slice is not None:
            divisor = taken(divisor, batch_slice, -divisor.ndim)
        _require_fit(rows, divisor, norm)
        return NormMap.of(norm, divisor).forward(rows)


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
            layer: the last layer whose input is a row; None or -1 goes on to the output of the last
                layer.
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
        letters = part.residual_axes.split()
        axis = letters.index("p") - len(letters)
        self.require(names)
        columns = self._columns(pos_slice, stack)
        rows = torch.stack([taken(self._together[name], columns, axis) for name in names])
        if apply_ln:
            rows = self._normed(rows, target, columns, None, labels[-1] == "final_post")
        return (rows, list(labels)) if return_labels else rows

    def _grown(self, part: StackPart, target: Target, incl_mid: bool) -> Iterable[tuple[str, str]]:
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
            layer: the sum is the input of this layer, so the terms are those of earlier layers;
                None or -1: the output of the last layer.
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
        self.require(
            term.point for term, _ in taking.written if _is_in(mode, term) and term.is_point
        )
        found = taking.terms if incl_embeds else taking.written
        kept = [one for one in found if one[0].layer is None or _is_in(mode, one[0])]
        terms = taking.wholes(kept)
        if check:
            taking.check(terms)
        return (terms, [term.label for term, _ in kept]) if return_labels else terms

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
        layer = len(part.blocks) if layer is None or layer == -1 else layer
        _, _, point = expand_short(activation_name, 0, sublayer_type).partition(".0.")
        names = [f"{part.prefix}.{i}.{point}" for i in range(len(part.blocks))]
        there = [name for name in names if name in self.vocabulary.index]
        if not there:
            self.vocabulary.canonical(names[0])  # says why
        wanted = [name for name in there if (layer_of(name) or 0) < layer]
        if not wanted:
            raise InputError(
                f"No layer before {layer} has {activation_name}; the first that has it is "
                f"{layer_of(there[0])}. Pass a later layer, or None for all."
            )
        self.require(wanted)
        found = [self._together[name] for name in wanted]
        shapes = sorted({tuple(one.shape) for one in found})
        if len(shapes) != 1:
            raise InputError(
                f"{activation_name} cannot be stacked: in the {len(found)} layers before {layer} "
                f"that have it, its shapes are {shapes}. Take them one by one."
            )
        return torch.stack(found)


def _require_fit(rows: Tensor, divisor: Tensor, norm: Norm) -> None:
    """Require the rows to be of the divisor's examples and positions: broadcasting would pass."""
    while divisor.ndim > rows.ndim and divisor.shape[0] == 1:
        divisor = divisor[0]
    there, of = rows.shape[:-1], divisor.shape[:-1]
    pairs = zip(reversed(there), reversed(of), strict=False)
    if len(of) > len(there) or any(its not in (1, size) for size, its in pairs):
        raise InputError(
            f"The rows have shape {list(there)}, and the run's examples and positions are "
            f"{list(of)} after the slices. Pass the pos_slice and has_batch_dim of the rows."
        )
    if rows.shape[-1] != norm.width:
        raise InputError(f"The rows have {rows.shape[-1]} channels; the stream has {norm.width}.")


def _is_in(mode: Mode, term: Term) -> bool:
    return mode == "all" or term.kind in _MODES[mode]


def _require_mode(mode: Mode, incl_embeds: bool, check: bool) -> None:
    if mode not in ("all", *_MODES):
        raise InputError(f"mode must be 'all', 'attn' or 'mlp', not {mode!r}.")
    if check and not (mode == "all" and incl_embeds):
        raise InputError("check needs every term. Pass mode='all' and incl_embeds=True.")
