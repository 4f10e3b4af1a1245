"""Tiny models in vLLM on the CPU, and the same models in HuggingFace."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer

import lensbridge
from lensbridge.loading import demo_folder

D = 128
SIZES = {
    "hidden_size": D,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
OLD = {"n_embd": D, "n_layer": 2, "n_head": 4, "n_positions": 128}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {**GROUPED, "head_dim": 32}),
    "Qwen2": ("qwen2", GROUPED),
    "Qwen3": ("qwen3", {**GROUPED, "head_dim": 64}),
    "Mistral": ("mistral", {**GROUPED, "sliding_window": None}),
    "Gemma": ("gemma", {**GROUPED, "head_dim": 32}),
    "Gemma2": ("gemma2", {**GROUPED, "head_dim": 32, "query_pre_attn_scalar": 32}),
    "Phi3": ("phi3", GROUPED),
    "GPT2": ("gpt2", OLD),
    "OPT": ("opt", {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": D}),
    "Falcon": ("falcon", {k: SIZES[k] for k in list(SIZES)[:1] + list(SIZES)[2:4]}),
}
"""Name of the config -> vLLM's module, and the sizes."""

TEXTS = ["The Eiffel Tower is in the city of", "Paris is", "When Tom and Mary went to the store"]


def class_of(family: str) -> str:
    return "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"


def known_here(family: str) -> None:
    """Tell vLLM the class itself: it would look at it in another process, which takes long."""
    from vllm import ModelRegistry

    module = import_module(f"vllm.model_executor.models.{FAMILIES[family][0]}")
    ModelRegistry.register_model(class_of(family), getattr(module, class_of(family)))


def written(family: str, folder: Path) -> Path:
    """A model with random weights and a tokenizer, as files."""
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **FAMILIES[family][1],
    )
    torch.manual_seed(0)
    model = getattr(transformers, class_of(family))(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def opened(folder: Path, **options: Any) -> Any:
    """The lens on a model in vLLM."""
    said = {"dtype": "float32", "max_model_len": 128, "disable_log_stats": True, **options}
    return lensbridge.load(folder, engine="vllm", **said)


def hugging(folder: Path) -> Any:
    """The lens on the same model in HuggingFace, with the kernel that caps scores of Gemma 2."""
    return lensbridge.load(folder, dtype="float32", attn_implementation="eager")
