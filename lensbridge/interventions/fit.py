"""Whether an intervention fits a model and an input; what does not is refused before a run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs.prepare import Prepared
from lensbridge.interventions.axis import size_of
from lensbridge.interventions.columns import Window, columns_of, per_example
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.region import Place
from lensbridge.interventions.source import SourceValues
from lensbridge.native.kv_cache import columns_in
from lensbridge.native.parts import ResolvedModel

_CPU = torch.device("cpu")

ColumnOwner: TypeAlias = Literal["text", "encoder", "decoder", "tower"]
"""Whose columns a point has: the text's; in an encoder-decoder those of the one or the other; or
those of another stack (of pictures, say), which an input does not tell."""


def called(one: Intervention) -> str:
    """The kind of an intervention, for messages."""
    return type(one).__name__


@dataclass(frozen=True)
class InputColumns:
    """The columns of an input.

    Args:
        rows: examples.
        past: columns that are in a key/value cache already.
        prompt: columns up to the end of the input.
        new: how many more a generation makes.
    """

    rows: int
    past: int
    prompt: int
    new: int = 0

    def of_one(self) -> "InputColumns":
        """The same for something that all examples share, earlier columns included."""
        return replace(self, rows=1, past=0)

    def check(self, asked: Any, what: str) -> None:
        """Refuse normalized positions that the input does not have.

        Raises:
            InputError: out of range, or lists for another number of examples.
        """
        if per_example(asked) and len(asked) not in (1, self.rows):
            raise InputError(f"{what}s in {len(asked)} lists; there are {self.rows} examples.")
        self.check_range(asked, what)

    def check_range(self, asked: Any, what: str) -> None:
        """Refuse normalized positions that are out of range.

        Raises:
            InputError: with how many there are.
        """
        for one in _ints(asked):
            column = one + self.prompt if one < 0 else one
            if not self.past <= column < self.prompt + self.new:
                raise InputError(f"{what} {one} is out of range; {self._told()}.")
        if isinstance(asked, slice):
            whole = Window(self.rows, self.past, self.prompt + self.new, self.prompt)
            if not bool(columns_of(asked, whole, _CPU)[1].any()):
                raise InputError(f"{what}s {_written(asked)} are none at all; {self._told()}.")

    def _told(self) -> str:
        held = f", {self.past} of them in the key/value cache" if self.past else ""
        more = f", and {self.new} more are made" if self.new else ""
        return f"there are {self.prompt} positions{held}{more}"

    def width(self, asked: Any, later: bool) -> int:
        """How many columns positions mean; 1 where passes of a generation have other ones."""
        window = Window(self.rows, self.past, self.prompt, self.prompt)
        width = columns_of(asked, window, _CPU)[0].shape[1]
        if not (later and self.new):
            return width
        following = Window(self.rows, self.prompt, self.prompt + 1, self.prompt)
        same = columns_of(asked, following, _CPU)[0].shape[1] == width
        return width if same and asked is not None else 1


def _written(one: slice) -> str:
    parts = [one.start, one.stop] + ([] if one.step is None else [one.step])
    return ":".join("" if part is None else str(part) for part in parts)


def _ints(asked: Any) -> list[int]:
    if asked is None or isinstance(asked, slice | str):
        return []
    if isinstance(asked, int):
        return [asked]
    return [one for row in (asked if per_example(asked) else (asked,)) for one in row]


def extent_of(
    place: Place, whose: ColumnOwner, prepared: Prepared, new: int, keys: bool = False
) -> InputColumns | None:
    """The columns that an input has at a point; None where only the run will tell.

    With `keys` the columns that are looked at there.
    """
    tokens = prepared.tokens if prepared.tokens is not None else prepared.embeds
    if place.axes.position is None or not place.axes.has_batch or tokens is None:
        return None
    if whose == "encoder" or (keys and place.looks_elsewhere):
        return InputColumns(tokens.shape[0], 0, tokens.shape[1])
    if whose == "tower":
        return None
    if whose == "decoder":
        decoded = decoder_input(prepared)
        return None if decoded is None else InputColumns(len(decoded), 0, decoded.shape[1], new)
    past = 0 if prepared.cache is None else columns_in(prepared.cache) or 0
    return InputColumns(tokens.shape[0], past, past + tokens.shape[1], new)


def decoder_input(prepared: Prepared) -> Tensor | None:
    """Ids or embeddings that the decoder of an encoder-decoder is given, if it is given any."""
    found = (prepared.kwargs.get(f"decoder_{kind}") for kind in ("input_ids", "inputs_embeds"))
    return next((one for one in found if isinstance(one, Tensor)), None)


def mask_of(whose: ColumnOwner, prepared: Prepared) -> Tensor | None:
    """Shapes: `[batch, column]`, 1 for tokens, of a point's columns; None where none is masked."""
    if whose == "tower":
        return None
    decodes = whose == "decoder"
    mask = prepared.kwargs.get("decoder_attention_mask") if decodes else prepared.mask
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def check_pairing(
    one: Intervention, positions: Any, extent: InputColumns, given: SourceValues, what: str
) -> None:
    """Refuse a source whose examples or columns do not go with those of an input.

    Raises:
        InputError: with what there is on either side.
    """
    source = InputColumns(given.window.rows, 0, given.window.end)
    if one.pairs_examples and source.rows not in (1, extent.rows):
        raise InputError(
            f"{what}: the source has {source.rows} examples and the input {extent.rows}: as many "
            "are needed, or one."
        )
    asked = positions if one.other_positions is None else one.other_positions
    if asked is None and source.prompt != extent.prompt:
        raise InputError(
            f"{what}: the source has {source.prompt} positions and the input {extent.prompt}, and "
            "which belong together is not something to guess. Say which, with positions (and "
            "source_positions for Swap)."
        )
    if source.rows == 1 and per_example(asked):
        source = replace(source, rows=extent.rows)
    source.check(asked, f"{what}: source position")
    here, there = extent.width(positions, False), source.width(asked, False)
    if here != there:
        raise InputError(
            f"{what}: {here} positions of the input and {there} of the source do not go together."
        )


def check_padding(given: SourceValues, mask: Tensor | None, what: str) -> None:
    """Refuse a source that has its padding at other columns, where columns are paired in order.

    Raises:
        InputError: it has.
    """
    if not given.tells_padding or (mask is None and given.window.mask is None):
        return
    columns = torch.arange(given.window.end)[None]
    there = given.window.is_token(columns)
    here = torch.ones_like(there) if mask is None else mask.bool().to(there.device)
    if here.shape[1] != there.shape[1] or not bool((here == there).all()):
        raise InputError(
            f"{what}: the source has its padding at other columns than the input, so columns do "
            "not lie over each other, and which belong together is not something to guess. Say "
            "which, with positions and source_positions."
        )


def whose_columns(native: ResolvedModel, name: str) -> ColumnOwner:
    """Which text, or what else, the columns of a point belong to."""
    for stack in native.towers:
        front = native.front_of(stack)
        if name.startswith((f"{stack.prefix}.", front)):
            return "encoder" if front == "encoder." else "tower"
    if name.endswith(("cross_attn.hook_k", "cross_attn.hook_v")):
        return "encoder"
    return "decoder" if native.is_encoder_decoder else "text"


def check_axes(one: Intervention, place: Place) -> None:
    """Refuse parts of a point that it does not have.

    Raises:
        InputError: with the axes that there are.
    """
    axes, what = place.axes, f"{called(one)} at {place.name}"
    shown = f"its axes are {' '.join(axes.letters)}"
    if place.heads is not None and axes.head is None:
        raise InputError(f"{what}: heads were named, and there are none ({shown}).")
    if place.positions is not None and axes.position is None:
        raise InputError(f"{what}: positions were named, and there are none ({shown}).")
    if place.keys is not None and not axes.keys:
        raise InputError(f"{what}: keys are of scores and patterns; {shown}.")
    if per_example(place.keys):
        raise InputError(f"{what}: keys are the same for every example.")
    if axes.letters[0] == "1" and (one.mixes_examples or per_example(place.positions)):
        raise InputError(f"{what}: all examples share one value there ({shown}).")
    if not place.when.is_always and (axes.position is None or not axes.has_batch):
        raise InputError(f"{what}: when was given, and no axis counts positions ({shown}).")
    if (place.neurons is not None or one.subspace is not None) and axes.last in "qks":
        raise InputError(f"{what}: neurons or a subspace were given; {shown}.")
    if not one.on_integers and place.name.endswith("hook_expert_indices"):
        raise InputError(
            f"{what}: it holds the numbers of the chosen experts; Replace, Resample and Swap act "
            "on them, or edit hook_router_logits."
        )


def sizes_of(native: ResolvedModel, one: Intervention, place: Place) -> tuple[int | None, ...]:
    """Heads (if any) and entries of the region, checked against what the model has.

    Raises:
        InputError: an index or subspace that the model does not have.
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
                f"{what}: the subspace is of {one.subspace.shape[0]} dimensions; the point has "
                f"{last}."
            )
        last = last if place.subspace is None else one.subspace.shape[1]
    inner = () if axes.head is None else (size(axes.head, place.heads, "head"),)
    missing = len(axes.letters) - axes.has_batch - (axes.position is not None) - len(inner) - 1
    return (*inner, *[None] * missing, last)
