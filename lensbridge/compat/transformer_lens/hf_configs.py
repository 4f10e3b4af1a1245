"""HuggingFace configs that say what a `HookedTransformerConfig` says."""

from typing import Any, TypeAlias

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig

Config: TypeAlias = HookedTransformerConfig

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_fast",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "silu": "silu",
}
"""Names of activations -> their names in HuggingFace."""


def _special() -> dict[str, None]:
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def gpt2(cfg: Config) -> Any:
    """A config of GPT-2."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=cfg.d_vocab,
        n_positions=cfg.n_ctx,
        n_embd=cfg.d_model,
        n_layer=cfg.n_layers,
        n_head=cfg.n_heads,
        n_inner=cfg.d_mlp,
        activation_function=ACTIVATIONS[str(cfg.act_fn)],
        layer_norm_epsilon=cfg.eps,
        initializer_range=cfg.initializer_range,
        scale_attn_weights=cfg.use_attn_scale,
        scale_attn_by_inverse_layer_idx=cfg.scale_attn_by_inverse_layer_idx,
        tie_word_embeddings=cfg.tie_word_embeddings,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **_special(),
    )


def _common(cfg: Config) -> dict[str, Any]:
    rotated = (cfg.rotary_dim or cfg.d_head) / cfg.d_head
    return {
        "vocab_size": cfg.d_vocab,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "intermediate_size": cfg.d_mlp,
        "hidden_act": ACTIVATIONS[str(cfg.act_fn)],
        "max_position_embeddings": cfg.n_ctx,
        "initializer_range": cfg.initializer_range,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "rope_parameters": {**_rope(cfg), "partial_rotary_factor": rotated},
        **_special(),
    }


def _rope(cfg: Config) -> dict[str, Any]:
    theta = float(cfg.rotary_base)
    if not cfg.use_NTK_by_parts_rope:
        return {"rope_type": "default", "rope_theta": theta}
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": cfg.NTK_by_parts_factor,
        "low_freq_factor": cfg.NTK_by_parts_low_freq_factor,
        "high_freq_factor": cfg.NTK_by_parts_high_freq_factor,
        "original_max_position_embeddings": cfg.NTK_original_ctx_len,
    }


def neox(cfg: Config) -> Any:
    """A config of GPT-NeoX."""
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(
        layer_norm_eps=cfg.eps, use_parallel_residual=cfg.parallel_attn_mlp, **_common(cfg)
    )


def llama(cfg: Config) -> Any:
    """A config of Llama."""
    from transformers import LlamaConfig

    return LlamaConfig(attention_bias=True, mlp_bias=True, **_grouped(cfg))


def qwen3(cfg: Config) -> Any:
    """A config of Qwen 3."""
    from transformers import Qwen3Config

    return Qwen3Config(attention_bias=True, **_grouped(cfg))


def mistral(cfg: Config) -> Any:
    """A config of Mistral."""
    from transformers import MistralConfig

    return MistralConfig(sliding_window=cfg.window_size, **_grouped(cfg))


def gemma2(cfg: Config) -> Any:
    """A config of Gemma 2."""
    from transformers import Gemma2Config

    kinds = {"global": "full_attention", "local": "sliding_attention"}
    local = cfg.attn_types if cfg.use_local_attn else None
    layers = (local or ["global"] * cfg.n_layers)[: cfg.n_layers]
    caps = (cfg.attn_scores_soft_cap, cfg.output_logits_soft_cap)
    scores, logits = (cap if cap > 0 else None for cap in caps)
    return Gemma2Config(
        attention_bias=True,
        query_pre_attn_scalar=round(cfg.attn_scale**2),
        attn_logit_softcapping=scores,
        final_logit_softcapping=logits,
        sliding_window=cfg.window_size or cfg.n_ctx,
        layer_types=[kinds[kind] for kind in layers],
        hidden_activation=ACTIVATIONS[str(cfg.act_fn)],
        **_grouped(cfg),
    )


def mixtral(cfg: Config) -> Any:
    """A config of Mixtral."""
    from transformers import MixtralConfig

    return MixtralConfig(
        num_local_experts=cfg.num_experts,
        num_experts_per_tok=cfg.experts_per_token,
        sliding_window=None,
        **_grouped(cfg),
    )


def _grouped(cfg: Config) -> dict[str, Any]:
    return {
        **_common(cfg),
        "head_dim": cfg.d_head,
        "num_key_value_heads": cfg.n_key_value_heads or cfg.n_heads,
        "rms_norm_eps": cfg.eps,
    }


def plain(cfg: Config) -> Any:
    """A config of the plain decoder of this package."""
    from lensbridge.compat.transformer_lens.plain import PlainConfig

    return PlainConfig(
        vocab_size=cfg.d_vocab,
        hidden_size=cfg.d_model,
        num_hidden_layers=cfg.n_layers,
        num_attention_heads=cfg.n_heads,
        num_key_value_heads=cfg.n_key_value_heads,
        head_dim=cfg.d_head,
        intermediate_size=None if cfg.attn_only else cfg.d_mlp,
        hidden_act=cfg.act_fn,
        max_position_embeddings=cfg.n_ctx,
        norm_eps=None if cfg.normalization_type is None else cfg.eps,
        shortformer=cfg.positional_embedding_type == "shortformer",
        causal=cfg.attention_dir == "causal",
        attn_scale=cfg.attn_scale,
        out_size=cfg.d_vocab_out,
        initializer_range=cfg.initializer_range,
        **_special(),
    )


def bert(cfg: Config) -> Any:
    """A config of BERT."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=cfg.d_vocab,
        hidden_size=cfg.d_model,
        num_hidden_layers=cfg.n_layers,
        num_attention_heads=cfg.n_heads,
        intermediate_size=cfg.d_mlp,
        hidden_act=ACTIVATIONS[str(cfg.act_fn)],
        max_position_embeddings=cfg.n_ctx,
        layer_norm_eps=cfg.eps,
        initializer_range=cfg.initializer_range,
        tie_word_embeddings=cfg.tie_word_embeddings,
        is_decoder=cfg.attention_dir == "causal",
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
        **_special(),
    )
