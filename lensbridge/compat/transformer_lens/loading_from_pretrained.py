"""Names and configs of models, without loading weights."""

import logging
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lensbridge.compat.transformer_lens.config import (
    HookedTransformerConfig,
    named_dtype,
)
from lensbridge.compat.transformer_lens.config_reading import config_of
from lensbridge.compat.transformer_lens.names_of_models import (
    DEFAULT_MODEL_ALIASES,
    MODEL_ALIASES,
    OFFICIAL_MODEL_NAMES,
    PYTHIA_CHECKPOINTS,
    PYTHIA_V0_CHECKPOINTS,
    STANFORD_CRFM_CHECKPOINTS,
    checkpoint_revision,
    get_checkpoint_labels,
    get_official_model_name,
)
from lensbridge.compat.transformer_lens.opening import default_device, shorten

__all__ = [
    "DEFAULT_MODEL_ALIASES",
    "MODEL_ALIASES",
    "OFFICIAL_MODEL_NAMES",
    "PYTHIA_CHECKPOINTS",
    "PYTHIA_V0_CHECKPOINTS",
    "STANFORD_CRFM_CHECKPOINTS",
    "fill_missing_keys",
    "get_checkpoint_labels",
    "get_official_model_name",
    "get_pretrained_model_config",
]


def get_pretrained_model_config(
    model_name: str,
    hf_cfg: dict[str, Any] | None = None,
    checkpoint_index: int | None = None,
    checkpoint_value: int | None = None,
    fold_ln: bool = False,
    device: Any = None,
    n_devices: int = 1,
    default_prepend_bos: bool | None = None,
    dtype: Any = None,
    first_n_layers: int | None = None,
    n_ctx: int | None = None,
    **hf_kwargs: Any,
) -> HookedTransformerConfig:
    """The config of a model, read from its HuggingFace config: no weights are loaded.

    Args:
        model_name: a short name, a hub id or a folder.
        hf_cfg: the HuggingFace config of a model that is open, as a dictionary, instead of reading
            it.
        checkpoint_index: a checkpoint of the training, by its index.
        checkpoint_value: or by its training step.
        fold_ln: whether `normalization_type` says that norms are folded.
        device: where the model will be.
        n_devices: on how many GPUs.
        default_prepend_bos: whether text begins with BOS by default.
        dtype: the dtype of the weights; None: as they are stored.
        first_n_layers: how many layers will be kept.
        n_ctx: how many positions.
        hf_kwargs: for `AutoConfig.from_pretrained`.

    Raises:
        LoadError: there is no such model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import lensbridge
    from lensbridge.loading import demo_folder

    official = get_official_model_name(model_name)
    revision = checkpoint_revision(model_name, checkpoint_index, checkpoint_value)
    where = {**hf_kwargs, **({} if revision is None else {"revision": revision})}
    source = demo_folder() if official == "demo" else official
    hf_config = (
        AutoConfig.from_pretrained(source, **where)
        if hf_cfg is None
        else AutoConfig.for_model(**hf_cfg)
    )
    if first_n_layers is not None:
        shorten(hf_config, first_n_layers)
    with torch.device("meta"):
        hf_model = AutoModelForCausalLM.from_config(hf_config)
    found = config_of(lensbridge.load(hf_model, derive=False))
    said = {
        "n_ctx": n_ctx,
        "default_prepend_bos": default_prepend_bos,
        "dtype": None if dtype is None else named_dtype(dtype),
        "checkpoint_index": checkpoint_index,
        "checkpoint_value": checkpoint_value,
        "normalization_type": f"{found.normalization_type}Pre" if fold_ln else None,
    }
    known: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    place = str(device or default_device())
    return replace(found, device=place, n_devices=n_devices, **known)


def fill_missing_keys(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add what a state lacks, with the values that the model has now.

    Weight matrices that were missing are logged as a warning.
    """
    for key, value in model.state_dict().items():
        if key in state_dict or "hf_model" in key:
            continue
        if "W_" in key:
            logging.getLogger(__name__).warning("%s was missing: the model's own is used.", key)
        state_dict[key] = value
    return state_dict
