"""How a native model is called, and where the logits are in what it returns.

A transformers model takes `input_ids` and returns logits under that name. A plain module takes ids
under any name, and returns logits alone, in a tuple, in a mapping or as an attribute. The rest of
lensbridge always writes `input_ids`; `Calling` translates.
"""

import ast
import inspect
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, is_dataclass, replace
from functools import lru_cache
from textwrap import dedent
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.errors import InputError
from lensbridge.native.wrappers import core_of

_NAMES = ("prediction_logits", "logits")
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_NAMELESS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)


@dataclass(frozen=True)
class Calling:
    """The arguments of one model's forward.

    Args:
        ids: name of the argument for token ids; None: it has no name, and ids are passed first.
        embeds: whether it takes `inputs_embeds`.
        accepted: all other keywords.
        is_plain: whether the model is a plain module, not a transformers model.
        needed: arguments of a plain module, other than the ids, that have no default.
    """

    ids: str | None
    embeds: bool
    accepted: frozenset[str]
    is_plain: bool
    needed: tuple[str, ...]

    @classmethod
    def of(cls, core: nn.Module) -> "Calling":
        """Read the arguments from the signature of a model's forward."""
        parameters = inspect.signature(core.forward).parameters
        named = {name: one for name, one in parameters.items() if one.kind not in _VARIADIC}
        if not is_plain(core):
            accepted = {*parameters, *_handed_on(core)} - {"input_ids", "inputs_embeds", "kwargs"}
            return cls("input_ids", True, frozenset(accepted | _of_transformers()), False, ())
        first = next(iter(parameters.values()), None)
        nameless = first is not None and first.kind in _NAMELESS
        ids = None if nameless else "input_ids" if "input_ids" in named else next(iter(named), None)
        others = {name: one for name, one in named.items() if name != ids}
        needed = [n for n, one in others.items() if one.default is inspect.Parameter.empty]
        if nameless and first is not None:
            needed = [name for name in needed if name != first.name]
        embeds = "inputs_embeds" in named
        return cls(ids, embeds, frozenset(others) - {"inputs_embeds"}, True, tuple(needed))

    def call(self, model: nn.Module, inputs: Mapping[str, Any]) -> Any:
        """Call a model with inputs that have lensbridge's names."""
        if self.ids == "input_ids" or "input_ids" not in inputs:
            return model(**inputs)
        others = {name: value for name, value in inputs.items() if name != "input_ids"}
        if self.ids is None:
            return model(inputs["input_ids"], **others)
        return model(**{self.ids: inputs["input_ids"]}, **others)


def _handed_on(core: nn.Module) -> set[str]:
    """Keywords that a class with a head passes on to its base model, such as `use_cache` in
    GraniteMoE.

    Other classes accept any keyword and ignore it. Only the source of the forward shows which
    classes pass keywords on.
    """
    outer = inspect.signature(core.forward).parameters
    if all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in outer.values()):
        return set()
    found: set[str] = set()
    for inner in _handed_to(core):
        theirs = inspect.signature(inner.forward).parameters
        found |= {name for name, one in theirs.items() if one.kind not in _VARIADIC}
        found |= _handed_on(inner)
    return found


def _handed_to(core: nn.Module) -> list[nn.Module]:
    """The transformers models that a forward calls with `**kwargs`."""
    called = _called_with_keywords(inspect.unwrap(type(core).forward))
    found = [getattr(core, name, None) for name in called]
    return [one for one in found if isinstance(one, nn.Module) and not is_plain(one)]


@lru_cache(maxsize=256)
def _called_with_keywords(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The attributes that the source of a forward calls with `**kwargs`."""
    try:
        source = inspect.getsource(forward)
    except (OSError, TypeError):  # there is no source, for example of a closed notebook
        return ()
    calls = [one for one in ast.walk(ast.parse(dedent(source))) if isinstance(one, ast.Call)]
    names = [
        call.func.attr
        for call in calls
        if isinstance(call.func, ast.Attribute) and any(word.arg is None for word in call.keywords)
    ]
    return tuple(name for name in dict.fromkeys(names) if name != "loss_function")  # it warns


def _of_transformers() -> frozenset[str]:
    from transformers.utils import TransformersKwargs

    return frozenset(TransformersKwargs.__annotations__) - {"self"}


def is_plain(model: nn.Module) -> bool:
    """Whether a module, without its wrappers, is something else than a transformers model."""
    return not any(cls.__name__ == "PreTrainedModel" for cls in type(core_of(model)).__mro__)


def named_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name. Token ids are under `input_ids`, whatever name the model has
    for them.
    """
    names = inspect.signature(module.forward).parameters if args else ()
    found = {**dict(zip(names, args, strict=False)), **kwargs}
    if "input_ids" in found or "inputs_embeds" in found or not is_plain(module):
        return found
    for name, value in found.items():
        if isinstance(value, Tensor) and not value.is_floating_point():
            return {"input_ids": value, **{n: v for n, v in found.items() if n != name}}
    return found


# --- what it returns -----------------------------------------------------------------------------


def logits_in(output: Any, width: int | None = None) -> Tensor:
    """The logits in what a model returned.

    Args:
        output: what the model returned.
        width: size of the last axis of the logits. They are found by it where no field is called
            logits; None: any size.

    Raises:
        InputError: the output has no such tensor.
    """
    spans = spans_in(output)
    if spans is not None:
        return spans
    place = _place_of_logits(output, width)
    if place is None:
        wanted = "logits" if width is None else f"logits [batch, pos, {width}]"
        raise InputError(
            f"The model returned {_shown(output)}, and no {wanted} are in it. Logits are found "
            "if the model returns them alone, in a tuple or a mapping, or as `.logits`. To read "
            "activations without logits, pass return_type=None."
        )
    return _at(output, place)


def spans_in(output: Any) -> Tensor | None:
    """The two columns of a head that finds the start and the end of an answer, `[b, p, 2]`; None:
    the model returned something else.
    """
    if isinstance(output, Mapping) and "start_logits" in output:
        return torch.stack([output["start_logits"], output["end_logits"]], dim=-1)
    return None


def with_logits(output: Any, logits: Tensor, width: int | None = None) -> Any:
    """An output with its logits replaced. Tuples and dataclasses are copied, other outputs are
    changed in place.
    """
    place: Any = _place_of_logits(output, width)
    if place == "":
        return logits
    if isinstance(output, MutableMapping):
        output[place] = logits
        return output
    if isinstance(place, int):
        items = [logits if i == place else one for i, one in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    if is_dataclass(output) and not isinstance(output, type):
        return replace(output, **{place: logits})
    setattr(output, place, logits)
    return output


def _place_of_logits(output: Any, width: int | None) -> str | int | None:
    """The key of the logits in an output; "" if the output is the logits, None if it has none."""
    if isinstance(output, Tensor):
        return "" if output.ndim > 1 else None
    if isinstance(output, Mapping):
        named = next((name for name in _NAMES if isinstance(output.get(name), Tensor)), None)
        return named or _first_fitting(output.items(), width)
    if isinstance(output, (tuple, list)):
        return _first_fitting(enumerate(output), width)
    return next((n for n in _NAMES if isinstance(getattr(output, n, None), Tensor)), None)


def _first_fitting(items: Any, width: int | None) -> Any:
    for place, value in items:
        fits = isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1
        if fits and width in (None, value.shape[-1]):
            return place
    return None


def _at(output: Any, place: Any) -> Tensor:
    if place == "":
        return output
    keyed = isinstance(output, (Mapping, tuple, list))
    found: Tensor = output[place] if keyed else getattr(output, place)
    return found


def _shown(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    items: Any = output
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(str, output)) or 'nothing'}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {', '.join(_shown(one) for one in items)}"
    return f"a {type(output).__name__}" if output is not None else "None"
