"""Which description a model is read with: a registered one that is believed, or a derived one."""

from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lensbridge.derive import derive_and_check
from lensbridge.derive.check import first_failure
from lensbridge.derive.reasons import shortened
from lensbridge.errors import UnsupportedArchitectureError
from lensbridge.native.calling import Calling, is_plain
from lensbridge.native.fsdp import is_fully_sharded
from lensbridge.native.parts import Override
from lensbridge.native.resolve import select, unwrap
from lensbridge.native.resolve.overrides import overrides_in
from lensbridge.native.trial import Trial
from lensbridge.plugins import Claim
from lensbridge.spec import Architecture

DERIVED = "its own behaviour"
_MOST = 2


def description_of(
    model: nn.Module, architecture: Architecture | None, derive: bool
) -> dict[str, Any]:
    """What to read a model with and where that is from; nothing for the registered description.

    A registered description is believed for the class that it names. Where the model has code of
    its own, the description is checked on it.

    Args:
        model: the model, or a wrapper around it.
        architecture: the user's own description, which is not checked.
        derive: whether to check and to derive at all.

    Raises:
        LoadError: a plain module that takes no ids or returns no logits.
        UnsupportedArchitectureError: no description is known, or none that the model conforms to.
        PluginError: two plugins claim the model's class.
    """
    core = unwrap(model)
    if is_plain(core) and not (architecture is not None and Calling.of(core).needed):
        Trial.of(core)
    if architecture is not None or not derive:
        return {"architecture": architecture}
    try:
        claim = select(core, None)
    except UnsupportedArchitectureError as unsupported:
        _refuse_sharded(core, str(unsupported))
        return derived(core, str(unsupported))
    overrides = overrides_in(core, claim)
    if overrides:
        own = f"{type(core).__name__} has code of its own: {_listed(overrides)}."
        _refuse_sharded(core, own)
    failure = first_failure(core, claim.architecture) if overrides else None
    return {} if failure is None else derived(core, _refuted(core, claim, overrides, failure))


def derived(core: nn.Module, why: str) -> dict[str, Any]:
    """A description that is derived, and where it is from.

    Args:
        core: the model.
        why: why no registered one is used, for the error.

    Raises:
        UnsupportedArchitectureError: none could be derived that the model conforms to.
    """
    try:
        return {"architecture": derive_and_check(core), "source": DERIVED}
    except UnsupportedArchitectureError as refused:
        raise UnsupportedArchitectureError(f"{why}\n{refused}") from refused


def _refuted(core: nn.Module, claim: Claim, overrides: list[Override], failure: str) -> str:
    return (
        f"{type(core).__name__} would be read as {claim}, but it has code of its own: "
        f"{_listed(overrides)}.\n"
        f"With that code it fails a check: {shortened(failure)}\n"
        "Describe it, load(..., architecture=...), or pass derive=False to read it as "
        f"'{claim.architecture.name}' all the same."
    )


def _listed(overrides: list[Override]) -> str:
    more = f" (and {len(overrides) - _MOST} more)" if len(overrides) > _MOST else ""
    return f"{'; '.join(map(str, overrides[:_MOST]))}{more}"


def _refuse_sharded(core: nn.Module, why: str) -> None:
    """Refuse to check or derive a description of what cannot be copied.

    Raises:
        UnsupportedArchitectureError: fully_shard has spread the model over processes.
    """
    if any(is_fully_sharded(module) for module in core.modules()):
        raise UnsupportedArchitectureError(
            f"{why} So a description has to be checked on a copy of it, and a model that "
            "fully_shard has spread over processes cannot be copied. Load the model first, and "
            "call fully_shard on it afterwards: what load returned goes on working. Or pass "
            "architecture=."
        )


def needs_input(model: nn.Module) -> bool:
    """Whether a module makes its weights in its first run, so that none may be tried on it."""
    return is_plain(unwrap(model)) and any(is_lazy(one) for one in model.parameters())


def reads_by_modules(model: nn.Module) -> bool:
    """Whether a model that no description fits is opened with its own modules as points.

    It is if it is no transformers model, has a forward, and is all in this process.
    """
    core = unwrap(model)
    spread = any(is_fully_sharded(module) for module in core.modules())
    runs = getattr(core.forward, "__func__", core.forward) is not nn.Module.forward
    return is_plain(core) and runs and not spread
