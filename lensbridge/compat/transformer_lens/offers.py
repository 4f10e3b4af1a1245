"""HuggingFace classes for new models: for each kind of config, a class that computes it."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import isclose
from typing import Any, TypeAlias

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig

Config: TypeAlias = HookedTransformerConfig

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_fast",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "silu": "silu",
}
FREE = frozenset(
    {
        "n_layers",
        "d_model",
        "n_ctx",
        "d_head",
        "n_heads",
        "d_mlp",
        "d_vocab",
        "d_vocab_out",
        "eps",
        "act_fn",
        "model_name",
        "tokenizer_name",
        "original_architecture",
        "attn_scale",
        "seed",
        "device",
        "dtype",
        "n_devices",
        "n_params",
        "init_mode",
        "init_weights",
        "initializer_range",
        "default_prepend_bos",
        "tokenizer_prepends_bos",
        "from_checkpoint",
        "checkpoint_index",
        "checkpoint_label_type",
        "checkpoint_value",
        "trust_remote_code",
        "use_attn_result",
        "use_split_qkv_input",
        "use_hook_mlp_in",
        "use_attn_in",
        "use_hook_tokens",
        "ungroup_grouped_query_attention",
    }
)
"""Fields that may have any value in every class."""


@dataclass(frozen=True)
class Offer:
    """A HuggingFace class and the configs that it can express.

    Args:
        name: its name in errors.
        takes: field -> the values that it can have; any other field must have its default.
        demands: further conditions, each with the words for the error if it does not hold.
        build: makes the HuggingFace config.
    """

    name: str
    takes: dict[str, tuple[Any, ...] | None]
    demands: tuple[tuple[Callable[[Config], bool], str], ...]
    build: Callable[[Config], Any]

    def objections(self, cfg: Config) -> list[str]:
        """The parts of a config that it cannot express."""
        found = []
        for one in fields(Config):
            if one.name in FREE:
                continue
            value, allowed = vars(cfg)[one.name], self.takes.get(one.name, (one.default,))
            if allowed is not None and value not in allowed:
                found.append(f"{one.name}={value!r}")
        return found + [message for holds, message in self.demands if not holds(cfg)]


def _special() -> dict[str, None]:
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def _gpt2(cfg: Config) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=cfg.d_vocab,
        n_positions=cfg.n_ctx,
        n_embd=cfg.d_model,
        n_layer=cfg.n_layers,
        n_head=cfg.n_heads,
        n_inner=cfg.d_mlp,
        activation_function=_ACTIVATIONS[str(cfg.act_fn)],
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
        "hidden_act": _ACTIVATIONS[str(cfg.act_fn)],
        "max_position_embeddings": cfg.n_ctx,
        "initializer_range": cfg.initializer_range,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(cfg.rotary_base),
            "partial_rotary_factor": rotated,
        },
        **_special(),
    }


def _neox(cfg: Config) -> Any:
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(
        layer_norm_eps=cfg.eps, use_parallel_residual=cfg.parallel_attn_mlp, **_common(cfg)
    )


def _llama(cfg: Config) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(attention_bias=True, mlp_bias=True, **_grouped(cfg))


def _mistral(cfg: Config) -> Any:
    from transformers import MistralConfig

    return MistralConfig(sliding_window=cfg.window_size, **_grouped(cfg))


def _mixtral(cfg: Config) -> Any:
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


def _plain(cfg: Config) -> Any:
    from lensbridge.compat.transformer_lens.plain import PlainConfig

    return PlainConfig(
        vocab_size=cfg.d_vocab,
        hidden_size=cfg.d_model,
        num_hidden_layers=cfg.n_layers,
        num_attention_heads=cfg.n_heads,
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


_PLAIN_ACTIVATION = (
    lambda cfg: cfg.act_fn in _ACTIVATIONS,
    "an activation that HuggingFace does not have (solu, solu_ln, ...)",
)
_USUAL_SCALE = (
    lambda cfg: isclose(cfg.attn_scale, cfg.d_head**0.5 if cfg.use_attn_scale else 1.0),
    "attn_scale other than the root of d_head",
)
_HEADS_FILL = (
    lambda cfg: cfg.d_head * cfg.n_heads == cfg.d_model,
    "d_head * n_heads other than d_model",
)
_WHOLE_ROTARY = (
    lambda cfg: cfg.rotary_dim == cfg.d_head,
    "rotary_dim other than d_head",
)
_KNOWN_ACTIVATION = (
    lambda cfg: cfg.attn_only or cfg.act_fn in {*_ACTIVATIONS, "solu"},
    "a norm after its activation (solu_ln)",
)
_ALL_LOCAL = (
    lambda cfg: set(cfg.attn_types or ["local"]) == {"local"} and cfg.window_size is not None,
    "layers of which only some are local",
)
_TIES: dict[str, tuple[Any, ...] | None] = {"tie_word_embeddings": None}
_RMS: dict[str, tuple[Any, ...] | None] = {
    **_TIES,
    "normalization_type": ("RMS", "RMSPre"),
    "positional_embedding_type": ("rotary",),
    "rotary_dim": None,
    "rotary_base": None,
    "gated_mlp": (True,),
    "final_rms": None,
    "n_key_value_heads": None,
}

OFFERS = (
    Offer(
        "GPT2LMHeadModel",
        {
            **_TIES,
            "normalization_type": ("LN", "LNPre"),
            "use_attn_scale": None,
            "scale_attn_by_inverse_layer_idx": None,
        },
        (_PLAIN_ACTIVATION, _USUAL_SCALE, _HEADS_FILL),
        _gpt2,
    ),
    Offer(
        "GPTNeoXForCausalLM",
        {
            **_TIES,
            "normalization_type": ("LN", "LNPre"),
            "positional_embedding_type": ("rotary",),
            "rotary_dim": None,
            "rotary_base": None,
            "parallel_attn_mlp": None,
        },
        (_PLAIN_ACTIVATION, _USUAL_SCALE, _HEADS_FILL),
        _neox,
    ),
    Offer("LlamaForCausalLM", _RMS, (_PLAIN_ACTIVATION, _USUAL_SCALE, _WHOLE_ROTARY), _llama),
    Offer(
        "MistralForCausalLM",
        {**_RMS, "use_local_attn": (True,), "window_size": None, "attn_types": None},
        (_PLAIN_ACTIVATION, _USUAL_SCALE, _WHOLE_ROTARY, _ALL_LOCAL),
        _mistral,
    ),
    Offer(
        "MixtralForCausalLM",
        {**_RMS, "num_experts": None, "experts_per_token": None},
        (_PLAIN_ACTIVATION, _USUAL_SCALE, _WHOLE_ROTARY),
        _mixtral,
    ),
    Offer(
        "a plain decoder of this package",
        {
            "normalization_type": (None, "LN", "LNPre"),
            "positional_embedding_type": ("standard", "shortformer"),
            "attention_dir": ("causal", "bidirectional"),
            "attn_only": None,
            "use_attn_scale": None,
        },
        (_KNOWN_ACTIVATION,),
        _plain,
    ),
)
