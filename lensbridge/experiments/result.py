"""ExperimentResult: what an experiment gives, whichever engine ran it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.owner import CachedModel
from lensbridge.errors import InputError
from lensbridge.experiments import stored
from lensbridge.sweeps.result import PatchingResult

GradientsOf: TypeAlias = "ActivationCache | dict[str, ActivationCache]"
"""The gradients of one metric, or those of each metric by its name."""


@dataclass(frozen=True, eq=False, repr=False)
class ExperimentResult:
    """What an experiment gives. What was not asked for is None, or empty.

    Args:
        logits: of the run, `[batch, pos, d_vocab]`.
        loss: of the run, `[]`.
        cache: the activations at the points.
        metrics: by name ("metric" for one without a name), `[]`, or `[batch]` for a metric with
            `reduce="none"`.
        sweep: what `model.sweep` gives, with the metrics of the run without cells as its baseline.
        gradients: a cache of the gradients of the metric, with the names of the points; of several
            metrics one cache for each by name.
        tokens: inputs and what was generated after them, as ids `[batch, pos]`.
        text: the same as text; for several inputs a list. None where there is no tokenizer.
        engine: who ran it.
    """

    logits: Tensor | None = None
    loss: Tensor | None = None
    cache: ActivationCache | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    sweep: PatchingResult | None = None
    gradients: "GradientsOf | None" = None
    tokens: Tensor | None = None
    text: "str | list[str] | None" = None
    engine: str = "lensbridge"

    @property
    def metric(self) -> Tensor:
        """The metric, where there is one.

        Raises:
            InputError: there are none or several.
        """
        if len(self.metrics) != 1:
            raise InputError(
                f"There are {len(self.metrics)} metrics. Take one: result.metrics[name]; the names "
                f"are {list(self.metrics)}."
            )
        return next(iter(self.metrics.values()))

    def save(self, path: str | Path) -> None:
        """Write the result to a safetensors file. Every dtype is kept.

        Args:
            path: of the file.

        Raises:
            InputError: the folder does not exist, or the path is a folder.
        """
        stored.save(self, path)

    @classmethod
    def load(cls, path: str | Path, model: CachedModel | None = None) -> "ExperimentResult":
        """Read a result from a file that `save` wrote.

        Args:
            path: of the file.
            model: the model that was run, for the methods of caches that need weights.

        Raises:
            InputError: there is no file, or it is no result.
        """
        return cls(**stored.load(path, model))

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes: what a server sends."""
        return stored.to_bytes(self)

    @classmethod
    def from_bytes(cls, data: bytes, model: CachedModel | None = None) -> "ExperimentResult":
        """A result from what `to_bytes` gave.

        Args:
            data: the bytes.
            model: the model that was run, for the methods of caches that need weights.

        Raises:
            InputError: the bytes are no result.
        """
        return cls(**stored.from_bytes(data, model))

    def __repr__(self) -> str:
        return f"ExperimentResult({', '.join(self._told())})"

    def _told(self) -> list[str]:
        told: list[str] = []
        if self.logits is not None:
            told.append(f"logits {list(self.logits.shape)}")
        if self.loss is not None:
            told.append(f"loss {self.loss.item():.4f}")
        if self.cache is not None:
            told.append(f"cache of {len(self.cache)}")
        for name, value in self.metrics.items():
            told.append(f"{name} {_shown(value)}")
        if self.sweep is not None:
            told.append(f"sweep {list(self.sweep.values.shape)}")
        if self.gradients is not None:
            told.append("gradients")
        if self.text is not None or self.tokens is not None:
            told.append(f"text {self.text!r}" if self.text is not None else "tokens")
        return told


def _shown(value: Any) -> str:
    return f"{value.item():.4f}" if value.numel() == 1 else str(list(value.shape))
