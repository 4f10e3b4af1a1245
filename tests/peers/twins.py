"""One tiny random model twice: a HuggingFace model, and TransformerLens's classic copy of it.

Norms have gains and biases that are not one and zero, and sizes differ, so that what is forgotten
or mixed up shows. Nothing is downloaded: the config of the copy is written out by hand.
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained import weight_conversions

from lensbridge.conformance.tiny import tiny_from

HF = {
    "hidden_size": 24,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "head_dim": 6,
    "layer_norm_eps": 1e-5,
    "rms_norm_eps": 1e-5,
}
OLD = {"n_embd": 24, "n_head": 4, "n_inner": 96}
TL = {
    "n_layers": 2, "d_model": 24, "n_heads": 4, "d_head": 6, "d_mlp": 96, "d_vocab": 97,
    "n_ctx": 48, "eps": 1e-5, "init_weights": False, "device": "cpu", "normalization_type": "LN",
}  # fmt: skip
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 6, "rotary_adjacent_pairs": False}
RMS = {
    **ROTARY, "normalization_type": "RMS", "n_key_value_heads": 2, "gated_mlp": True,
    "final_rms": True, "act_fn": "silu",
}  # fmt: skip
GEMMA = {**RMS, "act_fn": "gelu_pytorch_tanh", "rotary_base": 10000}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
HALF = {**ROPE, "partial_rotary_factor": 2 / 3}

STEPS = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "GPT2LMHeadModel": (
        "gpt2",
        {**OLD, "scale_attn_by_inverse_layer_idx": False},
        {"act_fn": "gelu_new"},
    ),
    "GPTNeoForCausalLM": (
        "neo",
        {"hidden_size": 24, "num_heads": 4, "intermediate_size": 96, "window_size": 4},
        {"act_fn": "gelu_new", "use_attn_scale": False, "use_local_attn": True, "window_size": 4,
         "attn_types": ["global", "local"]},
    ),
    "GPTNeoXForCausalLM": (
        "neox",
        {**HF, "rope_parameters": HALF},
        {**ROTARY, "act_fn": "gelu", "rotary_dim": 4, "parallel_attn_mlp": True},
    ),
    "GPTJForCausalLM": (
        "gptj",
        {**OLD, "rotary_dim": 4},
        {**ROTARY, "act_fn": "gelu_new", "rotary_dim": 4, "rotary_adjacent_pairs": True,
         "parallel_attn_mlp": True},
    ),
    "OPTForCausalLM": (
        "opt",
        {**HF, "ffn_dim": 96, "word_embed_proj_dim": 24},
        {"act_fn": "relu"},
    ),
    "BloomForCausalLM": (
        "bloom",
        {"hidden_size": 24, "n_head": 4},
        {"act_fn": "gelu_fast", "positional_embedding_type": "alibi", "post_embedding_ln": True},
    ),
    "PhiForCausalLM": (
        "phi",
        {**HF, "num_key_value_heads": 4, "rope_parameters": HALF},
        {**ROTARY, "act_fn": "gelu_new", "rotary_dim": 4, "parallel_attn_mlp": True},
    ),
    "LlamaForCausalLM": ("llama", {**HF, "attention_bias": False, "mlp_bias": False}, RMS),
    "MistralForCausalLM": ("mistral", {**HF, "sliding_window": None}, RMS),
    "Qwen2ForCausalLM": ("qwen2", {**HF, "use_sliding_window": False}, RMS),
    "MixtralForCausalLM": (
        "mixtral",
        {**HF, "sliding_window": None, "rope_parameters": ROPE},
        {**RMS, "num_experts": 4, "experts_per_token": 2, "norm_topk_prob": True},
    ),
    "GemmaForCausalLM": ("gemma", {**HF, "attention_bias": False}, GEMMA),
    "Gemma2ForCausalLM": (
        "gemma",
        {**HF, "attention_bias": False, "attn_logit_softcapping": 3.0,
         "final_logit_softcapping": 4.0,
         "query_pre_attn_scalar": 6, "sliding_window": 48},
        {**GEMMA, "use_normalization_before_and_after": True, "attn_scores_soft_cap": 3.0,
         "output_logits_soft_cap": 4.0, "attn_scale": 6**0.5},
    ),
}  # fmt: skip


def twins(
    name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **steps: bool
) -> tuple[nn.Module, HookedTransformer]:
    """A model of a class in `FAMILIES`, and TransformerLens's copy with the same weights.

    Args:
        name: the transformers class.
        dtype: of both.
        seed: of the weights.
        steps: TransformerLens's processing of its copy (`fold_ln=True`...); none by default.
    """
    converter, fields, cfg = FAMILIES[name]
    hf_model = tiny_from(getattr(transformers, name), fields, dtype, "eager", seed)
    config = HookedTransformerConfig(**{**TL, **cfg}, dtype=dtype, original_architecture=name)
    state: dict[str, Any] = getattr(weight_conversions, f"convert_{converter}_weights")(
        hf_model, config
    )
    classic = HookedTransformer(config)
    off = dict.fromkeys(STEPS, False)
    classic.load_and_process_state_dict(dict(state), **{**off, **steps})
    return hf_model, classic


def theirs(classic: HookedTransformer, name: str) -> Tensor | None:
    """The copy's weight of a canonical name, where it has one."""
    known = {**dict(classic.named_parameters()), **dict(classic.named_buffers())}
    if name in known:
        return known[name]
    if (grouped := name.replace("attn.", "attn._")) in known:  # of key/value heads
        return known[grouped]
    at, _, side = name.rpartition(".")
    experts = [f"{at}.experts.{e}.{side}.weight" for e in range(classic.cfg.num_experts or 0)]
    if experts and experts[0] in known:
        return torch.stack([known[one].T for one in experts])
    return None
