"""Checks, before a run, that an intervention fits a model and an input."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.interventions.axis import size_of
from lensbridge.interventions.columns import per_example
from lensbridge.interventions.input_columns import InputColumns
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.region import Place
from lensbridge.interventions.source import SourceValues
from lensbridge.native.parts import ResolvedModel


def called(one: Intervention) -> str:
    """The name of an intervention's class, for messages."""
    return type(one).__name__


def check_pairing(
    one: Intervention, positions: Any, extent: InputColumns, source: InputColumns, what: str
) -> None:
    """Refuse a source whose examples or columns do not correspond to those of an input.

    Raises:
        InputError: with the numbers of both.
    """
    if one.pairs_examples and source.rows not in (1, extent.rows):
        raise InputError(
            f"{what}: the source has {source.rows} examples and the input {extent.rows}. Give as "
            "many, or one."
        )
    asked = positions if one.other_positions is None else one.other_positions
    if asked is None and source.prompt != extent.prompt:
        raise InputError(
            f"{what}: the source has {source.prompt} positions and the input {extent.prompt}, so "
            "it is not clear which positions correspond. Name them: positions (and "
            "source_positions for Swap)."
        )
    if source.rows == 1 and per_example(asked):
        source = replace(source, rows=extent.rows)
    source.check(asked, f"{what}: source position", one.count)
    here, there = (
        extent.width(positions, False, one.count),
        source.width(asked, False, one.count),
    )
    ragged = one.pairs_examples and not (extent.real is None and source.real is None)
    if ragged and asked is not None and one.count == "tokens":
        _check_counts(extent.counts(positions, one.count), source.counts(asked, one.count), what)
    elif here != there:
        raise InputError(
            f"{what}: {here} positions of the input cannot be paired with {there} of the source. "
            "Give as many."
        )


def _check_counts(here: Tensor, there: Tensor, what: str) -> None:
    differing = (here != there).nonzero().flatten().tolist()
    if differing:
        row = differing[0]
        raise InputError(
            f"{what}: example {row}: {int(here[row])} positions of the input cannot be paired with "
            f"{int(there[row])} of the source. Give as many."
        )


def check_padding(given: SourceValues, mask: Tensor | None, what: str) -> None:
    """Refuse a source whose padding is at other columns than the input's.

    Raises:
        InputError: the padding differs.
    """
    if not given.tells_padding or (mask is None and given.window.mask is None):
        return
    columns = torch.arange(given.window.end)[None]
    there = given.window.is_token(columns)
    here = torch.ones_like(there) if mask is None else mask.bool().to(there.device)
    if here.shape[1] != there.shape[1] or not bool((here == there).all()):
        raise InputError(
            f"{what}: the source has padding at other columns than the input, so it is not clear "
            "which positions correspond. Name them: positions and source_positions."
        )


def check_axes(one: Intervention, place: Place) -> None:
    """Refuse heads, positions or other parts that a point does not have.

    Raises:
        InputError: with the axes of the point.
    """
    axes, what = place.axes, f"{called(one)} at {place.name}"
    shown = f"its axes are {' '.join(axes.letters)}"
    if place.heads is not None and axes.head is None:
        raise InputError(f"{what}: heads were given, but no axis counts heads ({shown}).")
    if one.examples is not None and (not axes.has_batch or axes.letters[0] == "1"):
        raise InputError(f"{what}: examples were given, but no axis counts them ({shown}).")
    if place.positions is not None and axes.position is None:
        raise InputError(f"{what}: positions were given, but no axis counts them ({shown}).")
    if place.keys is not None and not axes.keys:
        raise InputError(f"{what}: keys are for attention scores and patterns; {shown}.")
    if per_example(place.keys):
        raise InputError(f"{what}: keys are one list for all examples.")
    if axes.letters[0] == "1" and (one.mixes_examples or per_example(place.positions)):
        raise InputError(f"{what}: all examples share one value there ({shown}).")
    if not place.when.is_always and (axes.position is None or not axes.has_batch):
        raise InputError(f"{what}: when was given, but no axis counts positions ({shown}).")
    if (place.neurons is not None or one.subspace is not None) and axes.last in "qks":
        raise InputError(
            f"{what}: neurons or a subspace were given, but the last axis has neither; {shown}."
        )
    if not one.on_integers and place.name.endswith("hook_expert_indices"):
        raise InputError(
            f"{what}: this point holds the integer indices of chosen experts; only Replace, "
            "Resample and Swap can edit it. Or edit hook_router_logits."
        )


def sizes_of(native: ResolvedModel, one: Intervention, place: Place) -> tuple[int | None, ...]:
    """Heads (if any) and entries of the region, checked against the model.

    Raises:
        InputError: an index is out of range, or a subspace has another dimension.
    """
    axes, what = place.axes, f"{called(one)} at {place.name}"

    def size(axis: int | None, chosen: Sequence[int] | None, kind: str) -> int | None:
        letter = axes.letters[-1 if axis is None else axis]
        there = size_of(native, place.name, letter)
        for index in chosen or ():
            if there is not None and not -there <= index < there:
                raise InputError(f"{what}: {kind} {index} is out of range; there are {there}.")
        return there if chosen is None else len(chosen)

    last = size(None, place.neurons, "neuron")
    last = None if axes.last in "qks" else last
    if one.subspace is not None:
        if last is not None and one.subspace.shape[0] != last:
            raise InputError(
                f"{what}: the vectors of the subspace have {one.subspace.shape[0]} dimensions; the "
                f"point has {last}."
            )
        last = last if place.subspace is None else one.subspace.shape[1]
    inner = () if axes.head is None else (size(axes.head, place.heads, "head"),)
    missing = len(axes.letters) - axes.has_batch - (axes.position is not None) - len(inner) - 1
    return (*inner, *[None] * missing, last)
