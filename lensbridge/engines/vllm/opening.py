"""Opening models that vLLM runs."""

from __future__ import annotations

from typing import Any

import torch

from lensbridge.engines.vllm import settings
from lensbridge.engines.vllm.model import VLLMModel
from lensbridge.engines.vllm.plugin import register


def open_llm(llm: Any, tokenizer: Any = None) -> VLLMModel:
    """Open an `LLM`; `lensbridge.load_vllm` calls this."""
    settings.check(llm)
    return VLLMModel(llm, None if tokenizer is None else lambda: tokenizer)


def open_model(name: str, *, tokenizer: Any = None, **options: Any) -> VLLMModel:
    """Make an `LLM` of a name and open it; `load(name, engine="vllm")` calls this.

    Args:
        name: a hub id or a folder.
        tokenizer: a tokenizer; by default the model's own.
        options: for `vllm.LLM`.

    Raises:
        UnsupportedError: vLLM is not installed, or its version is not supported.
    """
    module = settings.vllm()
    register()
    if isinstance(options.get("dtype"), torch.dtype):
        options["dtype"] = str(options["dtype"]).removeprefix("torch.")
    llm = module.LLM(name, **{**settings.FOR_LENSES, **options})
    return open_llm(llm, tokenizer)
