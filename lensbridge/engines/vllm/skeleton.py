"""The HuggingFace model of an `LLM` without its weights: names, sizes and checks come from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lensbridge.errors import UnsupportedArchitectureError


def skeleton(llm: Any) -> nn.Module:
    """The model on PyTorch's meta device, which holds no numbers.

    Raises:
        UnsupportedArchitectureError: transformers has no causal language model for the config.
    """
    from transformers import AutoModelForCausalLM

    config, dtype = llm.llm_engine.vllm_config.model_config.hf_config, _dtype(llm)
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise UnsupportedArchitectureError(
            f"transformers has no causal language model for {type(config).__name__}: {error}"
        ) from error
    return model.eval()


def _dtype(llm: Any) -> torch.dtype:
    found: torch.dtype = llm.llm_engine.vllm_config.model_config.dtype
    return found
