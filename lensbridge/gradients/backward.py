"""A run forward and back: what is differentiated, and the gradients that are kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.capture import Collector, Keep
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prepare import Prepared
from lensbridge.points.point_names import NamesFilter, names_points

Objective: TypeAlias = (
    Callable[[Tensor], Tensor] | Callable[[ActivationCache], Tensor] | Literal["loss"]
)
"""What is differentiated: a function that gives one number, of the logits or of activations; or
the loss."""


def number_of(of: Callable[[Any], Any], given: "Tensor | ActivationCache") -> Tensor:
    """An objective's value, which has to be one number that gradients can flow from.

    Args:
        of: the objective.
        given: what it is of: logits, or activations.

    Raises:
        InputError: another shape, cut off from what it is of, or of a place that is not there.
    """
    try:
        value = of(given)
    except IndexError as error:
        raise InputError(
            f"The objective reads a place that is not there; {_shapes(given)}: {error}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"Gradients are of one number; the objective gives {found}. Sum or average it."
        )
    check_connected(value, given)
    return value.reshape(())


def _shapes(given: "Tensor | ActivationCache") -> str:
    if isinstance(given, Tensor):
        return f"the logits are [batch, pos, d_vocab] = {list(given.shape)}"
    return ", ".join(f"{name} is {list(value.shape)}" for name, value in given.items())


def require_autograd() -> None:
    """Refuse to start where autograd records nothing, whatever is asked of it.

    Raises:
        InputError: inside `torch.inference_mode()`.
    """
    if torch.is_inference_mode_enabled():
        raise InputError(
            "Nothing inside torch.inference_mode() has gradients. Leave it, or use "
            "torch.no_grad(), inside which gradients can be asked for."
        )


def differentiable(names: Sequence[str], required: bool) -> list[str]:
    """The points of some that have gradients: not those of whole numbers.

    Raises:
        InputError: one that was named has none.
    """
    whole = [name for name in names if name.endswith("hook_expert_indices")]
    if whole and required:
        raise InputError(
            f"{whole[0]} holds the numbers of the chosen experts, which have no gradient; "
            "hook_expert_weights and hook_router_logits have one."
        )
    return [name for name in names if name not in whole]


def check_connected(value: Tensor, given: "Tensor | ActivationCache") -> None:
    """Refuse a value that autograd cannot follow back to what it is of.

    Raises:
        InputError: it is cut off.
    """
    sources = [given] if isinstance(given, Tensor) else list(given.values())
    if any(one.requires_grad for one in sources) and not value.requires_grad:
        what = "the logits" if isinstance(given, Tensor) else "the activations"
        raise InputError(
            f"The objective is cut off from {what} (detach, item, argmax, no_grad or numpy in "
            "it), so it has no gradient."
        )


@dataclass(frozen=True)
class Backward:
    """What is differentiated, and what is kept."""

    model: HookedModel
    of: Any
    targets: Sequence[str]
    keep: Keep
    required: bool

    @classmethod
    def of_points(
        cls, model: HookedModel, of: Any, at: NamesFilter, keep: Keep, asked: NamesFilter
    ) -> "Backward":
        """Of the logits (or the loss), or `at` some points.

        Raises:
            InputError: a loss of points.
        """
        require_autograd()
        if of != "loss" and not callable(of):
            raise InputError(f"of is a function that gives one number, or 'loss'; not {of!r}.")
        if at is not None and of == "loss":
            raise InputError("The loss is of the logits: pass of=... with at=....")
        targets = [] if at is None else model.vocabulary.select(at)
        return cls(model, of, targets, keep, names_points(asked))

    def run(
        self, input: Any, names: Sequence[str], forward: dict[str, Any]
    ) -> tuple[Tensor, ActivationCache]:
        """The number, and activations with gradients, which have `GRAD` behind their names."""
        sites = self.model.engine.sites
        kept = Collector(sites, names, self.keep)
        live = Collector(sites, self.targets, Keep(detach=False))
        callbacks = [*kept.callbacks(self.required, True), *live.callbacks(True, False)]
        options = {**without_cache(self.model, said_by(input, forward)), **forward}
        kind: Any = None if self.targets else ("loss" if self.of == "loss" else "logits")
        with torch.enable_grad():
            result, prepared = self.model.run_callbacks(callbacks, input, kind, **options)
            value = self._number(result, live, prepared)
            kept.backward(value)
        return value.detach(), self.model.cache_of(kept, prepared)

    def _number(self, result: Any, live: Collector, prepared: Prepared) -> Tensor:
        if self.targets:
            return number_of(self.of, self.model.cache_of(live, prepared))
        return number_of((lambda loss: loss) if self.of == "loss" else self.of, result)


def without_cache(model: HookedModel, said: Iterable[str]) -> dict[str, Any]:
    """No keys, values or states are kept: some models write to them in place.

    Args:
        model: the model.
        said: the names of what a call says, which counts.
    """
    own = {"use_cache", "past_key_values"} & set(said)
    unwanted = "use_cache" in model.preparer.accepted and not own
    return {"use_cache": False} if unwanted else {}


def said_by(input: Any, forward: Mapping[str, Any]) -> list[str]:
    """The names of what a call says, in its input or beside it."""
    return [*forward, *(input if isinstance(input, Mapping) else ())]
