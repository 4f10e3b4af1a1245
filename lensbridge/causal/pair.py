"""Two inputs that are compared: checked against each other, run, and differentiated."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lensbridge.cache import ActivationCache
from lensbridge.cache.capture import Collector, Keep
from lensbridge.errors import InputError
from lensbridge.gradients import check_connected
from lensbridge.hooks import Callback, Hook
from lensbridge.patching.alignment import check_fit
from lensbridge.patching.metric import MetricFunction, Metrics, Reduce
from lensbridge.patching.unpatched import Base

if TYPE_CHECKING:
    from lensbridge.model import LensModel

Direction = Literal["denoise", "noise"]
"""denoise: the corrupted input is run, and clean values are put into it. noise: the reverse."""


@dataclass(frozen=True)
class Gradient:
    """What one pass forward and back gave.

    Args:
        logits: of the pass.
        cache: activations.
        grads: by point.
        outputs: gradients at the outputs of native modules, one for each call of the module.
    """

    logits: Tensor
    cache: ActivationCache
    grads: Mapping[str, Tensor]
    outputs: Mapping[nn.Module, Sequence[Tensor]]


@dataclass(frozen=True)
class Pair:
    """An input that is run, and another whose values are put into it.

    Args:
        model: the model, in eval mode.
        base: the input that is run and differentiated.
        other: where the values come from.
        metrics: what is measured.
    """

    model: "LensModel"
    base: Any
    other: Any
    metrics: Metrics

    @classmethod
    def of(
        cls,
        model: "LensModel",
        clean: Any,
        corrupt: Any,
        metric: MetricFunction,
        reduce: Reduce,
        direction: Direction = "denoise",
    ) -> "Pair":
        """A pair, checked as far as can be without running anything.

        Raises:
            InputError: inputs that do not lie over each other, several metrics, or an unknown word.
        """
        if direction not in ("denoise", "noise"):
            raise InputError(f"direction is 'denoise' or 'noise', not {direction!r}.")
        if isinstance(metric, Mapping):
            raise InputError("One metric at a time: each needs a backward pass of its own.")
        check_aligned(model, clean, corrupt)
        base, other = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
        return cls(model, base, other, Metrics.of(metric, reduce))

    def run_other(self, points: Iterable[str]) -> Base:
        """Run the other input; its metric has to have the right shape.

        Raises:
            InputError: the model is in training mode, or the metric gives another shape.
        """
        base = Base.run(self.model, self.other, points)
        self.metrics.baseline(base.logits)
        return base

    def differentiate(
        self,
        at: Iterable[str],
        reads: Iterable[str] = (),
        outputs: Iterable[nn.Module] = (),
        edits: Sequence[tuple[str, Callable[[Tensor], Tensor]]] = (),
    ) -> Gradient:
        """Run the base input forward and back from the metric.

        Args:
            at: points whose gradients are kept, and their values.
            reads: points whose values are kept.
            outputs: native modules at whose outputs gradients are kept.
            edits: points whose values are replaced by a function of them.
        """
        engine, wanted = self.model.engine, list(dict.fromkeys(at))
        collector = Collector(engine.sites, wanted, Keep())
        reader = Collector(engine.sites, list(dict.fromkeys(reads)), Keep())
        reader.tensors, reader.versions = collector.tensors, collector.versions
        callbacks = [Callback(name, "edit", _editing(fn), name) for name, fn in edits]
        callbacks += [*collector.callbacks(True, True), *reader.callbacks(True, False)]
        with torch.enable_grad(), Outputs(outputs) as tapped:
            logits, prepared = self.model._forward(callbacks, self.base, "logits")
            assert isinstance(logits, Tensor)
            value = self._objective(logits)
            tensors = [*collector.graph.values(), *tapped.tensors]
            found = torch.autograd.grad(value, tensors, allow_unused=True)
        full = [_filled(g, t) for g, t in zip(found, tensors, strict=True)]
        grads = dict(zip(collector.graph, full, strict=False))
        cache = self.model._cache(collector, prepared)
        return Gradient(logits.detach(), cache, grads, tapped.sorted(full[len(grads) :]))

    def _objective(self, logits: Tensor) -> Tensor:
        """The metric of every example, summed: each depends on its own example alone."""
        (function,) = self.metrics.functions.values()
        value = torch.as_tensor(function(logits))
        check_connected(value, logits)
        return value.sum()

    def measure(self, logits: Tensor) -> Tensor:
        """The metric, `[]` or `[batch]`."""
        return self.metrics.measure(logits)[0]


def check_aligned(model: "LensModel", clean: Any, corrupt: Any) -> None:
    """Refuse two inputs whose positions do not lie over each other.

    Raises:
        InputError: other lengths, with what could be aligned; or another number of examples.
    """
    prepared = [model._preparer.prepare(one) for one in (clean, corrupt)]
    rows = [one.tokens if one.tokens is not None else one.embeds for one in prepared]
    if rows[0] is None or rows[1] is None:
        return
    point = model.vocabulary.canonical("hook_embed")
    blank = [torch.empty(*row.shape[:2], 0) for row in rows if row is not None]
    cache = ActivationCache(
        {point: blank[1]}, model.vocabulary, model=model, tokens=prepared[1].tokens
    )
    check_fit(Base(model, corrupt, blank[1], cache), point, blank[0], prepared[0].tokens)
    if len(rows[0]) != len(rows[1]):
        raise InputError(
            f"{len(rows[0])} clean and {len(rows[1])} corrupted examples: they have to be as many."
        )


def _editing(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Hook], Tensor]:
    return lambda value, hook: fn(value)


def _filled(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


@dataclass
class Outputs:
    """The tensors that native modules return in one pass, to differentiate by."""

    modules: Iterable[nn.Module]
    found: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Outputs":
        for module in dict.fromkeys(self.modules):
            self.stack.callback(module.register_forward_hook(self._keep).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        live = output if output.requires_grad else output.detach().requires_grad_()
        self.found.append((module, live))
        return live.clone()  # some models clip it in place

    @property
    def tensors(self) -> list[Tensor]:
        """In the order of the calls."""
        return [tensor for _, tensor in self.found]

    def sorted(self, grads: Sequence[Tensor]) -> dict[nn.Module, list[Tensor]]:
        """Gradients by module, one for each of its calls."""
        rows: dict[nn.Module, list[Tensor]] = {}
        for (module, _), grad in zip(self.found, grads, strict=True):
            rows.setdefault(module, []).append(grad)
        return rows
