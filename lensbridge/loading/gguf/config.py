"""What transformers' config of a GGUF file leaves out, so that the model would be another one."""

from collections.abc import Callable
from typing import Any

from lensbridge.loading.gguf.reader import value_of
from lensbridge.loading.gguf.rotary import rotary_of

ARCHITECTURE = "general.architecture"
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of the models of 27B, whose attention is scaled by another width than the head's."""


def corrections(reader: Any, config: Callable[[], Any], name: str) -> dict[str, Any]:
    """Fields of the config, for `from_pretrained`.

    Args:
        reader: the file's header.
        config: returns the config that transformers makes from the file.
        name: of the file.

    Raises:
        LoadError: the file states something that no field says.
    """
    architecture = value_of(reader, ARCHITECTURE)
    found = {**_vocabulary(reader, architecture), **rotary_of(reader, config, name)}
    if architecture.startswith("t5"):  # transformers reads only gated ones, and gives them ReLU
        found |= {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new"}
    if _LARGEST_GEMMA.get(architecture) == value_of(reader, f"{architecture}.block_count"):
        width, heads = "embedding_length", "attention.head_count"
        sizes = [value_of(reader, f"{architecture}.{key}") for key in (width, heads)]
        found["query_pre_attn_scalar"] = sizes[0] // sizes[1]
    window = value_of(reader, f"{architecture}.attention.sliding_window")
    if architecture == "phi3" and window:
        found["sliding_window"] = window
    return found


def _vocabulary(reader: Any, architecture: str) -> dict[str, Any]:
    """The size of the vocabulary, where a file without a tokenizer leaves it to the embedding."""
    if {"tokenizer.ggml.tokens", f"{architecture}.vocab_size"} & set(reader.fields):
        return {}
    sizes = {one.name: int(one.shape[-1]) for one in reader.tensors}
    found = sizes.get("token_embd.weight")
    return {} if found is None else {"vocab_size": found}
