"""ProbeResult: a probe for each layer, and how well each reads the labels."""

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensbridge.analysis.frames import data_frame
from lensbridge.analysis.probes import files
from lensbridge.analysis.probes.examples import Examples, Layer, Position, examples_of
from lensbridge.analysis.probes.labels import numbers_of, score
from lensbridge.analysis.probes.probe import Probe
from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.viz.lines import Lines
from lensbridge.viz.picture import SUFFIXES, Drawn


@dataclass(frozen=True, eq=False)
class ProbeResult(Drawn):
    """A linear probe for each layer.

    Args:
        probes: by layer.
        chance: the score without reading anything: the share of the most frequent class; 0 for
            numbers, whose score is R2.
        point: the short name or name of the point, if the activations were of a cache.
        position: which token was read, if they were of a cache.
        penalty: how strongly weights were penalized.
        seed: of the splits.
    """

    probes: dict[Layer, Probe]
    chance: float
    point: str | None = None
    position: Position | None = None
    penalty: float = 1.0
    seed: int = 0

    @property
    def layers(self) -> list[Layer]:
        """The layers, in order."""
        return list(self.probes)

    @property
    def classes(self) -> tuple[Any, ...]:
        """The labels, sorted; empty if they are numbers."""
        return next(iter(self.probes.values())).classes

    @property
    def score_name(self) -> str:
        """What the scores are: "accuracy" for classes, "R2" for numbers."""
        return "accuracy" if self.classes else "R2"

    @property
    def split_scores(self) -> Tensor:
        """The score of each split. Shapes: `[layer, split]`"""
        return torch.stack([one.scores for one in self.probes.values()])

    @property
    def scores(self) -> Tensor:
        """The mean score of each layer on held-out examples. Shapes: `[layer]`"""
        return self.split_scores.mean(-1)

    @property
    def accuracy(self) -> Tensor:
        """The share of held-out examples whose class is read rightly. Shapes: `[layer]`

        Raises:
            InputError: the labels are numbers.
        """
        if not self.classes:
            raise InputError("The labels are numbers, so there is no accuracy: scores has the R2.")
        return self.scores

    @property
    def stderr(self) -> Tensor:
        """Standard error of the scores over the splits; NaN for a single split.

        Shapes: `[layer]`
        """
        found = self.split_scores
        if found.shape[1] == 1:
            return torch.full_like(found[:, 0], torch.nan)
        return found.std(-1) / found.shape[1] ** 0.5

    @property
    def best_layer(self) -> Layer:
        """The first layer with the highest score."""
        return self.layers[int(self.scores.argmax())]

    def __getitem__(self, layer: Layer) -> Probe:
        """The probe of a layer; negative numbers count from the last layer.

        Raises:
            InputError: there is none.
        """
        last = self.layers[-1]
        if isinstance(layer, int) and layer < 0 and isinstance(last, int):
            layer = last + 1 + layer
        if layer in self.probes:
            return self.probes[layer]
        raise InputError(f"There is no probe of layer {layer!r}; there are {self.layers}.")

    def __len__(self) -> int:
        return len(self.probes)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.probes)

    def __repr__(self) -> str:
        where = "" if self.point is None else f"{self.point}, "
        best = self.best_layer
        return (
            f"ProbeResult({where}{len(self)} layer{'s'[: len(self) != 1]}; best {self.score_name} "
            f"{self[best].score:.3f} at layer {best!r}, chance {self.chance:.3f})"
        )

    # --- reading -----------------------------------------------------------------------------

    def direction(self, layer: Layer | None = None, label: Any = None, unit: bool = True) -> Tensor:
        """The direction of a layer's probe: a steering vector, or a direction to ablate.

        Args:
            layer: which layer; None: the best one.
            label: the class that becomes likelier in this direction; None where there are two is
                the second one.
            unit: with length 1; otherwise the weights themselves.

        Shapes: `[*feature]`

        Example:
            >>> import lensbridge
            >>> from lensbridge.analysis import fit_probe
            >>> from lensbridge.interventions import Steer
            >>> model = lensbridge.load("demo")
            >>> texts = [f"The {one} is in the city of" for one in ("Eiffel Tower", "Galata Tower")]
            >>> _, cache = model.run_with_cache(texts * 3)
            >>> probe = fit_probe(cache, ["Paris", "Istanbul"] * 3, layers=[2], validation=2)
            >>> steer = Steer(("resid_post", 2), probe.direction(2, "Paris"))
        """
        return self._chosen(layer).direction(label, unit)

    def predict(self, activations: Any, layer: Layer | None = None) -> Any:
        """The labels that a layer's probe reads.

        Args:
            activations: of that layer, `[example, *feature]`, or a cache.
            layer: which layer; None: the best one.

        Returns:
            A tensor; for labels that are text, a list.
        """
        return self._chosen(layer).predict(self._values(activations, layer))

    def probabilities(self, activations: Any, layer: Layer | None = None) -> Tensor:
        """The probability of each class, as `predict` takes its arguments.

        Shapes: `[example, class]`
        """
        return self._chosen(layer).probabilities(self._values(activations, layer))

    def evaluate(self, activations: Any, labels: Any, layer: Layer | None = None) -> float:
        """Accuracy, or R2 of numbers, on other examples.

        Args:
            activations: as for `predict`.
            labels: one for each example.
            layer: which layer; None: the best one.
        """
        examples = self._examples(activations, layer)
        known = examples.labels(labels)
        probe = self._chosen(layer)
        values = next(iter(examples.values.values()))
        found = probe.numbers(values).cpu()
        return score(found, numbers_of(known, self.classes), bool(self.classes))

    def _chosen(self, layer: Layer | None) -> Probe:
        return self[self.best_layer if layer is None else layer]

    def _values(self, activations: Any, layer: Layer | None) -> Any:
        if not isinstance(activations, ActivationCache):
            return activations
        return next(iter(self._examples(activations, layer).values.values()))

    def _examples(self, activations: Any, layer: Layer | None) -> Examples:
        layer = self.best_layer if layer is None else layer
        if not isinstance(activations, ActivationCache):
            return Examples({layer: torch.as_tensor(activations)})
        if self.point is None or self.position is None:
            raise InputError(
                "This probe was not fitted to a cache, so it is not known what to read of one. "
                "Pass the activations."
            )
        asked = None if "." in self.point else [layer]
        return examples_of(activations, self.point, asked, self.position)  # type: ignore[arg-type]

    # --- pictures, tables and files ----------------------------------------------------------

    def plot(self, title: str = "") -> Lines:
        """The score of each layer as a line, with its standard error and the level of chance.

        Args:
            title: above the picture.
        """
        name = self.score_name
        several = self.split_scores.shape[1] > 1
        where = "" if self.point is None else f" of {self.point}"
        return Lines(
            title or f"{name} of a linear probe{where}",
            {name: self.scores.tolist()},
            [str(layer) for layer in self.layers],
            axes=("layer", f"{name} on held-out examples"),
            errors={name: self.stderr.tolist()} if several else {},
            reference=(self.chance, "chance"),
        )

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with a row for each layer and split.

        Raises:
            LensbridgeError: pandas is not installed.
        """
        return data_frame(
            {"layer": layer, "split": split, self.score_name: value}
            for layer, probe in self.probes.items()
            for split, value in enumerate(probe.scores.tolist())
        )

    def save(self, path: str | PathLike[str], **options: Any) -> Path:
        """Write the probes to a `.safetensors` file, or their picture to `.html`, `.svg`, `.png`
        or `.pdf`.

        Args:
            path: the file; its ending says which.
            options: those of `plot`, for a picture.

        Returns:
            The path.

        Raises:
            InputError: another ending, or there is no such folder.
        """
        path = Path(path)
        if path.suffix in SUFFIXES:
            return super().save(path, **options)
        if path.suffix != ".safetensors" or options:
            raise InputError(
                f"Probes are saved as .safetensors, and their picture as {', '.join(SUFFIXES)}; "
                f"{path.name!r} with the options {list(options)} is neither."
            )
        about = {
            "chance": self.chance,
            "point": self.point,
            "position": self.position,
            "penalty": self.penalty,
            "seed": self.seed,
        }
        files.save(self.probes, about, path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "ProbeResult":
        """Read probes from a file.

        Raises:
            InputError: it is no file of probes.
        """
        probes, about = files.load(path)
        return cls(probes, **about)
