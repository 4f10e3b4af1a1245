"""The config of a model that is open, read from the model and its HuggingFace config."""

from typing import Any

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.model import LensModel
from lensbridge.native.config import LensConfig

_NO_BOS = frozenset(
    {
        "GPTNeoXForCausalLM",
        "BloomForCausalLM",
        "QWenLMHeadModel",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "PhiForCausalLM",
    }
)
"""Classes for which TransformerLens adds no BOS by default."""

_KINDS = {
    "full_attention": "global",
    "global": "global",
    "sliding_attention": "local",
    "local": "local",
}
"""What HuggingFace calls layers that see all of the past, or a part -> TransformerLens's names."""

_SAME = (
    *("n_layers", "d_model", "n_ctx", "d_head", "n_heads", "d_mlp", "act_fn"),
    *("d_vocab", "d_vocab_out", "eps", "original_architecture", "final_rms"),
    *("positional_embedding_type", "rotary_dim", "parallel_attn_mlp", "tie_word_embeddings"),
    "dtype",
)
"""Fields that have the same name and meaning in the config of a lens."""


def config_of(model: LensModel, **known: Any) -> HookedTransformerConfig:
    """The config of a model that lensbridge has open.

    Args:
        model: the model, as `lensbridge.load` returns it.
        known: more fields to set.
    """
    lens = model.cfg
    hf = lens.hf.get_text_config().to_dict()
    said = {
        **{name: getattr(lens, name) for name in _SAME},
        **_of_name(lens),
        **_of_sizes(lens),
        "gated_mlp": any(name.endswith(".W_gate") for name in model.weight_names),
        **_of_attention(model),
        **_of_norms(model),
        **_local(hf),
        **_rope(hf),
        **_of_config(hf),
        "init_weights": False,
        "device": str(lens.device),
    }
    return HookedTransformerConfig(**{**said, **known})


def _of_name(lens: LensConfig) -> dict[str, Any]:
    """What follows from which model it is."""
    return {
        "model_name": lens.model_name.rpartition("/")[2],
        "tokenizer_name": lens.model_name,
        "default_prepend_bos": lens.original_architecture not in _NO_BOS,
    }


def _of_sizes(lens: LensConfig) -> dict[str, Any]:
    """Numbers of heads, experts and rotary channels, where they are written in another way."""
    grouped = lens.n_key_value_heads != lens.n_heads
    norms = lens.normalization_type
    return {
        "n_key_value_heads": lens.n_key_value_heads if grouped else None,
        "num_experts": lens.n_experts,
        "normalization_type": None if norms == "none" else norms,
        "rotary_base": lens.rotary_base or 10000,
    }


def _of_config(hf: dict[str, Any]) -> dict[str, Any]:
    """What HuggingFace's config says under other names."""
    return {
        "experts_per_token": hf.get("num_experts_per_tok"),
        "window_size": hf.get("sliding_window") or hf.get("window_size"),
        "scale_attn_by_inverse_layer_idx": bool(hf.get("scale_attn_by_inverse_layer_idx")),
        "attn_scores_soft_cap": hf.get("attn_logit_softcapping") or -1.0,
        "output_logits_soft_cap": hf.get("final_logit_softcapping") or -1.0,
        "initializer_range": float(hf.get("initializer_range") or 0.02),
    }


def _of_attention(model: LensModel) -> dict[str, Any]:
    """The divisor of scores, and whether queries and keys have norms."""
    parts = [block.attn for block in model.native.blocks if block.attn is not None]
    if not parts:
        return {}
    found = {"use_qk_norm": any(one.q_norm is not None for one in parts)}
    plain = model.cfg.original_architecture == "GPTNeoForCausalLM"
    scaling = 1.0 if plain else getattr(parts[0].module, "scaling", None)
    if not isinstance(scaling, float) or scaling == 0:
        return found
    return {**found, "attn_scale": 1 / scaling, "use_attn_scale": scaling != 1.0}


def _of_norms(model: LensModel) -> dict[str, Any]:
    """Where the model has norms beside the usual ones."""
    first = model.native.blocks[0]
    parts = [one for one in (first.attn, first.mlp) if one is not None]
    posts = [getattr(one, "post_norm", None) for one in parts]
    both = first.ln1 is not None and all(one is not None for one in posts)
    names = model.hook_names
    return {
        "use_normalization_before_and_after": bool(posts) and both,
        "post_embedding_ln": "ln_embed.hook_scale" in names,
    }


def _local(hf: dict[str, Any]) -> dict[str, Any]:
    """Which layers see only a part of the past."""
    kinds = [
        _KINDS.get(str(kind)) for kind in hf.get("layer_types") or hf.get("attention_layers") or ()
    ]
    if "local" not in kinds or None in kinds:
        return {}
    return {"use_local_attn": True, "attn_types": kinds}


def _rope(hf: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling of rotary frequencies."""
    rope = hf.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return {}
    return {
        "use_NTK_by_parts_rope": True,
        "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
        "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
        "NTK_by_parts_factor": rope["factor"],
        "NTK_original_ctx_len": rope["original_max_position_embeddings"],
    }
