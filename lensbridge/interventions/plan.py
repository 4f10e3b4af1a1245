"""Plan: an intervention at one point of one model, checked, as a callback of the engine."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lensbridge.errors import EditError, InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Hook
from lensbridge.inputs.positions import ColumnOwner, column_owner, decoder_input, mask_of
from lensbridge.inputs.prepare import Prepared
from lensbridge.inputs.special import is_special, known_special_ids
from lensbridge.interventions.axis import Axes
from lensbridge.interventions.columns import Window
from lensbridge.interventions.fit import called, check_axes, check_padding, check_pairing, sizes_of
from lensbridge.interventions.input_columns import InputColumns, columns_of_source, extent_of
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.region import Place, Region
from lensbridge.interventions.source import Source, SourceValues
from lensbridge.interventions.windows import window_of
from lensbridge.sites.heads import LatentSite


@dataclass(frozen=True, eq=False)
class Plan:
    """One intervention at one point of one model.

    Args:
        intervention: what is done.
        place: where.
        sizes: heads (if there are any) and entries that it acts on; None for unknown sizes.
        given: the activation of its source, if it has one.
        owner: what the columns of the point belong to.
        forgotten: whether later passes compute the value again from what the key/value cache keeps.
        special: ids of tokens that means leave out.
    """

    intervention: Intervention
    place: Place
    sizes: tuple[int | None, ...]
    given: SourceValues | None
    owner: ColumnOwner
    forgotten: bool = False
    special: frozenset[int] = frozenset()

    @classmethod
    def of(cls, model: HookedModel, one: Intervention, name: str, origin: Source | None) -> "Plan":
        """The plan, if the intervention fits the point."""
        site = model.engine.sites[name]
        if not site.editable:
            raise EditError(f"{name} can be read but not edited: {site.formula}.")
        axes = Axes(tuple(site.axes.split()))
        place = Place(
            name=name,
            axes=axes,
            positions=one.positions,
            heads=one.heads,  # type: ignore[arg-type]  # normalized when it was made
            neurons=one.neurons,  # type: ignore[arg-type]
            keys=one.keys,
            subspace=one.seen_subspace,
            when=one.when,  # type: ignore[arg-type]
            count=one.count,
        )
        check_axes(one, place)
        sizes = sizes_of(model.native, one, place)
        owner = column_owner(model.native, name)
        special = known_special_ids(model.tokens, model.native, one.left_out)
        given = None if origin is None else SourceValues.of(origin, place, owner, special)
        plan = cls(one, place, sizes, given, owner, isinstance(site, LatentSite), special)
        plan._check_given()
        return plan

    @property
    def name(self) -> str:
        """Canonical name of the point."""
        return self.place.name

    @property
    def what(self) -> str:
        """The intervention and its point, for messages."""
        return f"{called(self.intervention)} at {self.name}"

    # --- before a run ------------------------------------------------------------------------

    def _check_given(self) -> None:
        if self.given is not None:
            self._check_seen(self.given.sample(self.place), "source")

    def _check_seen(self, seen: Tensor, what: str) -> None:
        found = tuple(seen.shape[2:])
        if any(w is not None and f != w for f, w in zip(found, self.sizes, strict=True)):
            raise InputError(
                f"{self.what}: after its positions the {what} has the axes {found}; the point has "
                f"{self.sizes}."
            )

    def extent(self, prepared: Prepared, new: int = 0) -> InputColumns | None:
        """The columns that an input has at the point, of the examples that are edited; None if only
        the run shows them.
        """
        return self._of_chosen(extent_of(self.place, self.owner, prepared, new))

    def _of_chosen(self, extent: InputColumns | None) -> InputColumns | None:
        chosen = None if extent is None else self.intervention.chosen(extent.rows, self.what)
        return extent if extent is None or chosen is None else extent.chosen(chosen)

    def mask(self, prepared: Prepared) -> Tensor | None:
        """Which of the point's columns are tokens of an input. Shapes: `[batch, column]`"""
        return mask_of(self.owner, prepared)

    def special_columns(self, prepared: Prepared) -> Tensor | None:
        """Which of the point's columns are special tokens of an input. Shapes: `[batch, column]`"""
        decodes = self.owner == "decoder"
        return self._special(decoder_input(prepared) if decodes else prepared.tokens)

    def _special(self, tokens: Tensor | None) -> Tensor | None:
        if not self.special or tokens is None or self.owner == "tower":
            return None
        return None if tokens.is_floating_point() else is_special(tokens, self.special)

    def keys_mask(self, prepared: Prepared) -> Tensor | None:
        """Which of the columns of another text, that keys name, are tokens of an input."""
        elsewhere = self.place.keys is not None and self.place.looks_elsewhere
        return mask_of("encoder", prepared) if elsewhere else None

    def check(self, prepared: Prepared, new: int) -> None:
        """Refuse an input that the intervention does not fit, before the run."""
        one, place, what = self.intervention, self.place, self.what
        looked_at = self._of_chosen(extent_of(place, self.owner, prepared, new, keys=True))
        if place.keys is not None and looked_at is not None:
            looked_at.of_keys().check(place.keys, f"{what}: key", place.count)
        extent = self.extent(prepared, new)
        if extent is None:
            return
        self._check_shared(extent)
        extent.check(place.positions, f"{what}: position", place.count)
        one.check_rows(extent.rows, what)
        width = extent.width(place.positions, place.when.reaches_generated, place.count)
        one.check_value((extent.rows, width, *self.sizes), what)
        whole = extent_of(place, self.owner, prepared, new)
        assert whole is not None
        read = one.others(whole.rows, what)
        if read is not None:
            check_pairing(one, place.positions, extent, whole.chosen(read), what)
        if self.given is not None and one.pairs_columns:
            given = self._picked(self.given, one.chosen(whole.rows, what), whole.rows)
            check_pairing(one, place.positions, extent, columns_of_source(given), what)
            if one.pairs_examples and place.positions is None and one.other_positions is None:
                check_padding(given, extent.mask, what)

    def _picked(
        self, given: SourceValues, chosen: tuple[int, ...] | None, count: int
    ) -> SourceValues:
        """A source, or the chosen examples of one that has as many as the run."""
        if chosen is None or given.rows != count or len(chosen) == count:
            return given
        return given.chosen(torch.tensor(chosen))

    def _check_shared(self, extent: InputColumns) -> None:
        """Refuse positions of padded texts at a point whose value all examples share."""
        place = self.place
        asked = place.positions is not None or place.keys is not None
        shares = place.axes.letters[0] == "1" and place.count == "tokens"
        if asked and shares and extent.real is not None:
            raise InputError(
                f"{self.what}: all examples share one value there, and the texts are padded, so "
                "their tokens are at other columns. Pass count='columns'."
            )

    # --- in a run ----------------------------------------------------------------------------

    def run(self, value: Tensor, hook: Hook) -> Tensor:
        """The hook function."""
        self._check_kind(value)
        window = self._window(value, hook)
        chosen = self.intervention.chosen(window.n_examples, self.what)
        rows = None if chosen is None else window.rows_of(chosen, value.device)
        self._check_pass(window if rows is None else window.chosen(rows), hook)
        self._check_beams(window, hook)
        return self.edited(value, window, hook.step)

    def edited(self, value: Tensor, window: Window, step: int) -> Tensor:
        """The activation of a pass after the intervention."""
        one, batch = self.intervention, self.place.axes.batch
        chosen = one.chosen(window.n_examples, self.what)
        given = self._given_in(value, window, chosen)
        if chosen is None or batch is None:
            return self._changed(value, window, step, given)
        rows = window.rows_of(chosen, value.device)
        part = value.index_select(batch, rows)
        return value.index_copy(batch, rows, self._changed(part, window.chosen(rows), step, given))

    def _given_in(
        self, value: Tensor, window: Window, chosen: tuple[int, ...] | None
    ) -> SourceValues | None:
        """The values of the source for the examples that are edited; the source may be other
        examples of the run itself.
        """
        read = self.intervention.others(window.n_examples, self.what)
        if read is not None:
            whole = SourceValues(self.place.axes.ordered(value), window, tells_padding=True)
            return whole.chosen(window.rows_of(read, value.device))
        if self.given is None:
            return None
        return self._picked(self.given, chosen, window.n_examples)

    def _changed(
        self, value: Tensor, window: Window, step: int, given: SourceValues | None
    ) -> Tensor:
        place = self.place
        if self.intervention.mixes_examples and place.positions is None:
            # examples are compared token by token, not column by column
            padded = place.count == "tokens" and window.real is not None
            place = replace(place, positions=slice(None)) if padded else place
        region = Region.of(place, window, step, value)
        if region is None:
            return value
        self._check_region(region)
        return region.changed(self.intervention.act(region, given))

    def _check_kind(self, value: Tensor) -> None:
        letters = self.place.axes.letters
        if not value.is_floating_point() and not self.intervention.on_integers:
            raise EditError(
                f"{self.what}: this point holds integer indices (experts); only Replace, Resample "
                "and Swap can edit it."
            )
        if value.ndim != len(letters):
            raise EditError(
                f"{self.what}: in this run the value has shape {tuple(value.shape)}, which is not "
                f"[{' '.join(letters)}]. Edit it with a hook."
            )

    def _check_pass(self, window: Window, hook: Hook) -> None:
        """Checks that need the run, as of key/value caches and of ids that a decoder makes."""
        if self.forgotten and hook.progress.past:
            raise InputError(
                f"{self.what}: latent attention keeps latents from pass to pass, so edits of "
                "earlier columns are lost. Pass use_past_kv_cache=False, or edit "
                "attn.hook_kv_latent."
            )
        if hook.step == 0:
            new = hook.progress.new
            extent = InputColumns(window.rows, 0, window.prompt, new, window.mask)
            extent.check_range(self.place.positions, f"{self.what}: position", self.place.count)

    def _check_beams(self, window: Window, hook: Hook) -> None:
        examples = hook.progress.examples
        if self.intervention.mixes_examples and examples not in (None, window.rows):
            raise InputError(
                f"{self.what} takes values of other examples, but this generation has "
                f"{window.rows} rows for {examples} examples (beams, or several texts for each). "
                "Give a source, or generate one row for each example."
            )

    def _check_region(self, region: Region) -> None:
        """Check sizes that only the run shows."""
        self.intervention.check_rows(region.window.rows, self.what)
        if region.step == 0:  # with beams there are more rows; `act` repeats the examples
            self.intervention.check_value((None, *region.value.shape[1:]), self.what)

    def _window(self, value: Tensor, hook: Hook) -> Window:
        special = (
            self._special(hook.progress.ids(self.owner == "encoder")) if self.special else None
        )
        return window_of(self.place, self.owner, value, hook.progress, special)
