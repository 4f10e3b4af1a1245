"""A model of which only some modules are here, filled up with modules that have no values.

The whole is built on the meta device from the model's own config, so it costs no memory. What is
here is put into its places, and then it can be read like any other model.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lensbridge.errors import LoadError
from lensbridge.native.wrappers import unwrapped

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage
    from typing_extensions import TypeIs

__all__ = ["filled_up", "is_stage"]


def is_stage(given: object) -> "TypeIs[PipelineStage]":
    """Whether something is a stage of `torch.distributed.pipelining`, made by hand or traced."""
    return any(one.__name__ == "_PipelineStageBase" for one in type(given).__mro__)


def filled_up(core: Any, layers: str) -> nn.Module:
    """The whole model with the modules that are here in their places, and others without values.

    A module is missing if it was deleted, is None, or has another without parameters in its place,
    such as `nn.Identity()`.

    Args:
        core: a transformers model that lacks some modules.
        layers: the path of its list of layers.

    Raises:
        LoadError: it is not known which layers are here.
    """
    whole = _without_values(core)
    _fill(whole, core, layers.split("."))
    return whole


def _without_values(core: Any) -> Any:
    with torch.device("meta"):
        return type(core)(copy.deepcopy(core.config)).train(core.training)


def _fill(whole: nn.Module, part: nn.Module, path: list[str]) -> None:
    """Put the modules of a part into the whole; the path leads to the layers."""
    for kind in ("_parameters", "_buffers"):
        held = getattr(part, kind)
        getattr(whole, kind).update({k: v for k, v in held.items() if v is not None})
    for name, like in list(whole._modules.items()):
        own = part._modules.get(name)
        if own is None or like is None:
            continue
        if name != path[0]:
            if _is_there(own, like):
                whole._modules[name] = own
        elif len(path) > 1:
            _fill(like, unwrapped(own), path[1:])
        else:
            for number, layer in _numbered(unwrapped(own), like):
                like._modules[number] = layer


def _is_there(own: nn.Module, like: nn.Module) -> bool:
    """Whether it is the module itself, and not a placeholder."""
    real = unwrapped(own)
    has_values = next(real.parameters(), None) is not None
    return has_values or isinstance(real, type(like))


def _numbered(layers: nn.Module, like: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that are here, each with its place among all layers."""
    names = list(like._modules)
    first = like._modules[names[0]]
    assert first is not None
    held = [(key, one) for key, one in layers._modules.items() if one is not None]
    here = [(key, one) for key, one in held if _is_there(one, first)]
    if isinstance(layers, nn.ModuleDict):
        found = dict(here)
    else:
        is_long = len(layers._modules) == len(names)
        found = {str(_number_of(one, int(key) if is_long else None)): one for key, one in here}
    unknown = sorted(set(found) - set(names))
    if unknown or len(found) != len(here):
        raise LoadError(
            f"The layers that are here are number {', '.join(sorted(found))}, and the config says "
            f"that there are {len(names)} in all. Leave the config of the whole model as it is, "
            "and the number that each layer has (layer_idx)."
        )
    return list(found.items())


def _number_of(layer: nn.Module, place: int | None) -> int:
    """Which of the model's layers it is: it says so itself, or its place does."""
    found = (getattr(one, "layer_idx", None) for one in layer.modules())
    numbers = {one for one in found if isinstance(one, int)}
    if len(numbers) == 1:
        return numbers.pop()
    if place is not None:
        return place
    raise LoadError(
        f"It is not known which of the model's layers this {type(layer).__name__} is: it has no "
        "layer_idx. Give it one (layer.layer_idx = 5), or leave the list as long as it is and put "
        "nn.Identity() in the places of the layers that are on other ranks."
    )
