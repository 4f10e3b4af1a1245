"""Results: tensors without values that are to come back from a trace, and then their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.engines.nnsight.recorder import Recorder
from lensbridge.engines.nnsight.tracing import Results, Trace
from lensbridge.experiments import Experiment, ExperimentResult
from lensbridge.sweeps.grid import Grid
from lensbridge.sweeps.result import PatchingResult


class Given:
    """The values of a trace that ran, in the places of those without values."""

    def __init__(self, places: Mapping[int, tuple[int, str]], results: Results) -> None:
        self.places = places
        self.results = results

    def of(self, found: Any) -> Any:
        """A result with its values."""
        return mapped(found, self._value)

    def _value(self, tensor: Tensor) -> Tensor:
        place = self.places.get(id(tensor))
        return tensor if place is None else self.results[place[0]][place[1]]


class Asked:
    """What is to come back from a trace."""

    def __init__(self, recorder: Recorder, differentiates: bool = False) -> None:
        self.recorder = recorder
        self.places: dict[int, tuple[int, str]] = {}
        self.differentiates = differentiates

    def note(self, found: Any) -> Any:
        """Let all tensors of a result come back."""

        def one(tensor: Tensor) -> Tensor:
            place = self.recorder.draft.result(tensor)
            if place is not None:
                self.places[id(tensor)] = place
            return tensor

        mapped(found, one)
        return found

    @property
    def trace(self) -> Trace:
        """The program."""
        return Trace(
            self.recorder.draft.blocks, self.differentiates or self.recorder.differentiated
        )

    def run(self, model: Any, remote: bool | str) -> Given:
        """Run the program.

        Args:
            model: nnsight's model.
            remote: where it runs.
        """
        return Given(self.places, self.trace.run(model, remote))


def mapped(found: Any, one: Callable[[Tensor], Tensor]) -> Any:
    """A result with every tensor in it replaced."""
    if isinstance(found, Tensor):
        return one(found)
    if isinstance(found, ActivationCache):
        return found.with_tensors({name: one(value) for name, value in found.items()})
    if isinstance(found, ExperimentResult):
        told = {name: mapped(value, one) for name, value in vars(found).items()}
        return ExperimentResult(**told)
    if isinstance(found, Mapping):
        return {name: mapped(value, one) for name, value in found.items()}
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        return type(found)(*(mapped(value, one) for value in found))
    if isinstance(found, list | tuple):
        return type(found)(mapped(value, one) for value in found)
    return found


def sweep_of(
    experiment: Experiment, cells: list[dict[str, Tensor]], base: Mapping[str, Tensor]
) -> PatchingResult:
    """The metrics of all cells as a lens gives them."""
    names = list(experiment.metrics)
    values = torch.stack([torch.stack([cell[name] for cell in cells]) for name in names])
    unpatched = torch.stack([base[name] for name in names])
    named = isinstance(experiment.metric, Mapping)
    given = experiment.sweep
    grid = Grid(
        ("cell",),
        tuple((i,) for i in range(len(cells))),
        names=tuple(map(str, given)) if isinstance(given, Mapping) else None,
    )
    return PatchingResult(
        values=values if named else values[0],
        grid=grid,
        metric_names=names,
        reduced=values.ndim == 2,
        baseline=unpatched if named else unpatched[0],
        has_metric_axis=named,
        engine="one by one: nnsight",
    )
