"""A run forward and back: what is differentiated, and the gradients that are kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.capture import Collector, Keep
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel, LogitsAndLoss
from lensbridge.inputs.prepare import Prepared
from lensbridge.metrics import Metric, run_of
from lensbridge.native.kv_cache import SAID
from lensbridge.points.point_names import NamesFilter, names_points

Objective: TypeAlias = (
    Callable[[Tensor], Tensor] | Callable[[ActivationCache], Tensor] | Literal["loss"]
)
"""What is differentiated: a function that gives one number, of the logits or of activations; or
the loss."""


def number_of(of: Callable[[Any], Any], given: "Tensor | ActivationCache") -> Tensor:
    """The value of an objective; it must be one number with a gradient.

    Args:
        of: the objective.
        given: its argument: logits, or activations.

    Raises:
        InputError: not one number, a number without a gradient, or an index out of range.
    """
    try:
        value = of(given)
    except IndexError as error:
        raise InputError(
            f"The objective failed: index out of range; {_shapes(given)}: {error}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"The objective must give one number, and it gives {found}. Sum or average it."
        )
    check_connected(value, given)
    return value.reshape(())


def _shapes(given: "Tensor | ActivationCache") -> str:
    if isinstance(given, Tensor):
        return f"the logits are [batch, pos, d_vocab] = {list(given.shape)}"
    if not isinstance(given, Mapping):
        return ", ".join(f"[{', '.join(map(str, one.shape))}]" for one in _tensors_in(given))
    return ", ".join(f"{name} is {list(value.shape)}" for name, value in given.items())


def _tensors_in(given: Any) -> list[Tensor]:
    """What an objective is given: logits, activations, or a plain module's output."""
    if isinstance(given, Tensor):
        return [given]
    held = given.values() if isinstance(given, Mapping) else given
    items = held if isinstance(held, Iterable) else vars(held).values()
    return [one for one in items if isinstance(one, Tensor)]


def require_autograd() -> None:
    """Refuse to start inside `torch.inference_mode()`, where autograd records nothing.

    Raises:
        InputError: inside `torch.inference_mode()`.
    """
    if torch.is_inference_mode_enabled():
        raise InputError(
            "Nothing inside torch.inference_mode() has gradients. Leave it, or use "
            "torch.no_grad(), inside which gradients can be asked for."
        )


def differentiable(names: Sequence[str], required: bool) -> list[str]:
    """The points that can have gradients: all but those that hold whole numbers.

    Raises:
        InputError: a point that was named can have none.
    """
    whole = [name for name in names if name.endswith("hook_expert_indices")]
    if whole and required:
        raise InputError(
            f"{whole[0]} holds the indices of the chosen experts, which have no gradient; "
            "hook_expert_weights and hook_router_logits have one."
        )
    return [name for name in names if name not in whole]


def check_connected(value: Tensor, given: "Tensor | ActivationCache") -> None:
    """Refuse a value that autograd cannot follow back to the argument of the objective.

    Raises:
        InputError: autograd cannot.
    """
    sources = _tensors_in(given)
    if any(one.requires_grad for one in sources) and not value.requires_grad:
        what = "the logits" if isinstance(given, Tensor) else "the activations"
        raise InputError(
            f"The objective has no gradient with respect to {what}: detach, item, argmax, no_grad "
            "or numpy in it cuts the graph."
        )


@dataclass(frozen=True)
class Backward:
    """What is differentiated, and which gradients are kept."""

    model: HookedModel
    of: Any
    targets: Sequence[str]
    keep: Keep
    required: bool

    @classmethod
    def of_points(
        cls, model: HookedModel, of: Any, at: NamesFilter, keep: Keep, asked: NamesFilter
    ) -> "Backward":
        """Gradients of a function of the logits (or the loss), or of activations `at` points.

        Raises:
            InputError: the loss with `at`, or something that is no objective.
        """
        require_autograd()
        if of != "loss" and not callable(of):
            raise InputError(f"of is a function that gives one number, or 'loss'; not {of!r}.")
        if at is not None and isinstance(of, Metric):
            raise InputError(f"{of!r} is a function of the logits: leave at=... out.")
        if at is not None and of == "loss":
            raise InputError("of='loss' is a function of the logits: with at=... pass of=....")
        targets = [] if at is None else model.vocabulary.select(at)
        return cls(model, of, targets, keep, names_points(asked))

    def run(
        self, input: Any, names: Sequence[str], forward: dict[str, Any]
    ) -> tuple[Tensor, ActivationCache]:
        """The number, and a cache of activations and of gradients, whose names end with `GRAD`."""
        return self.runs(input, names, forward, [self.of])[0]

    def runs(
        self, input: Any, names: Sequence[str], forward: dict[str, Any], several: Sequence[Any]
    ) -> list[tuple[Tensor, ActivationCache]]:
        """The same of several objectives: one run forward, and one back for each."""
        kept = self.model.collector(names, self.keep)
        live = self.model.collector(self.targets, Keep(detach=False))
        callbacks = [*kept.callbacks(self.required, True), *live.callbacks(True, False)]
        options = {**without_cache(self.model, said_by(input, forward)), **forward}
        kind: Any = None if self.targets else _asked(several)
        with torch.enable_grad():
            result, prepared = self.model.run_callbacks(callbacks, input, kind, **options)
            values = [self._number(of, result, live, prepared) for of in several]
            found: list[tuple[Tensor, ActivationCache]] = []
            for value in values:
                kept.backward(value, again=len(found) + 1 < len(values))
                found.append((value.detach(), self.model.cache_of(kept, prepared)))
        return found

    def _number(self, of: Any, result: Any, live: Collector, prepared: Prepared) -> Tensor:
        if self.targets:
            return number_of(of, self.model.cache_of(live, prepared))
        both = isinstance(result, LogitsAndLoss)
        if of == "loss":
            return number_of(lambda loss: loss, result.loss if both else result)
        if isinstance(of, Metric):
            of = of.bound(run_of(self.model, prepared))
        return number_of(of, result.logits if both else result)


def _asked(several: Sequence[Any]) -> Any:
    """What a run has to give for some objectives."""
    losses = [of == "loss" for of in several]
    return "loss" if all(losses) else "both" if any(losses) else "logits"


def without_cache(model: HookedModel, said: Iterable[str]) -> dict[str, Any]:
    """Options that turn off the cache of keys, values and states: some models write to it in place.

    Args:
        model: the model.
        said: the names of the options that the caller passed; these are left alone.
    """
    own = {"use_cache", *SAID} & set(said)
    unwanted = "use_cache" in model.preparer.accepted and not own
    return {"use_cache": False} if unwanted else {}


def said_by(input: Any, forward: Mapping[str, Any]) -> list[str]:
    """The names of the options that a call passes, in its input or as keywords."""
    return [*forward, *(input if isinstance(input, Mapping) else ())]
