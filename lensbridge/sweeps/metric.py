"""Metrics: functions of a run's logits that give one number, or one for each example."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.metrics import BoundMetric, bound

MetricFunction: TypeAlias = Callable[[Tensor], Any]
"""Maps logits `[batch, pos, d_vocab]` to a number, or to one for each example."""

Reduce = Literal["scalar", "mean", "none"]
"""What a metric gives, and what is done with it. scalar: one number for the batch. mean: one for
each example; they are averaged. none: one for each example; they are kept."""


@dataclass(frozen=True)
class Metrics:
    """The metrics of a sweep.

    Args:
        functions: by name; each maps logits `[batch, pos, d_vocab]` to a scalar or to `[batch]`.
        reduce: which of the two, and whether examples are averaged.
        named: whether the user gave names, so that the result has an axis for them.
        copied: metrics that are given a copy of the logits, because they write into them.
    """

    functions: Mapping[str, MetricFunction]
    reduce: Reduce
    named: bool
    copied: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        given: "MetricFunction | Mapping[str, MetricFunction]",
        reduce: Reduce,
        model: HookedModel | None = None,
        input: Any = None,
    ) -> "Metrics":
        """Metrics from a function, or from several by name.

        Args:
            given: functions of logits, or declared metrics.
            reduce: what each gives; a declared metric gives what is asked for.
            model: the model that is run; None: declared metrics are not bound.
            input: what it is run on, for the tokens and the padding of declared metrics.

        Raises:
            InputError: no metric, one that is no function, or an unknown `reduce`.
            TokenError: a text of a declared metric is not one token.
        """
        if reduce not in ("scalar", "mean", "none"):
            raise InputError(f"reduce is 'scalar', 'mean' or 'none', not {reduce!r}.")
        named = isinstance(given, Mapping)
        functions = dict(given) if isinstance(given, Mapping) else {"metric": given}
        if not functions:
            raise InputError("The mapping of metrics is empty: there is nothing to measure.")
        for name, function in functions.items():
            if not callable(function):
                raise InputError(
                    f"A metric is a function of logits; {name!r} is a {type(function).__name__}."
                )
        if model is not None:
            functions = bound(model, input, functions)
        declared = [one for one in functions.values() if isinstance(one, BoundMetric)]
        if reduce != "scalar":
            return cls({name: _apart(one) for name, one in functions.items()}, reduce, named)
        keep = len(declared) == len(functions) and all(one.keeps_examples for one in declared)
        return cls(functions, "none" if keep else reduce, named)

    @property
    def names(self) -> list[str]:
        """Names of the metrics, in their order."""
        return list(self.functions)

    @property
    def per_example(self) -> bool:
        """Whether each metric gives one number for each example."""
        return self.reduce != "scalar"

    def measure(self, logits: Tensor) -> Tensor:
        """Every metric of one run.

        Shapes: `[batch, pos, d_vocab]` -> `[metric]`, or `[metric, batch]` per example; float32, or
            float64 where a metric gives that.

        Raises:
            InputError: a value of another shape than `reduce` says.
        """
        values = [self._value(name, logits).detach().to(logits.device) for name in self.functions]
        dtype = reduce(torch.promote_types, (value.dtype for value in values), torch.float32)
        return torch.stack([value.to(dtype) for value in values])

    def _value(self, name: str, logits: Tensor) -> Tensor:
        value = self._number(name, logits)
        batch = logits.shape[0]
        if self.per_example and tuple(value.shape) != (batch,):
            raise InputError(
                f"The metric {name!r} gives shape {tuple(value.shape)}; with "
                f"reduce={self.reduce!r} it has to give one number for each example, ({batch},)."
            )
        if not self.per_example and value.ndim:
            raise InputError(
                f"The metric {name!r} gives shape {tuple(value.shape)}; with reduce='scalar' it "
                "has to give one number. Average it, or pass reduce='mean' (averaged here) or "
                "reduce='none' (one number for each example is kept)."
            )
        return value

    def called(self, name: str, logits: Tensor) -> Any:
        """What one metric returns, whether or not it is a number.

        Raises:
            InputError: it reads a place that the logits lack, or writes where others read.
        """
        is_copy = name in self.copied or logits.is_inference()
        given = logits.clone() if is_copy else logits
        before = _version(given)
        try:
            value = self.functions[name](given)
        except IndexError as error:
            raise InputError(
                f"The metric {name!r} reads a place that the logits do not have; they are "
                f"[batch, pos, d_vocab] = {list(logits.shape)}: {error}"
            ) from error
        if _version(given) == before:
            self.copied.discard(name)
        elif not is_copy:
            raise InputError(
                f"The metric {name!r} writes into the logits that it is given, in some cells and "
                "in others not. Let it write into a copy: logits.clone()."
            )
        return value

    def _number(self, name: str, logits: Tensor) -> Tensor:
        value = self.called(name, logits)
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"The metric {name!r} gives a {type(value).__name__}; it has to give a number, or "
                "one for each example."
            ) from error

    def try_on(self, logits: Tensor) -> None:
        """Call each metric once, so that one that fails does so before anything is patched.

        Raises:
            InputError: one reads a place that the logits lack.
        """
        self.copied.update(self.functions)
        for name in self.names:
            self.called(name, logits)

    def baseline(self, logits: Tensor) -> Tensor:
        """The metrics of the unpatched run, which must not be NaN.

        Raises:
            InputError: a wrong shape, or NaN.
        """
        self.copied.update(self.functions)  # until they are seen not to write into them
        values = self.measure(logits)
        pairs = zip(self.names, values, strict=True)
        wrong = [name for name, value in pairs if value.isnan().any()]
        if wrong:
            raise InputError(
                f"The metric {wrong[0]!r} of the unpatched run is NaN, so nothing can be compared "
                "with it. Check what it divides by and which positions it reads."
            )
        return values


def _apart(metric: Any) -> Any:
    """A declared metric that gives a number for each example; a function as it is."""
    return metric.reduced("none") if isinstance(metric, BoundMetric) else metric


def _version(logits: Tensor) -> int:
    """How often a tensor was written to; 0 for inference tensors, where torch does not count."""
    return 0 if logits.is_inference() else logits._version
