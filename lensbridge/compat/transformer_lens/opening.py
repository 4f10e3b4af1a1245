"""Opens a model for `from_pretrained`; where something is changed, on a copy."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import lensbridge
from lensbridge.compat.transformer_lens.config import named_dtype
from lensbridge.compat.transformer_lens.tokenizing import Tokenizers
from lensbridge.errors import InputError, LoadError
from lensbridge.loading import demo_folder
from lensbridge.loading.checkpoint import CONFIG_OPTIONS
from lensbridge.model import LensModel


@dataclass(frozen=True)
class Order:
    """The request of `from_pretrained`.

    Args:
        name: a hub id, a folder or "demo".
        hf_model: a model to use instead of loading one; it is not changed.
        layers: how many layers to keep.
        n_ctx: how many positions to keep.
        steps: the steps of weight processing.
        hf: other options of `from_pretrained`.
        as_it_is: whether a model object is used itself even if it is in training mode.
    """

    name: str
    hf_model: nn.Module | None = None
    device: Any = None
    dtype: str | torch.dtype | None = "float32"
    n_devices: int = 1
    tokenizer: Any = None
    layers: int | None = None
    n_ctx: int | None = None
    steps: dict[str, bool] = field(default_factory=dict)
    hf: dict[str, Any] = field(default_factory=dict)
    as_it_is: bool = False

    def open(self) -> LensModel:
        """The model as lensbridge opens it, with processed weights."""
        lens = self._loaded() if self.hf_model is None else self._taken(self.hf_model)
        lens = cut_context(lens, self.n_ctx)
        lens.tokens.find = Tokenizers(self.name, self.tokenizer, self.hf, lens.tokens.find).find
        if any(self.steps.values()):
            lens.process_weights_(**self.steps, on_impossible="skip")
        return lens

    def _loaded(self) -> LensModel:
        options = dict(self.hf)
        if self.layers is not None:
            options["config"] = _short_config(self.name, self.layers, options)
        placed = self._placed(options)
        return lensbridge.load(self.name, dtype=self._dtype(options), **placed, **options)

    def _dtype(self, options: dict[str, Any]) -> torch.dtype | None:
        asked = options.pop("torch_dtype", None) or self.dtype
        if options.get("quantization_config") is not None or asked is None:
            return None
        return named_dtype(asked)

    def _placed(self, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("device_map") is not None:
            return {"device_map": options.pop("device_map")}
        if self.n_devices > 1:
            there = torch.cuda.device_count()
            if there < self.n_devices:
                raise InputError(f"n_devices={self.n_devices}: there are {there} GPUs here.")
            free = {i: torch.cuda.mem_get_info(i)[0] for i in range(self.n_devices)}
            options["max_memory"] = free
            return {"device_map": "balanced"}
        return {"device": self.device or default_device()}

    def _taken(self, hf_model: nn.Module) -> LensModel:
        """The model object itself if nothing is changed, else a copy."""
        if self.hf.get("device_map") is not None:
            raise LoadError("device_map places a model that is loaded by name, not an object.")
        here = next(hf_model.parameters())
        dtype = here.dtype if self.dtype is None else named_dtype(self.dtype)
        device = here.device if self.device is None else torch.device(self.device)
        quantized = {p.dtype for p in hf_model.parameters() if not p.is_floating_point()}
        changes = (
            any(self.steps.values())
            or self.layers is not None
            or self.n_ctx is not None
            or (hf_model.training and not self.as_it_is)
            or (device, dtype) != (here.device, here.dtype)
        )
        if quantized or not changes:
            return lensbridge.load(hf_model)
        copied = copied_with(hf_model, self.layers).to(device=device, dtype=dtype)
        return lensbridge.load(copied.eval())


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def reopened(lens: LensModel, hf_model: nn.Module) -> LensModel:
    """Another model object of the same class, opened with the same tokenizer."""
    other = LensModel(hf_model, lens.tokens.need, lens.architecture)
    other.tokens.default_prepend_bos = lens.tokens.default_prepend_bos
    other.processings.extend(lens.processings)
    return other


def _short_config(name: str, layers: int, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    where = {key: options[key] for key in CONFIG_OPTIONS if key in options}
    config = AutoConfig.from_pretrained(demo_folder() if name == "demo" else name, **where)
    shorten(config, layers)
    return config


def shorten(config: Any, layers: int) -> None:
    """Change a config to that of a model with fewer layers.

    Raises:
        InputError: it has not so many layers, or it has two stacks.
    """
    text = config.get_text_config()
    if config.is_encoder_decoder:
        raise InputError("first_n_layers is for models with one stack: load all layers.")
    if not 0 < layers <= text.num_hidden_layers:
        raise InputError(f"first_n_layers={layers}: the model has {text.num_hidden_layers}.")
    kinds = {
        name: value[:layers]
        for name, value in text.to_dict().items()
        if isinstance(value, list) and len(value) == text.num_hidden_layers
    }
    text.num_hidden_layers = layers
    for name, value in kinds.items():
        setattr(text, name, value)


def copied_with(hf_model: nn.Module, layers: int | None) -> Any:
    """A copy of a model, with a number only of its first layers; the others are not copied."""
    if layers is None:
        return deepcopy(hf_model)
    native = lensbridge.load(hf_model).native
    config = deepcopy(native.core.config)
    shorten(config, layers)
    every = native.core.get_submodule(native.main.path)
    assert isinstance(every, nn.ModuleList)
    memo: dict[int, Any] = {}
    memo[id(native.core.config)] = config
    memo[id(every)] = nn.ModuleList([deepcopy(layer, memo) for layer in _first(every, layers)])
    copied: Any = deepcopy(hf_model, memo)
    return copied


def _first(modules: Iterable[nn.Module], count: int) -> list[nn.Module]:
    return list(modules)[:count]


def cut_context(lens: LensModel, n_ctx: int | None) -> LensModel:
    """The model with fewer positions; with more where positions are not learned.

    Raises:
        InputError: more positions than were learned.
    """
    if n_ctx is None or n_ctx == lens.cfg.n_ctx:
        return lens
    table, trained = lens.native.main.pos_embed, lens.cfg.n_ctx
    if table is not None and trained is not None:
        if n_ctx > trained:
            raise InputError(f"n_ctx={n_ctx}: the model has learned {trained} positions.")
        weight = table._parameters["weight"]
        assert weight is not None
        weight.data = weight.data[: weight.shape[0] - trained + n_ctx].clone()
    field_name = lens.architecture.dims.context
    if isinstance(field_name, str):
        setattr(lens.native.main.config, field_name, n_ctx)
    return reopened(lens, lens.hf_model)
