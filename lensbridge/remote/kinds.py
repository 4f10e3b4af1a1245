"""Kinds of values that a message holds besides text, numbers, lists and tensors."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.experiments import Experiment
from lensbridge.experiments.document import read_metric, written_metric
from lensbridge.experiments.stored import Reader, Writer
from lensbridge.gradients.points import Gradients, GradientsAndActivations
from lensbridge.hooked_model import LogitsAndLoss
from lensbridge.inputs.prompts import Encoded
from lensbridge.interventions.document import Store, read, written
from lensbridge.interventions.intervention import Intervention
from lensbridge.metrics import Metric
from lensbridge.plans.plan import Plan, PlannedValue
from lensbridge.points.point_names import PointNames
from lensbridge.sweeps.cell import Cell
from lensbridge.sweeps.result import PatchingResult

A_FUNCTION = "a function would have to run on the server; use an intervention"
A_SETTER = "a function would have to run on the server; give the cell a value without a setter"


class Packs(Protocol):
    """Writes values to a document and reads them from it."""

    @property
    def store(self) -> Store:
        """Where tensors are kept."""

    def pack(self, value: Any) -> Any:
        """A value as JSON."""

    def unpack(self, document: Any) -> Any:
        """The value of some JSON."""


@dataclass(frozen=True)
class Chosen:
    """Names of points that a function chose, as a filter of names.

    Args:
        names: canonical names.
    """

    names: tuple[str, ...]

    def __call__(self, name: str) -> bool:
        return name in self.names


@dataclass(frozen=True)
class Kind:
    """How values of one type are written.

    Args:
        tag: names it in a document.
        type: of the values.
        pack: a value as JSON.
        unpack: the value of that JSON.
    """

    tag: str
    type: "type | tuple[type, ...]"
    pack: Callable[[Any, Packs], Any]
    unpack: Callable[[Any, Packs], Any]


def of_fields(tag: str, cls: Any, names: "tuple[str, ...] | None" = None) -> Kind:
    """The kind of a dataclass or named tuple, written field by field."""
    known = names or getattr(cls, "_fields", None) or tuple(one.name for one in fields(cls))

    def pack(value: Any, packs: Packs) -> Any:
        return {name: packs.pack(getattr(value, name)) for name in known}

    def unpack(document: Any, packs: Packs) -> Any:
        given = _object(tag, document)
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(f"A {tag} has no {unknown[0]!r}; it has {', '.join(known)}.")
        return cls(**{name: packs.unpack(value) for name, value in given.items()})

    return Kind(tag, cls, pack, unpack)


def _object(tag: str, document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InputError(f"A {tag} is a JSON object, not {document!r:.40}.")
    return document


def _pack_stored(value: Any, packs: Packs) -> Any:
    """A result, as it is written to a file."""
    writer = Writer()
    about = writer.written("", value)
    refs = {key: packs.store.put(tensor) for key, tensor in writer.tensors.items()}
    return {"about": about, "tensors": {key: one["tensor"] for key, one in refs.items()}}


def _unpack_stored(document: Any, packs: Packs) -> Any:
    given = _object("result", document)
    tensors = {key: packs.store.get(one) for key, one in given["tensors"].items()}
    return Reader(tensors, None).read(given["about"])


def _pack_cell(cell: Cell, packs: Packs) -> Any:
    if cell.setter is not None:
        raise InputError(A_SETTER)
    index = list(cell.index) if isinstance(cell.index, list) else cell.index
    return [packs.pack(one) for one in (cell.point, index, _narrowed(cell.value, cell.point))]


@dataclass(frozen=True, eq=False)
class _Part:
    """What a cell takes of a cache."""

    cache: ActivationCache
    name: str


def _narrowed(value: Any, point: Any) -> Any:
    return _Part(value, value.canonical(point)) if isinstance(value, ActivationCache) else value


_OF_RUN = ("tokens", "attention_mask", "decoder_attention_mask", "prepend_bos")


def _pack_part(part: _Part, packs: Packs) -> Any:
    about = {name: packs.pack(getattr(part.cache, name)) for name in _OF_RUN}
    return {"name": part.name, "value": packs.pack(part.cache[part.name]), **about}


def _unpack_part(document: Any, packs: Packs) -> ActivationCache:
    given = {name: packs.unpack(one) for name, one in _object("cache", document).items()}
    name = given.pop("name")
    return ActivationCache({name: given.pop("value")}, PointNames((name,), {}, {}), **given)


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise InputError(f"There is no dtype {name!r:.40}.")
    return found


KINDS = (
    Kind("slice", slice, lambda v, p: [v.start, v.stop, v.step], lambda d, p: slice(*d)),
    Kind("ellipsis", type(...), lambda v, p: True, lambda d, p: ...),
    Kind("range", range, lambda v, p: [v.start, v.stop, v.step], lambda d, p: range(*d)),
    Kind("dtype", torch.dtype, lambda v, p: str(v).removeprefix("torch."), lambda d, p: _dtype(d)),
    Kind("frozenset", frozenset, lambda v, p: sorted(v), lambda d, p: frozenset(d)),
    Kind(
        "intervention",
        Intervention,
        lambda v, p: written(v, p.store),
        lambda d, p: read(_object("intervention", d), p.store),
    ),
    Kind(
        "metric",
        Metric,
        lambda v, p: written_metric(v, p.store),
        lambda d, p: read_metric(_object("metric", d), p.store),
    ),
    Kind("cell", Cell, _pack_cell, lambda d, p: Cell(*(p.unpack(one) for one in d))),
    Kind("stored", (ActivationCache, PatchingResult), _pack_stored, _unpack_stored),
    Kind("cache", _Part, _pack_part, _unpack_part),
    Kind("experiment", Experiment, lambda v, p: v.to_json(), lambda d, p: Experiment.from_json(d)),
    of_fields("names", Chosen),
    of_fields("encoded", Encoded),
    of_fields("logits and loss", LogitsAndLoss),
    of_fields("gradients", Gradients),
    of_fields("gradients and activations", GradientsAndActivations),
    of_fields("planned value", PlannedValue),
    of_fields("plan", Plan),
)
"""Every kind. The first whose type fits writes a value."""

BY_TAG = {kind.tag: kind for kind in KINDS}
