"""`model.cfg`: the sizes and choices of a model under the field's names."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from lensbridge.parts import Native

_ROPE_THETA = 10000.0


@dataclass(frozen=True)
class LensConfig:
    """What a model is, under the names that notebooks use.

    Args:
        n_ctx: positions that the model was configured for.
        n_key_value_heads: key/value heads; equal to `n_heads` without grouping.
        act_fn: activation of the MLP, as HuggingFace names it.
        normalization_type: "LN" or "RMS".
        positional_embedding_type: "standard" (learned, absolute) or "rotary".
        rotary_dim: dimensions of each head that are rotated; None without rotary.
        architecture: name of the description in use; `plugin` brought it.
        hf: the HuggingFace config itself, the very object.
    """

    model_name: str
    original_architecture: str
    architecture: str
    plugin: str
    n_layers: int
    d_model: int
    n_ctx: int
    d_head: int
    n_heads: int
    n_key_value_heads: int
    d_mlp: int
    d_vocab: int
    d_vocab_out: int
    act_fn: str
    eps: float
    normalization_type: str
    final_rms: bool
    positional_embedding_type: str
    rotary_dim: int | None
    rotary_base: float | None
    gated_mlp: bool
    parallel_attn_mlp: bool
    tie_word_embeddings: bool
    attn_implementation: str
    default_prepend_bos: bool
    dtype: torch.dtype
    device: torch.device
    hf: Any

    def to_dict(self) -> dict[str, Any]:
        """Every field but the HuggingFace config."""
        plain = asdict(LensConfig(**{**self.__dict__, "hf": None}))
        del plain["hf"]
        return plain


def config_of(native: Native, default_prepend_bos: bool, device: torch.device) -> LensConfig:
    """The config of a resolved model."""
    hf: Any = native.core.config
    sizes, first = native.sizes, native.blocks[0]
    rotary = first.attn.rotary
    rope = dict(hf.rope_parameters) if rotary else {}
    return LensConfig(
        model_name=str(hf.name_or_path) or native.architecture.name,
        original_architecture=type(native.core).__name__,
        architecture=native.architecture.name,
        plugin=native.plugin,
        **asdict(sizes),
        d_vocab_out=sizes.d_vocab if native.unembed is None else native.unembed.n_out,
        act_fn=native.act_fn,
        eps=native.ln_final.eps,
        normalization_type=native.ln_final.kind,
        final_rms=native.ln_final.kind == "RMS",
        positional_embedding_type="rotary" if rotary else "standard",
        rotary_dim=int(sizes.d_head * rope.get("partial_rotary_factor", 1.0)) if rotary else None,
        rotary_base=float(rope.get("rope_theta", _ROPE_THETA)) if rotary else None,
        gated_mlp=first.mlp.gate is not None,
        parallel_attn_mlp=first.residual == "parallel",
        tie_word_embeddings=bool(hf.tie_word_embeddings),
        attn_implementation=str(hf._attn_implementation),
        default_prepend_bos=default_prepend_bos,
        dtype=next(native.core.parameters()).dtype,
        device=device,
        hf=hf,
    )
