"""Methods of `ActivationCache` for single heads and neurons: what each adds to the stream."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from lensbridge.cache.residual.decomposition import Decomposition
from lensbridge.cache.residual.norm_map import Route
from lensbridge.cache.residual.reader import Stacked, StreamReader
from lensbridge.cache.residual.terms import Term
from lensbridge.errors import AbsentPointError, InputError
from lensbridge.native.parts import MLPPart
from lensbridge.tensors.slices import PosSlice, taken

_HEAD = {"attn": "H", "cross": "C"}
"""The letter of a head in a label, as in `L0H3`; `C` for cross-attention."""


class ShareMethods(StreamReader):
    """What heads and neurons add to the stream.

    With `project_output_onto`, only their dot products with some directions are computed, and no
    whole vector is made for a head or a neuron.
    """

    _tensors: dict[str, Tensor]
    _put: Callable[[str, Tensor], None]

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
        """The stream as the sum of what every head, every neuron and all biases add.

        Heads come first, then neurons (or MLPs), the embeddings, all other terms (mixers), and one
        row `bias` for all biases. A mixture of experts is one term.

        Args:
            layer: the sum is the input of this layer; None or -1: the output of the last.
            mlp_input: whether the sum is the input of that layer's MLP instead.
            expand_neurons: whether to have rows for neurons rather than for MLPs.
            apply_ln: whether each goes through the norm that reads the sum (`apply_ln_to_stack`).
            pos_slice: which positions of each text; an int removes the axis.
            return_labels: whether to return labels of the rows too: `L0H0`, `L0N0`, ..., `bias`.
            project_output_onto: `[d_model]` or `[d_model, direction]`.
            check: whether to raise if the terms do not sum to the stream of this run.
            stack: the prefix of another stack than the main one, such as "encoder".

        Shapes: `[term, batch, pos, d_model]`; with a projection `[term, batch, pos, direction]`, or
            without the last axis for one direction.

        Raises:
            NotCachedError: a point that heads or neurons need was not kept.
            LensbridgeError: `check` failed.
        """
        self._same_weights()
        directions = _directions(project_output_onto)
        taking = self._decomposition(stack, layer, mlp_input, pos_slice, apply_ln, directions)
        shares = _everything(taking, expand_neurons)
        terms = shares.all
        if check:
            taking.check(terms)
        terms = _squeezed(terms, project_output_onto)
        return (terms, shares.labels) if return_labels else terms

    def compute_head_results(self) -> None:
        """Put `hook_result` of every attention layer of the main stack into the cache."""
        self._same_weights()
        taking = self._decomposition(None, None)
        for term, _ in _added_by(taking, "attn"):
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
            layer: as in `get_full_resid_decomposition`.
            return_labels: whether to return labels of the rows too: `L0H0`, ...
            incl_remainder: whether to add a last row with the rest of the stream.
            pos_slice: which positions of each text; an int removes the axis.
            apply_ln: whether each goes through the norm that reads the sum.
            project_output_onto: as in `get_full_resid_decomposition`.
            stack: the prefix of another stack than the main one.

        Shapes: `[head of every layer, batch, pos, d_model]`. Layers without attention have no rows.
        """
        self._same_weights()
        directions = _directions(project_output_onto)
        taking = self._decomposition(stack, layer, False, pos_slice, apply_ln, directions)
        shares = _Shares(taking)
        for term, route in _added_by(taking, "attn"):
            shares.add_heads(term, route)
        if incl_remainder:
            shares.add_remainder()
        rows = _squeezed(shares.all, project_output_onto)
        return (rows, shares.labels) if return_labels else rows

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: PosSlice = None,
        pos_slice: PosSlice = None,
        project_output_onto: Tensor | None = None,
        stack: str | None = None,
    ) -> Tensor:
        """What each neuron of one layer adds to the stream there.

        Args:
            layer: the layer; a negative one counts from the end.
            neuron_slice: which neurons; an int removes the axis.
            pos_slice: which positions of each text; an int removes the axis.
            project_output_onto: as in `get_full_resid_decomposition`.
            stack: the prefix of another stack than the main one.

        Shapes: `[batch, pos, neuron, d_model]`.

        Raises:
            AbsentPointError: that layer has no neurons that can be read one by one.
        """
        layer = layer + len(self._stack(stack).blocks) if layer < 0 else layer
        self._same_weights()
        directions = _directions(project_output_onto)
        taking = self._decomposition(stack, layer + 1, False, pos_slice, False, directions)
        found = [term for term, _ in _added_by(taking, "mlp") if term.layer == layer]
        if not found:
            raise AbsentPointError(f"Layer {layer} has no MLP that the description names.")
        results = taking.neurons(found[0], Route(), _as_list(neuron_slice)).movedim(0, -2)
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
            layer: as in `get_full_resid_decomposition`.
            pos_slice: which positions of each text; an int removes the axis.
            neuron_slice: which neurons, the same in every layer.
            return_labels: whether to return labels of the rows too: `L0N0`, ...
            incl_remainder: whether to add a last row with the rest of the stream.
            apply_ln: whether each goes through the norm that reads the sum.
            project_output_onto: as in `get_full_resid_decomposition`.
            mlp_input: whether to go on to the input of the MLP of `layer`.
            stack: the prefix of another stack than the main one.

        Shapes: `[neuron of every layer, batch, pos, d_model]`.

        Raises:
            AbsentPointError: a layer has no neurons that can be read one by one.
        """
        self._same_weights()
        directions = _directions(project_output_onto)
        taking = self._decomposition(stack, layer, mlp_input, pos_slice, apply_ln, directions)
        shares = _Shares(taking)
        for term, route in _added_by(taking, "mlp"):
            shares.add_neurons(term, route, _as_list(neuron_slice))
        if incl_remainder:
            shares.add_remainder()
        rows = _squeezed(shares.all, project_output_onto)
        return (rows, shares.labels) if return_labels else rows


def _added_by(taking: Decomposition, kind: Literal["attn", "mlp"]) -> Iterator[tuple[Term, Route]]:
    """What the attentions or the MLPs add.

    Raises:
        AbsentPointError: there are some of which it is not described how they add to the stream.
    """
    for term, route in taking.written:
        if term.kind == "block" and getattr(term.part, kind) is not None:
            raise AbsentPointError(
                f"How the branches of layer {term.layer} add to the stream is not described, so "
                "neither is what their heads and neurons add. What they compute is at "
                "attn.hook_result and mlp.hook_post."
            )
        if term.kind == kind:
            yield term, route


class _Shares:
    """Rows of a decomposition; their labels are made only when they are needed."""

    def __init__(self, taking: Decomposition) -> None:
        self.taking = taking
        self.rows: list[Tensor] = []
        self.named: list[tuple[str, Tensor | None]] = []

    def add_heads(self, term: Term, route: Route) -> None:
        """The heads of one layer."""
        heads = self.taking.heads(term, route)
        self.add(heads, f"L{term.layer}{_HEAD[term.kind]}", torch.arange(len(heads)))

    def add_neurons(self, term: Term, route: Route, chosen: PosSlice = None) -> None:
        """The neurons of one layer."""
        width = self.taking.activations(term)[1].shape[-1]
        neurons = self.taking.neurons(term, route, chosen)
        self.add(neurons, f"L{term.layer}N", taken(torch.arange(width), chosen, -1))

    def add_remainder(self) -> None:
        """The rest of the stream."""
        self.add((self.taking.total - sum(rows.sum(0) for rows in self.rows))[None], "remainder")

    def add(self, rows: Tensor, label: str, numbers: Tensor | None = None) -> None:
        """Add rows: one, or as many as there are numbers."""
        self.rows.append(rows)
        self.named.append((label, numbers))

    @property
    def labels(self) -> list[str]:
        """The labels of the rows."""
        labels: list[str] = []
        for label, numbers in self.named:
            labels += [label] if numbers is None else [f"{label}{n}" for n in numbers.tolist()]
        return labels

    @property
    def all(self) -> Tensor:
        """Every row."""
        return self.taking.stacked(self.rows)


def _everything(taking: Decomposition, expand_neurons: bool) -> _Shares:
    """Every row of a full decomposition, in the order that notebooks expect."""
    shares, bias = _Shares(taking), torch.zeros_like(taking.total)
    mlps: list[tuple[Term, Route]] = []
    others: list[tuple[Term, Route]] = []
    for term, route in taking.terms:
        if term.kind in _HEAD:
            shares.add_heads(term, route)
            bias = bias + taking.bias(term, route)
        elif term.kind == "bias":
            bias = bias + taking.whole(term, route)
        else:
            (mlps if term.kind == "mlp" else others).append((term, route))
    for term, route in mlps:
        mlp = None if term.part is None else term.part.mlp
        if expand_neurons and isinstance(mlp, MLPPart) and mlp.writes_neurons:
            shares.add_neurons(term, route)
            bias = bias + taking.bias(term, route)
        else:
            others.append((term, route))
    for term, route in sorted(others, key=lambda one: one[0].kind != "mlp"):
        shares.add(taking.whole(term, route)[None], term.label)
    shares.add(bias[None], "bias")
    return shares


def _as_list(chosen: PosSlice) -> PosSlice:
    return [chosen] if isinstance(chosen, int) else chosen


def _directions(onto: Tensor | None) -> Tensor | None:
    if onto is None:
        return None
    if onto.ndim not in (1, 2):
        raise InputError(
            "project_output_onto must have shape [d_model] or [d_model, direction], not "
            f"{list(onto.shape)}."
        )
    return onto.detach().reshape(onto.shape[0], -1)


def _squeezed(rows: Tensor, onto: Tensor | None) -> Tensor:
    return rows.squeeze(-1) if onto is not None and onto.ndim == 1 else rows
