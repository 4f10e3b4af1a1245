"""Experiment: what is run and what is measured, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lensbridge.errors import UnsupportedError
from lensbridge.experiments import document
from lensbridge.experiments import fields as normal
from lensbridge.interventions.intervention import Intervention
from lensbridge.metrics import Metric
from lensbridge.points.point_names import NamesFilter
from lensbridge.tensors.slices import PosSlice

Returned: TypeAlias = Literal["logits", "loss"]
"""What a result has besides what is asked for by name."""

PARTS = ("points", "interventions", "metric", "sweep", "gradients", "generate")
"""What an experiment may ask an engine for, besides a run."""


@dataclass(frozen=True, eq=False, repr=False)
class Experiment:
    """What is run and what is measured, as data: every engine takes it and gives the same result.

    `model.run(experiment)` runs it here; a server, vLLM and nnsight run the same one elsewhere.
    Nothing in it is a function, so it can be written to JSON and sent.

    Args:
        inputs: a text, a list of texts, ids `[pos]` or `[batch, pos]`, messages of a chat, or a
            tokenizer's output.
        points: whose activations are kept, in every form of a `names_filter` but a function. None:
            no activation; "*": all.
        interventions: those of `lensbridge.interventions` that are in force in every run.
        metric: a declared metric (`LogitDiff`, `LogProb`, `KL`...) or "loss", or several by name.
        sweep: cells, each an intervention or a list of several: one run for each, measured by the
            metric. A mapping gives each cell a name.
        gradients: points at which the gradients of the metric are kept.
        generate: options of `model.generate`, such as `{"max_new_tokens": 8}`: the inputs are
            continued.
        pos_slice: which positions of the activations and gradients are kept.
        returns: "logits" and "loss", if they are wanted. Logits of long texts are large.
        prepend_bos: BOS before text; None means the default.

    Raises:
        InputError: a part that is no data, or that needs another one.

    Example:
        >>> import lensbridge
        >>> from lensbridge.experiments import LogitDiff
        >>> from lensbridge.interventions import Zero
        >>> experiment = lensbridge.Experiment(
        ...     "The Eiffel Tower is in the city of",
        ...     points=[("resid_post", -1)],
        ...     interventions=[Zero(("z", 1), heads=3)],
        ...     metric=LogitDiff(" Paris", " Rome"),
        ... )
        >>> result = lensbridge.load("demo").run(experiment)
        >>> result.cache["resid_post", -1].shape
        torch.Size([1, 9, 128])
        >>> lensbridge.Experiment.from_json(experiment.to_json()) == experiment
        True
    """

    inputs: Any
    points: NamesFilter = None
    interventions: "Intervention | Sequence[Intervention]" = ()
    metric: "Metric | Mapping[str, Metric] | str | None" = None
    sweep: Any = None
    gradients: NamesFilter = None
    generate: "Mapping[str, Any] | None" = None
    pos_slice: PosSlice = None
    returns: tuple[Returned, ...] = ("logits",)
    prepend_bos: bool | None = None

    def __post_init__(self) -> None:
        for name, value in normal.normalized(self).items():
            object.__setattr__(self, name, value)

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name; one without a name is called "metric"."""
        if self.metric is None:
            return {}
        given: Any = self.metric
        return dict(given) if isinstance(given, Mapping) else {"metric": given}

    @property
    def edits(self) -> tuple[Intervention, ...]:
        """The interventions, as a tuple also for types."""
        given = self.interventions
        return (given,) if isinstance(given, Intervention) else tuple(given)

    @property
    def cells(self) -> list[tuple[Intervention, ...]]:
        """The interventions of each cell of the sweep; none if nothing is swept."""
        given = self.sweep.values() if isinstance(self.sweep, Mapping) else self.sweep or ()
        return [(one,) if isinstance(one, Intervention) else tuple(one) for one in given]

    @property
    def cell_names(self) -> tuple[str, ...] | None:
        """The names of the cells, if they have any."""
        return tuple(self.sweep) if isinstance(self.sweep, Mapping) else None

    @property
    def parts(self) -> tuple[str, ...]:
        """What it asks an engine for besides a run: of "points", "interventions", "metric",
        "sweep", "gradients" and "generate", those that are set."""
        return tuple(name for name in PARTS if getattr(self, name))

    def require(self, engine: str, lacking: Mapping[str, str]) -> None:
        """Refuse the experiment for an engine that lacks some of its parts, before anything runs.

        Args:
            engine: what it is called in the message.
            lacking: the parts that it lacks, each with the reason.

        Raises:
            UnsupportedError: the experiment asks for one of them.
        """
        for part in self.parts:
            if part in lacking:
                has = ", ".join(one for one in PARTS if one not in lacking) or "plain runs"
                raise UnsupportedError(
                    f"The experiment asks for {part}, which {engine} does not have: "
                    f"{lacking[part]}. It has {has}. Leave {part} out, or run the experiment with "
                    "lensbridge.load(...).run(experiment)."
                )

    def to_json(self, tensors: str | Path | None = None) -> str:
        """The experiment as JSON.

        Args:
            tensors: a safetensors file to write tensors to; None: they go into the text, as base64.

        Raises:
            InputError: a site of an intervention is a function.
        """
        return document.to_json(self, tensors)

    @classmethod
    def from_json(cls, text: str, tensors: str | Path | None = None) -> "Experiment":
        """An experiment from what `to_json` wrote, or from JSON of the same form.

        Args:
            text: the JSON.
            tensors: the safetensors file, if the tensors are in one.

        Raises:
            InputError: the text is no experiment, and what is wrong with it.
        """
        return cls(**document.from_json(text, tensors))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Experiment):
            return NotImplemented
        return self is other or self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        told = {one.name: getattr(self, one.name) for one in fields(self)}
        default = {one.name: one.default for one in fields(self)}
        said = [f"{k}={v!r}" for k, v in told.items() if k != "inputs" and v != default[k]]
        return f"Experiment({', '.join([repr(self.inputs), *said])})"
