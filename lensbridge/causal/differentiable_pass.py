"""DifferentiablePass: a forward pass whose graph is kept, to run backward from several metrics."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.cache import ActivationCache
from lensbridge.cache.capture import Collector, Keep
from lensbridge.causal.gradient_gates import GradientGates
from lensbridge.errors import InputError
from lensbridge.gradients.backward import check_connected, said_by, without_cache
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Callback, Hook
from lensbridge.sweeps.metric import MetricFunction

Edits = Sequence[tuple[str, Callable[[Tensor], Tensor]]]


@dataclass(frozen=True)
class Gradient:
    """The gradients of one backward pass, with the activations of the forward pass.

    Args:
        metric: the name of the metric that was differentiated.
        closed: prefix of the layer whose branches were left out, or None.
        cache: activations.
        grads: gradients by point.
        outputs: gradients at the outputs of native modules, one for each call of the module.
    """

    metric: str
    closed: str | None
    cache: ActivationCache
    grads: Mapping[str, Tensor]
    outputs: Mapping[nn.Module, Sequence[Tensor]]


@dataclass(frozen=True)
class DifferentiablePass:
    """A forward pass whose autograd graph is kept.

    Args:
        logits: its logits.
        cache: its activations.
        graph: activations in the graph at which gradients are kept, by point.
        outputs: outputs of native modules in the graph.
        gates: layers that a backward pass can leave out.
    """

    logits: Tensor
    cache: ActivationCache
    graph: Mapping[str, Tensor]
    outputs: "Outputs"
    gates: GradientGates

    @classmethod
    def run(
        cls,
        model: HookedModel,
        given: Any,
        at: Iterable[str],
        reads: Iterable[str] = (),
        modules: Iterable[nn.Module] = (),
        edits: Edits = (),
        gates: GradientGates | None = None,
    ) -> "DifferentiablePass":
        """Run an input forward.

        Args:
            model: the model.
            given: the input.
            at: points whose gradients and values are kept.
            reads: points whose values are kept.
            modules: native modules at whose outputs gradients are kept.
            edits: points, and the functions that their values are passed through.
            gates: layers that a backward pass can leave out.

        Raises:
            InputError: torch.inference_mode is on.
        """
        if torch.is_inference_mode_enabled():
            raise InputError(
                "Attribution needs gradients, which torch.inference_mode does not allow. Leave it "
                "and make the input outside of it; torch.no_grad does no harm."
            )
        gates = GradientGates({}) if gates is None else gates
        engine, wanted = model.engine, list(dict.fromkeys(at))
        collector = Collector(engine.sites, wanted, Keep())
        reader = Collector(engine.sites, list(dict.fromkeys(reads)), Keep())
        reader.tensors, reader.versions = collector.tensors, collector.versions
        callbacks = [Callback(name, "edit", _editing(fn), name) for name, fn in edits]
        callbacks += [*collector.callbacks(True, True), *reader.callbacks(True, False)]
        callbacks += gates.callbacks
        options = without_cache(model, said_by(given, {}))
        with torch.enable_grad(), Outputs(modules) as tapped:
            logits, prepared = model.run_callbacks(callbacks, given, "logits", **options)
        return cls(logits, model.cache_of(collector, prepared), collector.graph, tapped, gates)

    def back(
        self, functions: Mapping[str, MetricFunction], *, drop: bool = False
    ) -> Iterator[Gradient]:
        """A backward pass for each metric; with gates, one for each metric and closed layer.

        Raises:
            InputError: a metric has no gradient.
        """
        closed = self.gates.passed if drop else [None]
        passes = [(name, layer) for name in functions for layer in closed]
        for i, (name, layer) in enumerate(passes):
            with self.gates.closing(layer):
                grads = self._grads(functions[name], retain=i + 1 < len(passes))
            points = dict(zip(self.graph, grads, strict=False))
            outputs = self.outputs.sorted(grads[len(self.graph) :])
            yield Gradient(name, layer, self.cache, points, outputs)

    def _grads(self, function: MetricFunction, retain: bool) -> list[Tensor]:
        """Gradients of the sum over examples: each metric depends on its own example alone."""
        tensors, reached = [*self.graph.values(), *self.outputs.tensors], list[bool]()
        watch = self.logits.register_hook(lambda grad: reached.append(True))
        try:
            with torch.enable_grad():
                value = torch.as_tensor(function(self.logits))
                check_connected(value, self.logits)
                found = torch.autograd.grad(
                    value.sum(), tensors, allow_unused=True, retain_graph=retain
                )
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            raise InputError(_OVERWRITTEN) from error
        finally:
            watch.remove()
        if not reached:
            raise InputError(
                "The metric does not depend on the logits that it is called with, so it has no "
                "gradient. Compute it from its argument, without detach or item."
            )
        return [_filled(g, t) for g, t in zip(found, tensors, strict=True)]


_OVERWRITTEN = (
    "The model writes to tensors that its gradient needs, such as a state or a cache that it "
    "updates in place. Pass inputs without past_key_values or use_cache."
)


def _editing(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Hook], Tensor]:
    return lambda value, hook: fn(value)


def _filled(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


@dataclass
class Outputs:
    """The tensors that native modules return in one pass, kept for gradients at them."""

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
        """The tensors in the order of the calls."""
        return [tensor for _, tensor in self.found]

    def sorted(self, grads: Sequence[Tensor]) -> dict[nn.Module, list[Tensor]]:
        """Gradients by module, one for each of its calls."""
        rows: dict[nn.Module, list[Tensor]] = {}
        for (module, _), grad in zip(self.found, grads, strict=True):
            rows.setdefault(module, []).append(grad)
        return rows
