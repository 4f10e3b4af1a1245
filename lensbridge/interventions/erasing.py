"""Fitting erasure at many layers in one run: each layer's eraser sees what earlier ones left."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.special import Excluded
from lensbridge.interventions.columns import Positions
from lensbridge.interventions.erasure import AffineEraser, Erase, eraser_of, leace
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.region import Region
from lensbridge.interventions.running import run_edited
from lensbridge.interventions.source import SourceValues
from lensbridge.points.point_names import NamesFilter

Upstream: TypeAlias = Literal["erased", "clean"]
"""erased: a layer is fitted to what it gets where earlier layers are erased already. clean: each
layer is fitted to the model's own activations, as for erasing one layer alone."""

Fit: TypeAlias = Callable[[Tensor, Tensor], Any]
"""An eraser from examples `[example, d]` and concepts `[example, k]`."""


def fit_erasure(
    model: HookedModel,
    texts: Any,
    labels: Any,
    site: NamesFilter = "resid_post",
    positions: Positions = None,
    upstream: Upstream = "erased",
    fit: Fit = leace,
    exclude_special_tokens: Excluded = True,
    batch_size: int | None = None,
    **input_options: Any,
) -> list[Erase]:
    """Interventions that erase a concept at every layer, so that no linear classifier can read it.

    All layers are fitted in one run: a hook at each layer fits it, erases, and the next layer gets
    the result. With a `batch_size` and `upstream="erased"` the batches run once for each layer, up
    to there.

    Args:
        model: the model.
        texts: texts or ids.
        labels: one for each text, or a list for each with one for each token, BOS included. Text,
            booleans and integers are classes, floats are numbers, and a tensor `[text, k]` is the
            concept itself.
        site: the points, of which each has its own eraser.
        positions: which tokens of each text are examples, and are erased; None: all.
        upstream: what each layer is fitted to.
        fit: makes an eraser; `LeaceEraser.fit` of the package concept-erasure is one too.
        exclude_special_tokens: leave BOS, EOS and separators out of the examples; or the ids of
            the tokens that are left out. Erasure acts on them nevertheless.
        batch_size: how many texts are run at once; None: all of them.
        input_options: `prepend_bos` and other options of a run.

    Returns:
        An `Erase` for each point, in data-flow order.

    Raises:
        InputError: labels that do not fit the texts, all of one class, or a point without the axes
            example, position, entry.

    Source: Belrose et al. 2023, "LEACE: perfect linear concept erasure in closed form", with
        concept scrubbing.

    Example:
        >>> import lensbridge
        >>> from lensbridge.interventions import fit_erasure
        >>> model = lensbridge.load("demo")
        >>> texts = ["The Eiffel Tower is", "The Louvre is", "The Galata Tower is", "Big Ben is"]
        >>> erasers = fit_erasure(model, texts, ["Paris", "Paris", "other", "other"], positions=-1)
        >>> [one.site for one in erasers][:2]
        ['blocks.0.hook_resid_post', 'blocks.1.hook_resid_post']
        >>> with model.intervene(erasers):
        ...     _, cache = model.run_with_cache(texts)
        >>> last = cache.last_token("resid_post", 3)
        >>> bool((last[:2].mean(0) - last[2:].mean(0)).abs().max() < 1e-3)
        True
    """
    if upstream not in ("erased", "clean"):
        raise InputError(f"upstream is 'erased' or 'clean', not {upstream!r}.")
    texts = [texts] if isinstance(texts, str) else texts
    names = model.vocabulary.select(site)
    concept = Concept.of(labels, len(texts))
    batches = _batches(texts, batch_size)
    asked: dict[str, Any] = {"positions": positions, "excluded": exclude_special_tokens}
    run = _Runs(model, batches, concept, fit, asked, input_options)
    if upstream == "erased" and len(batches) == 1:
        found = run.in_one_pass(names)
    elif upstream == "erased":
        found = run.layer_by_layer(names)
    else:
        found = run.of_clean(names)
    lacking = [name for name in names if name not in found]
    if lacking:
        raise InputError(f"The run did not pass {lacking[0]}, so nothing was fitted there.")
    return [
        Erase(name, one.left, one.right, one.mean, positions=positions)
        for name, one in ((name, found[name]) for name in names)
    ]


def _batches(texts: Any, size: int | None) -> list[tuple[int, Any]]:
    if size is None:
        return [(0, texts)]
    if not isinstance(size, int) or size < 1:
        raise InputError(f"batch_size is None or a number of texts, 1 or more, not {size!r}.")
    return [(start, texts[start : start + size]) for start in range(0, len(texts), size)]


@dataclass(frozen=True)
class Concept:
    """What is erased, of each text or of each token of it.

    Shapes: rows `[k]` each, or `[token, k]` each.
    """

    rows: Sequence[Tensor]

    @classmethod
    def of(cls, labels: Any, count: int) -> "Concept":
        """A concept from labels.

        Raises:
            InputError: not one for each text, or all the same.
        """
        if len(labels) != count:
            raise InputError(f"There are {count} texts and {len(labels)} labels.")
        if not count:
            raise InputError("There are no texts to fit an erasure to.")
        if isinstance(labels, Tensor) and labels.ndim == 2 and labels.is_floating_point():
            return cls(list(labels.detach().cpu().double()))
        given = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        each = [one if isinstance(one, list | tuple) else [one] for one in given]
        nested = any(isinstance(one, list | tuple) for one in given)
        encode = _encoding([label for row in each for label in row])
        rows = [torch.stack([encode(label) for label in row]) for row in each]
        return cls(rows if nested else [row[0] for row in rows])

    def at(self, start: int, region: Region, wanted: Tensor) -> Tensor:
        """Of the wanted columns of a region, row by row. Shapes: wanted `[batch, n]` -> `[m, k]`"""
        numbers = region.numbers.expand(wanted.shape[0], -1).cpu()
        found = []
        for row, inside in enumerate(wanted.cpu()):
            own = self.rows[start + row]
            mine = numbers[row][inside]
            if own.ndim == 2 and len(mine) and int(mine.max()) >= len(own):
                raise InputError(
                    f"Text {start + row} has more tokens than labels: {len(own)} labels. Labels of "
                    "tokens are one for each token, the BOS in front included."
                )
            found.append(own[mine] if own.ndim == 2 else own.expand(len(mine), -1))
        return torch.cat(found)


def _encoding(labels: Sequence[Any]) -> Callable[[Any], Tensor]:
    """Classes as one-hot vectors, numbers as one entry."""
    if any(isinstance(one, float) for one in labels):
        strange = [one for one in labels if not math.isfinite(float(one))]
        if strange:
            raise InputError(f"Labels are classes or finite numbers, not {strange[0]}.")
        return lambda label: torch.tensor([float(label)], dtype=torch.double)
    classes = list(dict.fromkeys(labels))
    if len(classes) < 2:
        raise InputError(f"All labels are {classes[0]!r}: there is nothing to tell apart.")
    if len(classes) == 2:  # one entry says it all
        return lambda label: torch.tensor([float(classes.index(label))], dtype=torch.double)
    return lambda label: torch.eye(len(classes), dtype=torch.double)[classes.index(label)]


@dataclass(frozen=True, eq=False, repr=False)
class _Reading(Intervention):
    """Reads the examples of a batch, and leaves or changes the run's value."""

    concept: Concept
    start: int
    excluded: Excluded
    fit: Fit | None = None
    read: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    found: dict[str, AffineEraser] = field(default_factory=dict)

    @property
    def left_out(self) -> Excluded:
        return self.excluded

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        name, value = region.place.name, region.value
        if value.ndim != 3:
            raise InputError(
                f"{name} has the axes {' '.join(region.place.axes.letters)}; erasure needs a point "
                "with examples, positions and entries."
            )
        wanted = region.mask
        if region.place.positions is None:
            wanted = wanted & region.window.counted(value.device)
        z = self.concept.at(self.start, region, wanted).to(value.device)
        x = value[wanted].detach()
        if self.fit is None:
            self.read.setdefault(name, []).append((x, z))
            return value
        self.found[name] = eraser_of(self.fit(x, z.to(x.dtype)))
        return self.found[name](value)


@dataclass(frozen=True)
class _Runs:
    """The runs that fit erasers."""

    model: HookedModel
    batches: Sequence[tuple[int, Any]]
    concept: Concept
    fit: Fit
    asked: dict[str, Any]
    options: dict[str, Any]

    def in_one_pass(self, names: Sequence[str]) -> dict[str, AffineEraser]:
        """Each layer gets what the erasers before it left."""
        start, texts = self.batches[0]
        reading = self._reading(names, start, self.fit)
        self._run(texts, [reading])
        return reading.found

    def layer_by_layer(self, names: Sequence[str]) -> dict[str, AffineEraser]:
        """As `in_one_pass`, where the texts do not fit into one batch."""
        found: dict[str, AffineEraser] = {}
        for name in names:
            before = [
                Erase(other, one.left, one.right, one.mean, positions=self.asked["positions"])
                for other, one in found.items()
            ]
            found |= self._fitted(self._read([name], before))
        return found

    def of_clean(self, names: Sequence[str]) -> dict[str, AffineEraser]:
        """Each layer gets the model's own activations."""
        return self._fitted(self._read(names, []))

    def _read(
        self, names: Sequence[str], before: Sequence[Intervention]
    ) -> dict[str, list[tuple[Tensor, Tensor]]]:
        whole: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for start, texts in self.batches:
            reading = self._reading(names, start, None)
            self._run(texts, [*before, reading])
            for name, some in reading.read.items():
                whole.setdefault(name, []).extend(some)
        return whole

    def _fitted(self, read: dict[str, list[tuple[Tensor, Tensor]]]) -> dict[str, AffineEraser]:
        joined = {
            name: tuple(map(torch.cat, zip(*some, strict=True))) for name, some in read.items()
        }
        return {name: eraser_of(self.fit(x, z.to(x.dtype))) for name, (x, z) in joined.items()}

    def _reading(self, names: Sequence[str], start: int, fit: Fit | None) -> _Reading:
        return _Reading(
            tuple(names),
            self.concept,
            start,
            self.asked["excluded"],
            fit,
            positions=self.asked["positions"],
        )

    def _run(self, texts: Any, interventions: Sequence[Intervention]) -> None:
        with torch.no_grad():
            run_edited(self.model, texts, interventions, return_type=None, **self.options)
