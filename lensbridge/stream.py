"""What an `ActivationCache` says about the residual stream: its terms, its heads, its neurons.

Every number is one term of a sum that is exact: post-norms, multipliers, parallel branches, mixers
and cross-attention are followed as the model computes them (`decomposition.py`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.decomposition import Decomposition, Target
from lensbridge.errors import AbsentPointError, InputError
from lensbridge.ledger import Kind, Term
from lensbridge.parts import MLPPart, StackPart
from lensbridge.passages import Passage, Route
from lensbridge.slices import PosSlice, taken
from lensbridge.vocabulary import Vocabulary

if TYPE_CHECKING:
    from lensbridge.model import LensModel

Mode: TypeAlias = Literal["all", "mlp", "attn"]
Stacked: TypeAlias = "Tensor | tuple[Tensor, list[str]]"

_MODES: dict[Mode, frozenset[Kind]] = {
    "mlp": frozenset({"mlp"}),
    "attn": frozenset({"attn", "cross", "mixer"}),
}
_HEAD = {"attn": "H", "cross": "C"}


class StreamMethods:
    """The methods of a cache that take the residual stream apart.

    They share arguments. `layer`: the terms of what that layer reads, so of the layers before it;
    None or -1 for what stands behind the last. `mlp_input`: of what that layer's MLP reads.
    `apply_ln`: through the norm that reads it, with the divisor of this run and with its gain; its
    bias belongs to no term. `pos_slice`: an int takes the position axis away. `return_labels`: also
    a list of what the rows are. `check`: raise unless the terms sum to the stream. `stack`: a prefix
    other than the main stack's, as "encoder".
    """

    model: "LensModel | None"
    vocabulary: Vocabulary
    _tensors: dict[str, Tensor]
    has_batch_dim: bool
    __getitem__: Callable[..., Tensor]
    _put: Callable[[str, Tensor], None]

    # --- accumulated -------------------------------------------------------------------------

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

        With `apply_ln` and as many layers as there are, each row goes through the final norm with
        its own statistics, gain and bias, so that `@ W_U + b_U` is the logit lens and the last row
        gives the model's logits. For an earlier layer it is as in `apply_ln_to_stack`.

        Shapes: `[row, batch, pos, d_model]`; labels `0_pre`, `0_mid`, ..., `final_post`.

        Raises:
            InputError: there is no such layer.
            NotCachedError: the run did not keep the stream.
        """
        part = self._stack(stack)
        target = self._target(part, layer, mlp_input)
        rows = list(self._grown(part, target, incl_mid))
        letters = part.residual_axes.split()
        axis = letters.index("p") - len(letters)
        streams = torch.stack([taken(self[name], pos_slice, axis) for _, name in rows])
        if apply_ln:
            final = target.point == rows[-1][1] and rows[-1][0] == "final_post"
            streams = self._normed(streams, part, target, pos_slice, None, recompute=final)
        return (streams, [label for label, _ in rows]) if return_labels else streams

    def _grown(self, part: StackPart, target: Target, incl_mid: bool) -> Iterable[tuple[str, str]]:
        for i in range(len(part.blocks)):
            at = f"{part.prefix}.{i}."
            yield f"{i}_pre", f"{at}hook_resid_pre"
            if target.point == f"{at}hook_resid_pre":
                return
            for mid in ("hook_resid_mid", "hook_resid_mid_cross"):
                there = f"{at}{mid}" in self.vocabulary.index
                if there and (incl_mid or target.point == f"{at}{mid}"):
                    yield f"{i}_{mid.removeprefix('hook_resid_')}", f"{at}{mid}"
                if target.point == f"{at}{mid}":
                    return
        yield "final_post", target.point

    # --- terms -------------------------------------------------------------------------------

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

        In post-norm models every term is what is left of it behind the norms in between, and those
        norms' biases are terms of their own. What the embeddings' points leave open (token types,
        computed positions) is `embed_rest`.

        Args:
            mode: "attn" (mixers and cross-attention too) or "mlp" for those terms alone.
            incl_embeds: whether the embeddings' terms are in it.

        Shapes: `[term, batch, pos, d_model]`; labels `embed`, `pos_embed`, `0_attn_out`, ...

        Raises:
            InputError: an unknown mode, or `check` on terms that are not all of them.
            LensbridgeError: `check` failed.
        """
        if mode not in ("all", *_MODES):
            raise InputError(f"mode is 'all', 'attn' or 'mlp', not {mode!r}.")
        whole = mode == "all" and incl_embeds
        if check and not whole:
            raise InputError("check needs every term: mode='all' and incl_embeds=True.")
        taking = self._decomposition(layer, mlp_input, pos_slice, apply_ln, None, stack)
        kept = [
            (term, route)
            for term, route in taking.terms
            if (incl_embeds if term.kind == "embed" else mode == "all" or term.kind in _MODES[mode])
        ]
        terms = _stacked([taking.whole(*one) for one in kept], taking)
        if check:
            taking.check(terms)
        return _labelled(terms, [term.label for term, _ in kept], return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: PosSlice = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
        check: bool = False,
        stack: str | None = None,
    ) -> Stacked:
        """The stream as the sum of what every head and every neuron adds, down to the biases.

        Heads first, then neurons (or MLPs), the embeddings, all other terms (mixers, mixtures), and
        one row `bias` for every bias. A mixture of experts is one term.

        Args:
            expand_neurons: neurons rather than whole MLPs.
            project_output_onto: `[d_model]` or `[d_model, direction]` to read the terms along; no
                `[neuron, d_model]` product is formed then.

        Shapes: `[term, batch, pos, d_model]`; with a projection `[term, batch, pos, direction]`, or
            without the last axis for one direction. Labels `L0H0`, `L0N0`, `embed`, ..., `bias`.

        Raises:
            NotCachedError: heads or neurons need a point that was not kept.
            LensbridgeError: `check` failed.
        """
        directions = _directions(project_output_onto)
        taking = self._decomposition(layer, mlp_input, pos_slice, apply_ln, directions, stack)
        groups = _Groups(taking, expand_neurons)
        terms = torch.cat(groups.tensors)
        if check:
            taking.check(terms)
        return _labelled(_squeezed(terms, project_output_onto), groups.labels, return_labels)

    # --- heads -------------------------------------------------------------------------------

    def compute_head_results(self) -> None:
        """Put `hook_result` of every attention layer of the main stack into the cache."""
        taking = self._decomposition(None, False, None, False, None, None)
        for term, _ in taking.terms:
            if term.kind == "attn":
                name = term.point.replace("hook_attn_out", "attn.hook_result")
                if name not in self._tensors:
                    self._put(name, taking.heads(term, Route()).movedim(0, -2).contiguous())

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: PosSlice = None,
        apply_ln: bool = False,
        project_output_onto: Tensor | None = None,
        stack: str | None = None,
    ) -> Stacked:
        """What every attention head before `layer` adds to the stream that it reads.

        Args:
            incl_remainder: a last row with the rest of the stream.
            project_output_onto: as in `get_full_resid_decomposition`.

        Shapes: `[head of every layer, batch, pos, d_model]`; labels `L0H0`, ... Layers without
            attention have no rows.
        """
        directions = _directions(project_output_onto)
        taking = self._decomposition(layer, False, pos_slice, apply_ln, directions, stack)
        heads = [
            (term, taking.heads(term, route)) for term, route in taking.terms if term.kind == "attn"
        ]
        labels = [f"L{term.layer}H{h}" for term, rows in heads for h in range(len(rows))]
        return _with_remainder(
            taking,
            [rows for _, rows in heads],
            labels,
            incl_remainder,
            return_labels,
            project_output_onto,
        )

    # --- neurons -----------------------------------------------------------------------------

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: PosSlice = None,
        pos_slice: PosSlice = None,
        project_output_onto: Tensor | None = None,
        stack: str | None = None,
    ) -> Tensor:
        """What each neuron of one layer adds to the stream there.

        Shapes: `[batch, pos, neuron, d_model]`; an int for the neurons takes that axis away. With a
            projection as in `get_full_resid_decomposition`.
        """
        part = self._stack(stack)
        layer = layer + len(part.blocks) if layer < 0 else layer
        directions = _directions(project_output_onto)
        taking = self._decomposition(layer + 1, False, pos_slice, False, directions, stack)
        found = [t for t, _ in taking.terms if t.kind == "mlp" and t.layer == layer]
        if not found:
            raise AbsentPointError(f"Layer {layer} has no MLP that is described.")
        only = [neuron_slice] if isinstance(neuron_slice, int) else neuron_slice
        results = taking.neurons(found[0], Route(), only).movedim(0, -2)
        results = results.squeeze(-2) if isinstance(neuron_slice, int) else results
        return _squeezed(results, project_output_onto)

    def stack_neuron_results(
        self,
        layer: int | None = -1,
        pos_slice: PosSlice = None,
        neuron_slice: PosSlice = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Tensor | None = None,
        mlp_input: bool = False,
        stack: str | None = None,
    ) -> Stacked:
        """What every neuron before `layer` adds to the stream that it reads.

        Args:
            neuron_slice: the same neurons of every layer.
            incl_remainder: a last row with the rest of the stream.
            project_output_onto: as in `get_full_resid_decomposition`.

        Shapes: `[neuron of every layer, batch, pos, d_model]`; labels `L0N0`, ...
        """
        directions = _directions(project_output_onto)
        taking = self._decomposition(layer, mlp_input, pos_slice, apply_ln, directions, stack)
        only = [neuron_slice] if isinstance(neuron_slice, int) else neuron_slice
        rows, labels = [], []
        for term, route in taking.terms:
            if term.kind == "mlp":
                rows.append(taking.neurons(term, route, only))
                labels += [f"L{term.layer}N{n}" for n in _chosen(taking, term, only)]
        return _with_remainder(
            taking, rows, labels, incl_remainder, return_labels, project_output_onto
        )

    # --- other stacks ------------------------------------------------------------------------

    def stack_activation(
        self,
        activation_name: str,
        layer: int | None = -1,
        sublayer_type: str | None = None,
        stack: str | None = None,
    ) -> Tensor:
        """One kind of activation of every layer before `layer` that has it.

        Shapes: `[layer, ...]`

        Raises:
            AbsentPointError: no layer has it.
            InputError: layers have it in different shapes.
        """
        part = self._stack(stack)
        count = len(part.blocks)
        layer = count if layer is None or layer == -1 else layer
        found = [
            self[name]
            for i in range(layer)
            if (name := self._of_layer(activation_name, i, sublayer_type, part)) is not None
        ]
        if not found:  # says why
            self.vocabulary.canonical((activation_name, 0, sublayer_type or ""))
        shapes = {tuple(one.shape) for one in found}
        if len(shapes) > 1:
            raise InputError(f"{activation_name} has several shapes: {sorted(shapes)}.")
        return torch.stack(found)

    def _of_layer(self, name: str, layer: int, kind: str | None, part: StackPart) -> str | None:
        asked = (name, layer) if kind is None else (name, layer, kind)
        try:
            full = self.vocabulary.canonical(asked)
        except AbsentPointError:
            return None
        main = next(iter(self.vocabulary.depths))
        return full.replace(f"{main}.", f"{part.prefix}.", 1)

    # --- norms and logits --------------------------------------------------------------------

    def apply_ln_to_stack(
        self,
        residual_stack: Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: PosSlice = None,
        batch_slice: PosSlice = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
        stack: str | None = None,
    ) -> Tensor:
        """Each row as a summand of what a norm read: centred (LayerNorm), divided, times the gain.

        The divisor is that of this run, so rows that sum to the stream give rows that sum to the
        norm's output less its bias. Where the part reads the stream without a norm, rows stay.

        Args:
            residual_stack: rows whose positions were sliced by `pos_slice` already.
            layer: whose norm; None or -1: the final norm.
            batch_slice: which examples to take; rows still have all of them.
            has_batch_dim: whether rows have a batch axis.
            recompute_ln: instead, the norm itself on each row: own statistics, gain and bias.

        Shapes: `[row, batch, pos, d_model]` -> the same.
        """
        part = self._stack(stack)
        target = self._target(part, layer, mlp_input)
        if batch_slice is not None and has_batch_dim and self.has_batch_dim:
            residual_stack = taken(residual_stack, batch_slice, 1 - residual_stack.ndim)
        return self._normed(residual_stack, part, target, pos_slice, batch_slice, recompute_ln)

    def _normed(
        self,
        rows: Tensor,
        part: StackPart,
        target: Target,
        pos_slice: PosSlice,
        batch_slice: PosSlice,
        recompute: bool,
    ) -> Tensor:
        norm = target.norm
        if norm is None:
            return rows
        if recompute:
            with torch.set_grad_enabled(rows.requires_grad):
                return torch.stack([norm.affine(norm.normalize(row)) for row in rows])
        divisor = self[target.scale]
        batched = self.has_batch_dim and batch_slice is not None
        divisor = taken(divisor, batch_slice, -divisor.ndim) if batched else divisor
        return Passage.of(norm, taken(divisor, pos_slice, -2)).forward(rows)

    def logit_attrs(
        self,
        residual_stack: Tensor,
        tokens: "str | int | Tensor | Sequence[int]",
        incorrect_tokens: "str | int | Tensor | Sequence[int] | None" = None,
        pos_slice: PosSlice = None,
        batch_slice: PosSlice = None,
        has_batch_dim: bool = True,
    ) -> Tensor:
        """What each row of a stack adds to a token's logit, or to the difference of two.

        The final norm is applied with this run's divisor and its gain, and the head's multipliers
        count. Over rows that sum to the stream the attributions sum to the logit less what no row
        can claim: the final norm's bias and the head's. A soft-cap on the logits comes after.

        Args:
            residual_stack: as in `apply_ln_to_stack`.
            tokens: a token for all; one for each example `[batch]`; one for each position
                `[batch, pos]`.
            incorrect_tokens: as many, to subtract.

        Shapes: `[row, batch, pos, d_model]` -> `[row, batch, pos]`.

        Raises:
            InputError: numbers of tokens that do not fit, or a head that is not linear.
        """
        model = self._model()
        _require_linear_head(model)
        directions = model.tokens_to_residual_directions(tokens).detach()
        if incorrect_tokens is not None:
            wrong = model.tokens_to_residual_directions(incorrect_tokens).detach()
            if wrong.shape != directions.shape:
                raise InputError(
                    f"tokens {list(directions.shape[:-1])} and incorrect_tokens "
                    f"{list(wrong.shape[:-1])} are not as many; give one to subtract for each."
                )
            directions = directions - wrong
        native = model.native
        directions = directions * (native.head_scale * native.logit_scale)
        rows = self.apply_ln_to_stack(
            residual_stack, None, False, pos_slice, batch_slice, has_batch_dim
        )
        one_each = rows.ndim == 4 and directions.ndim == 2 and isinstance(batch_slice, int) is False
        if one_each and has_batch_dim and directions.shape[0] == rows.shape[1]:
            directions = directions.unsqueeze(-2)
        return (rows * directions.to(rows)).sum(-1)

    def logit_lens(self, **options: object) -> object:
        """`lensbridge.analysis.logit_lens` on this cache."""
        from lensbridge.analysis import logit_lens

        return logit_lens(self._model(), cache=self, **options)  # type: ignore[arg-type]

    # --- how it is done ----------------------------------------------------------------------

    def _model(self) -> "LensModel":
        if self.model is None:
            raise InputError(
                "This cache does not know its model, whose weights this needs. Pass it: "
                "ActivationCache.load(path, model=...)."
            )
        return self.model

    def _stack(self, prefix: str | None) -> StackPart:
        native = self._model().native
        if prefix is None:
            return native.main
        found = {stack.prefix: stack for stack in native.stacks}
        if prefix not in found:
            raise InputError(f"There is no stack {prefix!r}; there are {', '.join(found)}.")
        return found[prefix]

    def _target(self, part: StackPart, layer: int | None, mlp_input: bool) -> Target:
        front = self._model().native.front_of(part)
        return Target.of(part, front, self.vocabulary, layer, mlp_input)

    def _decomposition(
        self,
        layer: int | None,
        mlp_input: bool,
        pos_slice: PosSlice,
        apply_ln: bool,
        directions: Tensor | None,
        stack: str | None,
    ) -> Decomposition:
        part = self._stack(stack)
        front = self._model().native.front_of(part)
        target = self._target(part, layer, mlp_input)
        values: Mapping[str, Tensor] = self  # type: ignore[assignment]
        return Decomposition(
            values, self.vocabulary, part, front, target, pos_slice, apply_ln, directions
        )


class _Groups:
    """The rows of a full decomposition, in the order that the field's notebooks expect."""

    def __init__(self, taking: Decomposition, expand_neurons: bool) -> None:
        self.tensors: list[Tensor] = []
        self.labels: list[str] = []
        bias = torch.zeros_like(taking.total)
        plain: list[tuple[Term, Route]] = []
        mlps: list[tuple[Term, Route]] = []
        for term, route in taking.terms:
            if term.kind in _HEAD:
                heads = taking.heads(term, route)
                names = [f"L{term.layer}{_HEAD[term.kind]}{h}" for h in range(len(heads))]
                self._add(heads, names)
                bias = bias + taking.bias(term, route)
            elif term.kind == "bias":
                bias = bias + taking.whole(term, route)
            else:
                (mlps if term.kind == "mlp" else plain).append((term, route))
        for term, route in mlps:
            if expand_neurons and isinstance(term.part and term.part.mlp, MLPPart):
                neurons = taking.neurons(term, route)
                self._add(neurons, [f"L{term.layer}N{n}" for n in range(len(neurons))])
                bias = bias + taking.bias(term, route)
            else:
                self._add(taking.whole(term, route)[None], [term.label])
        for term, route in plain:
            self._add(taking.whole(term, route)[None], [term.label])
        self._add(bias[None], ["bias"])

    def _add(self, rows: Tensor, labels: list[str]) -> None:
        self.tensors.append(rows)
        self.labels += labels


def _stacked(rows: list[Tensor], taking: Decomposition) -> Tensor:
    return torch.stack(rows) if rows else taking.total.new_zeros(0, *taking.total.shape)


def _labelled(rows: Tensor, labels: list[str], wanted: bool) -> Stacked:
    return (rows, labels) if wanted else rows


def _with_remainder(
    taking: Decomposition,
    groups: list[Tensor],
    labels: list[str],
    incl_remainder: bool,
    return_labels: bool,
    onto: Tensor | None,
) -> Stacked:
    total = taking.total
    rows = torch.cat(groups) if groups else total.new_zeros(0, *total.shape)
    if incl_remainder:
        rows = torch.cat([rows, (total - rows.sum(0))[None]])
        labels = [*labels, "remainder"]
    return _labelled(_squeezed(rows, onto), labels, return_labels)


def _chosen(taking: Decomposition, term: Term, only: PosSlice) -> list[int]:
    width = taking.activations(term)[1].shape[-1]
    chosen: list[int] = taken(torch.arange(width), only, -1).tolist()
    return chosen


def _directions(onto: Tensor | None) -> Tensor | None:
    if onto is None:
        return None
    if onto.ndim not in (1, 2):
        raise InputError(
            f"project_output_onto is [d_model] or [d_model, direction], not {list(onto.shape)}."
        )
    return onto.detach().reshape(onto.shape[0], -1)


def _squeezed(rows: Tensor, onto: Tensor | None) -> Tensor:
    return rows.squeeze(-1) if onto is not None and onto.ndim == 1 else rows


def _require_linear_head(model: "LensModel") -> None:
    if model.native.head_hidden is not None:
        raise InputError(
            "The head of this model reads the stream through a non-linear transform, so no term "
            "has a share of a logit. Read head.hook_hidden, or attribute up to the last layer with "
            "get_full_resid_decomposition."
        )
