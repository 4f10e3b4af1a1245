"""A rehearsal: the run of a model, with its hooks and its cache, on tensors without values."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lensbridge.errors import InputError, LensbridgeError
from lensbridge.hooks.engine import Engine
from lensbridge.inputs.prepare import Prepared, Preparer
from lensbridge.native.config import LensConfig
from lensbridge.native.fsdp import is_fully_sharded
from lensbridge.native.holding import execution_device
from lensbridge.native.parts import ResolvedModel
from lensbridge.plans.footprint import Footprint
from lensbridge.plans.guesses import Guesses
from lensbridge.plans.plan import Plan, PlannedValue, storage_of, stored_bytes
from lensbridge.plans.shapes import completed, input_of, is_shape
from lensbridge.plans.twin import WithoutValues, mode_of, twin_of
from lensbridge.points.point_names import NamesFilter

RUN_OPTIONS = ("loss_per_token", "start_at_layer", "stop_at_layer", "labels", "tokens")
"""What a run takes beside its input; the rest belongs to the input."""


class Runnable(Protocol):
    """A model that runs with a cache; `HookedModel` is one."""

    hf_model: nn.Module
    native: ResolvedModel
    engine: Engine
    preparer: Any

    @property
    def cfg(self) -> LensConfig:
        """The sizes and choices of the model."""

    def prepare(self, input: Any, **options: Any) -> Prepared:
        """An input as the native forward takes it."""

    def run_with_cache(self, input: Any, names_filter: NamesFilter = None, **options: Any) -> Any:
        """The result, and the activations."""

    def _on(self, hf_model: nn.Module) -> Any:
        """A lens like this one on another model."""


@dataclass(frozen=True)
class Given(Preparer):
    """A preparer of one input, which is prepared."""

    prepared: Prepared

    def prepare(self, given: Any, **options: Any) -> Prepared:
        """The input."""
        return self.prepared


def rehearse(
    model: Runnable, input: Any, names_filter: NamesFilter, keep: Mapping[str, Any], **forward: Any
) -> Plan:
    """What `run_with_cache` would keep, from a run on tensors without values.

    Args:
        model: is not run.
        input: as in `run_with_cache`, or a shape `(batch, tokens)`.
        names_filter: as in `run_with_cache`.
        keep: how activations are kept: the options of `run_with_cache`.
        forward: the options of `forward`.

    Raises:
        InputError: the input cannot be run, or what is kept depends on values.
    """
    _refuse_sharded(model.hf_model)
    run = {name: forward.pop(name) for name in RUN_OPTIONS if name in forward}
    if is_shape(input):
        forward = completed(model.native, input, forward)
        input = input_of(model.native, input, run.get("start_at_layer"))
    prepared = model.prepare(input, **forward)
    without = WithoutValues(mode_of(model.hf_model))
    twin = _twin(model, prepared, without)
    run, guesses = without.copy(run), Guesses(model.cfg.n_experts)
    try:
        with without.mode, guesses, Footprint() as footprint:
            result, cache = twin.run_with_cache(None, names_filter, **keep, **run)
    except LensbridgeError:
        raise
    except Exception as error:
        name = type(model.native.core).__name__
        raise InputError(
            f"What a run of a {name} keeps cannot be told without its weights and an input "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})."
        ) from error
    return replace(
        _plan(model, twin, dict(cache), result, footprint),
        batch=_rows(prepared),
        assumes=tuple(guesses.made),
    )


def _refuse_sharded(hf_model: nn.Module) -> None:
    if any(is_fully_sharded(module) for module in hf_model.modules()):
        raise InputError(
            "A plan is made on a copy of the model, and a model that fully_shard has spread over "
            "processes cannot be copied. Plan before it is sharded: its activations are as large."
        )


def _twin(model: Runnable, prepared: Prepared, without: WithoutValues) -> Any:
    """The lens on the twin of a model, with the input prepared and what is spliced in."""
    with without.mode:
        lens = model._on(twin_of(model.hf_model, without))
    own = lens.preparer
    lens.preparer = Given(own.native, own.tokens, own.accepted, without.copy(prepared))
    here = model.engine.current
    splices = {**model.engine.splices, **({} if here is None else here.splices)}
    for host, sites in splices.items():
        spliced: Any = replace(sites[0].splice, engine=lens.engine)  # type: ignore[type-var]
        lens.engine.add(spliced.callbacks, {host: spliced.points})
    return lens


def _plan(
    model: Runnable, twin: Any, cache: dict[str, Tensor], result: Any, footprint: Footprint
) -> Plan:
    kept = {storage_of(one) for one in cache.values()}
    returned = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
    apart = [one for one in returned if storage_of(one) not in kept]
    return Plan(
        {name: PlannedValue.of(name, value) for name, value in cache.items()},
        stored_bytes(cache.values()),
        footprint.peaks,
        sum(stored_bytes(apart).values()),
        weight_bytes(model.hf_model),
        frozenset(str(one.device) for one in twin.hf_model.parameters()),
    )


def _rows(prepared: Prepared) -> int | None:
    whole = prepared.tokens if prepared.tokens is not None else prepared.embeds
    return None if whole is None else len(whole)


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """The bytes of weights and buffers on each device; shared ones count once."""
    found: dict[str, int] = {}
    seen: set[int] = set()
    for module in model.modules():
        away = execution_device(module) is not None
        held = [*module._parameters.values(), *module._buffers.values()]
        for one in (each for each in held if each is not None):
            if storage_of(one) not in seen:
                seen.add(storage_of(one))
                place = "offloaded" if away and one.is_meta else str(one.device)
                found[place] = found.get(place, 0) + one.untyped_storage().nbytes()
    return found
