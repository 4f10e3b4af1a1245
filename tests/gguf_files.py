"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants
from gguf.constants import MODEL_ARCH_NAMES
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

FAMILIES = ("llama", "qwen2", "gpt2", "gemma3")
Kind = GGMLQuantizationType
VOCAB = 320
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 2**-20,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

_GEMMA = {"head_dim": 32, "sliding_window": 8, **_SIZES}
_FIELDS: dict[str, Any] = {
    "gpt2": {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4},
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "t5": {
        "vocab_size": VOCAB,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 96,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    },
}
_CLASSES: dict[str, Any] = {
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "t5": (T5Config, T5ForConditionalGeneration),
}


def tiny(family: str, **fields: Any) -> PreTrainedModel:
    """A random model whose rows are whole blocks of every quantization, biases and norms too."""
    config, cls = _CLASSES[family]
    model: PreTrainedModel = cls(config(**{**_FIELDS.get(family, _SIZES), **fields}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return model.eval()


def write(
    model: PreTrainedModel,
    path: Path,
    kind: Kind = Kind.F32,
    tokenizer: PreTrainedTokenizerFast | None = None,
    extra: "dict[str, Any] | None" = None,
    tensors: "dict[str, np.ndarray] | None" = None,
    drop: tuple[str, ...] = (),
    **writing: Any,
) -> Path:
    """Write a model as a GGUF file.

    Args:
        model: as `tiny` makes it.
        path: of the file.
        kind: of matrices; vectors are float32, as in llama.cpp.
        tokenizer: a byte-level one.
        extra: more fields of the header, strings and numbers.
        tensors: more tensors.
        drop: names of tensors that are left out.
        writing: options of `GGUFWriter`.
    """
    architecture = {"gemma3_text": "gemma3"}.get(model.config.model_type, model.config.model_type)
    writer = GGUFWriter(path, architecture, **writing)
    _write_sizes(writer, model.config)
    for key, value in (extra or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        (writer.add_uint32 if isinstance(value, int) else add)(key, value)
    if tokenizer is not None:
        _write_tokenizer(writer, tokenizer)
    else:
        writer.add_vocab_size(model.config.vocab_size)
    for name, value in {**_named(model, architecture), **(tensors or {})}.items():
        if name not in drop:
            stored = kind if value.ndim > 1 else Kind.F32
            writer.add_tensor(name, quants.quantize(value, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_sizes(writer: GGUFWriter, config: Any) -> None:
    kind = config.model_type
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if kind == "t5":
        writer.add_key_length(config.d_kv)
        writer.add_feed_forward_length(config.d_ff)
        writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
        return writer.add_decoder_start_token_id(config.decoder_start_token_id)
    writer.add_context_length(config.max_position_embeddings)
    if kind == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        return writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if kind == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    if kind.startswith("gemma"):
        writer.add_key_length(config.head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    return None


def _write_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    unused = [f"<unused{index}>" for index in range(VOCAB - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _named(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    """Tensors under llama.cpp's names, in its layout; what is tied is left out."""
    code = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(code, model.config.num_hidden_layers)
    found = {}
    for name, value in model.state_dict().items():
        stem, _, end = name.rpartition(".")
        tied = model.config.tie_word_embeddings and architecture != "t5"
        if name.endswith("coder.embed_tokens.weight") or (tied and name == "lm_head.weight"):
            continue
        found[f"{names.get_name(stem)}.{end}"] = _laid_out(model.config, name, value).numpy()
    return found


def _laid_out(config: Any, name: str, value: Tensor) -> Tensor:
    if config.model_type == "gpt2" and value.ndim == 2 and ".h." in name:
        return value.T.contiguous()
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        return value + 1
    heads = (
        {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if (config.model_type == "llama")
        else {}
    )
    for projection, count in heads.items():
        if projection in name:  # halves of a head to pairs
            split = value.reshape(count, 2, -1, *value.shape[1:])
            return split.swapaxes(1, 2).reshape(value.shape).contiguous()
    return value
