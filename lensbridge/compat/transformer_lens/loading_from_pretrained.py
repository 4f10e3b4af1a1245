"""Names and configs of models, without loading weights."""

from typing import Any

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.names_of_models import (
    DEFAULT_MODEL_ALIASES,
    MODEL_ALIASES,
    OFFICIAL_MODEL_NAMES,
    PYTHIA_CHECKPOINTS,
    PYTHIA_V0_CHECKPOINTS,
    STANFORD_CRFM_CHECKPOINTS,
    get_checkpoint_labels,
    get_official_model_name,
)

__all__ = [
    "DEFAULT_MODEL_ALIASES",
    "MODEL_ALIASES",
    "OFFICIAL_MODEL_NAMES",
    "PYTHIA_CHECKPOINTS",
    "PYTHIA_V0_CHECKPOINTS",
    "STANFORD_CRFM_CHECKPOINTS",
    "get_checkpoint_labels",
    "get_official_model_name",
    "get_pretrained_model_config",
]


def get_pretrained_model_config(model_name: str, **hf_kwargs: Any) -> HookedTransformerConfig:
    """The config of a model, read from its HuggingFace config: no weights are loaded.

    Args:
        model_name: a short name, a hub id or a folder.
        hf_kwargs: for `AutoConfig.from_pretrained`.

    Raises:
        LoadError: there is no such model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import lensbridge
    from lensbridge.compat.transformer_lens.config import config_of
    from lensbridge.loading import demo_folder

    official = get_official_model_name(model_name)
    source = demo_folder() if official == "demo" else official
    hf_config = AutoConfig.from_pretrained(source, **hf_kwargs)
    with torch.device("meta"):
        hf_model = AutoModelForCausalLM.from_config(hf_config)
    return config_of(lensbridge.load(hf_model, derive=False))
