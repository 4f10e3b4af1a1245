"""Tiny random models of any transformers class, made without a download.

Sizes differ on purpose and multipliers are not 1, so that checks find a description that confuses
two sizes or forgets a multiplier. Weights are of order one, gains and biases too.
"""

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from lensbridge.conformance.sizes import ALTERNATIVES, BY_TYPE, SIZES, VISION
from lensbridge.errors import InputError, LoadError, suggest
from lensbridge.inputs.random import inputs_for
from lensbridge.native.resolve import GIVEN
from lensbridge.native.resolve.vocabulary import require_vocabulary
from lensbridge.spec import Architecture


def model_class(architecture: Architecture, name: str | None = None) -> Any:
    """The transformers class that an architecture describes: the named one, or its first.

    Raises:
        LoadError: transformers has no such class.
        ArchitectureMismatchError: the description says something that is not understood.
    """
    require_vocabulary(architecture, GIVEN)
    wanted = name or architecture.classes[0]
    try:
        return attrgetter(wanted)(import_module("transformers"))
    except AttributeError as error:
        from transformers import PreTrainedModel

        for one in _subclasses(PreTrainedModel):
            if one.__name__ == wanted:
                return one
        raise LoadError(
            f"transformers has no class {wanted!r}, which '{architecture.name}' describes. Pass a "
            "config or a model."
        ) from error


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    """Every subclass that was imported."""
    for one in cls.__subclasses__():
        yield one
        yield from _subclasses(one)


def tiny_config(config_class: Any, **fields: Any) -> Any:
    """A tiny config of a class.

    Args:
        config_class: a transformers config class.
        fields: config fields to set, which override those of the tables in `sizes.py`.
    """
    return config_class(**{**_settings(config_class, SIZES), **fields})


def check_fields(config_class: Any, fields: Iterable[str]) -> None:
    """Require that a config has these fields.

    Raises:
        InputError: it has not.
    """
    default = config_class()
    known = {*_fields(config_class), *config_class.attribute_map, *vars(default)}
    for name in fields:
        if name not in known and not hasattr(default, name):  # some are properties
            raise InputError(
                f"{config_class.__name__} has no field {name!r}.{suggest(name, sorted(known))}"
            )


def _settings(config_class: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    names = _fields(config_class)
    found = {name: value for name, value in sizes.items() if name in names}
    found.update(_one_layer_of_each_kind(config_class, names))
    for name, part in _parts(config_class):
        found[name] = part(**_settings(part, {**SIZES, **VISION} if "vision" in name else SIZES))
    return {**found, **BY_TYPE.get(str(config_class.model_type), {})}


def _one_layer_of_each_kind(config_class: Any, names: set[str]) -> dict[str, Any]:
    """For a config that lists kinds of layers: one of each kind in its default, at least two."""
    for field in ("layer_types", "layers_block_type"):
        if field in names and "num_hidden_layers" in names:
            kinds = vars(config_class()).get(field) or ()
            found = list(dict.fromkeys(kinds))
            if found:
                found = found if len(found) > 1 else found * 2
                return {field: found, "num_hidden_layers": len(found)}
    return {}


def _fields(config_class: Any) -> set[str]:
    if dataclasses.is_dataclass(config_class):
        return {field.name for field in dataclasses.fields(config_class)}
    return set(inspect.signature(config_class.__init__).parameters)


def _parts(config_class: Any) -> Iterator[tuple[str, Any]]:
    """The classes of the configs inside a config, as in its default."""
    if not config_class.sub_configs:
        return
    default = vars(config_class())
    for name in config_class.sub_configs:
        if default.get(name) is not None:
            yield name, type(default[name])


def tiny_model(
    architecture: Architecture,
    class_name: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    kernel: str | None = None,
    seed: int = 0,
    **fields: Any,
) -> nn.Module:
    """A tiny random model of a class that an architecture describes.

    Args:
        architecture: its `requires` are set in the config.
        class_name: which of its classes; None for the first.
        dtype: the dtype of the weights.
        kernel: the attention implementation; None for the model's default.
        seed: the seed of the weights.
        fields: config fields to set.

    Raises:
        LoadError: no model could be built with the sizes that are tried.
    """
    cls = model_class(architecture, class_name)
    wanted = {**dict(architecture.requires), **fields}
    errors: list[str] = []
    for alternative in ALTERNATIVES:
        fitting = {k: v for k, v in alternative.items() if k in _fields(cls.config_class)}
        try:
            model = tiny_from(cls, {**fitting, **wanted}, dtype, kernel, seed)
            with torch.no_grad():
                model(**inputs_for(model))
        except _NOT_BUILT as error:
            errors.append(f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0])
            continue
        return model
    raise LoadError(
        f"No tiny {cls.__name__} could be built: {'; '.join(dict.fromkeys(errors))}. Pass a config "
        f"or a model.{_width_of_heads(cls.config_class, fields)}"
    )


def _width_of_heads(config_class: Any, fields: Mapping[str, Any]) -> str:
    """What is unusual about the width of a head with the sizes that were asked for."""
    try:
        config = tiny_config(config_class, **fields) if fields else None
    except _NOT_BUILT:
        return ""
    width, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    if not isinstance(width, int) or not isinstance(heads, int) or not heads:
        return ""
    given = getattr(config, "head_dim", None)
    of_head = given if isinstance(given, int) else width / heads
    if of_head % 2 == 0:
        return ""
    return (
        f" With hidden_size={width} and num_attention_heads={heads} a head is {of_head:g} wide; "
        "most models need a whole number, and those with rotary embeddings an even one."
    )


_NOT_BUILT = (
    ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError, ImportError,
    AssertionError,
)  # fmt: skip
"""What models raise that do not allow some sizes, or need a package that is not installed."""


def tiny_from(
    cls: Any, fields: Mapping[str, Any], dtype: torch.dtype, kernel: str | None, seed: int
) -> nn.Module:
    """One tiny model of a class, with random weights."""
    config = tiny_config(cls.config_class, **fields)
    return from_config(cls, config, dtype, kernel, seed)


def from_config(
    cls: Any, config: Any, dtype: torch.dtype, kernel: str | None, seed: int
) -> nn.Module:
    """A model of a config, with random weights of order one."""
    options = {} if kernel is None else {"attn_implementation": kernel}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = cls._from_config(config, **options).eval()
    randomize(model, seed)
    if dtype != torch.float32:
        model.set_experts_implementation("eager")  # the grouped one needs float32, or larger widths
    built: nn.Module = model.to(dtype)
    return built


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Set every weight to values of order one, gains, biases and scalar buffers too."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor, size: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like) * size

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(noise(parameter, 0.3))
            else:
                parameter.copy_(noise(parameter, 1.5 / parameter.shape[-1] ** 0.5))
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.numel() == 1 and float(buffer) == 1.0:
                buffer.mul_(0.8)
        for module in model.modules():
            _fill_table(module)


def _fill_table(module: nn.Module) -> None:
    """Let the table of a router, which has the experts of each token, name different ones."""
    weight = module._parameters.get("weight")
    for table in module._buffers.values():
        if table is None or weight is None or table.ndim != 2:
            continue
        if table.is_floating_point() or bool(table.any()):
            continue
        rows, columns = (torch.arange(n, device=table.device) for n in table.shape)
        table.copy_((rows[:, None] + columns) % len(weight))
