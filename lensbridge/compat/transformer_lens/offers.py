"""HuggingFace classes for new models: for each kind of config, a class that computes it."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import isclose
from typing import Any, TypeAlias

from lensbridge.compat.transformer_lens import hf_configs
from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.hf_configs import ACTIVATIONS

Config: TypeAlias = HookedTransformerConfig

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


_PLAIN_ACTIVATION = (
    lambda cfg: cfg.act_fn in ACTIVATIONS,
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
    lambda cfg: cfg.attn_only or cfg.act_fn in {*ACTIVATIONS, "solu"},
    "a norm after its activation (solu_ln)",
)
_ALL_LOCAL = (
    lambda cfg: set(cfg.attn_types or ["local"]) == {"local"} and cfg.window_size is not None,
    "layers of which only some are local",
)
_WHOLE_SCALE = (
    lambda cfg: isclose(cfg.attn_scale**2, round(cfg.attn_scale**2), rel_tol=1e-6),
    "an attn_scale whose square is not a whole number",
)
_WINDOWED = (
    lambda cfg: not cfg.use_local_attn or (cfg.window_size is not None and bool(cfg.attn_types)),
    "local attention without window_size and attn_types",
)
_ROPE: dict[str, tuple[Any, ...] | None] = dict.fromkeys(
    (
        "rotary_dim",
        "rotary_base",
        "use_NTK_by_parts_rope",
        "NTK_by_parts_low_freq_factor",
        "NTK_by_parts_high_freq_factor",
        "NTK_by_parts_factor",
        "NTK_original_ctx_len",
    )
)
_TIES: dict[str, tuple[Any, ...] | None] = {"tie_word_embeddings": None}
_RMS: dict[str, tuple[Any, ...] | None] = {
    **_TIES,
    "normalization_type": ("RMS", "RMSPre"),
    "positional_embedding_type": ("rotary",),
    **_ROPE,
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
        hf_configs.gpt2,
    ),
    Offer(
        "GPTNeoXForCausalLM",
        {
            **_TIES,
            "normalization_type": ("LN", "LNPre"),
            "positional_embedding_type": ("rotary",),
            **_ROPE,
            "parallel_attn_mlp": None,
        },
        (_PLAIN_ACTIVATION, _USUAL_SCALE, _HEADS_FILL),
        hf_configs.neox,
    ),
    Offer(
        "LlamaForCausalLM", _RMS, (_PLAIN_ACTIVATION, _USUAL_SCALE, _WHOLE_ROTARY), hf_configs.llama
    ),
    Offer(
        "Qwen3ForCausalLM",
        {**_RMS, "use_qk_norm": (True,)},
        (_PLAIN_ACTIVATION, _USUAL_SCALE, _WHOLE_ROTARY),
        hf_configs.qwen3,
    ),
    Offer(
        "MistralForCausalLM",
        {**_RMS, "use_local_attn": (True,), "window_size": None, "attn_types": None},
        (_PLAIN_ACTIVATION, _USUAL_SCALE, _WHOLE_ROTARY, _ALL_LOCAL),
        hf_configs.mistral,
    ),
    Offer(
        "Gemma2ForCausalLM",
        {
            **_RMS,
            "use_normalization_before_and_after": (True,),
            "attn_scores_soft_cap": None,
            "output_logits_soft_cap": None,
            "use_attn_scale": None,
            "use_local_attn": None,
            "window_size": None,
            "attn_types": None,
        },
        (_PLAIN_ACTIVATION, _WHOLE_SCALE, _WHOLE_ROTARY, _WINDOWED),
        hf_configs.gemma2,
    ),
    Offer(
        "MixtralForCausalLM",
        {**_RMS, "num_experts": None, "experts_per_token": None},
        (_PLAIN_ACTIVATION, _USUAL_SCALE, _WHOLE_ROTARY),
        hf_configs.mixtral,
    ),
    Offer(
        "a plain decoder of this package",
        {
            "normalization_type": (None, "LN", "LNPre"),
            "positional_embedding_type": ("standard", "shortformer"),
            "attention_dir": ("causal", "bidirectional"),
            "attn_only": None,
            "use_attn_scale": None,
            "n_key_value_heads": None,
        },
        (_KNOWN_ACTIVATION,),
        hf_configs.plain,
    ),
)

ENCODER = Offer(
    "BertForMaskedLM",
    {**_TIES, "normalization_type": ("LN",), "attention_dir": ("causal", "bidirectional")},
    (_PLAIN_ACTIVATION, _USUAL_SCALE, _HEADS_FILL),
    hf_configs.bert,
)
"""The class of a new `HookedEncoder`."""
