"""`model.cfg`: the sizes and choices of a model under the field's names."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from lensbridge.native.parts import AttentionPart, MLPPart, MoEPart, ResolvedModel
from lensbridge.native.settings import kernel_of, raw_config, settings_of

_ROPE_THETA = 10000.0


@dataclass(frozen=True)
class LensConfig:
    """The sizes and choices of a model, under the names that notebooks use.

    Args:
        n_ctx: the number of positions that the model was configured for; None if unlimited.
        n_key_value_heads: key/value heads; as many as `n_heads` without grouped-query attention.
        act_fn: the activation of the MLP, under its name in HuggingFace.
        normalization_type: "LN" or "RMS"; like `eps`, of the final norm or else a layer's.
        n_experts: the number of experts in a mixture, else None.
        positional_embedding_type: "rotary", "standard" (learned, absolute), "relative_bias", or
            "none" for anything else (ALiBi, sinusoids, no positions).
        rotary_dim: how many dimensions of each head are rotated; None without rotary, and like
            `rotary_base` where a plain module's config does not say it.
        architecture: the name of the description in use; `plugin` is where it comes from.
        attn_implementation: as transformers names it; "own" where the code has only one kernel.
        hf: the model's own config object; None where a plain module has none.
    """

    model_name: str
    original_architecture: str
    architecture: str
    plugin: str
    n_layers: int
    d_model: int
    n_ctx: int | None
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
    n_experts: int | None
    parallel_attn_mlp: bool
    tie_word_embeddings: bool
    attn_implementation: str
    default_prepend_bos: bool
    dtype: torch.dtype
    device: torch.device
    hf: Any

    def to_dict(self) -> dict[str, Any]:
        """Every field except the HuggingFace config."""
        plain = asdict(LensConfig(**{**self.__dict__, "hf": None}))
        del plain["hf"]
        return plain


def config_of(native: ResolvedModel, default_prepend_bos: bool, device: torch.device) -> LensConfig:
    """The config of a resolved model."""
    hf = raw_config(native.core)
    settings = settings_of(native.core)
    sizes, first = native.sizes, native.blocks[0]
    attn = next((block.attn for block in native.blocks if block.attn is not None), None)
    rotary_dim, rotary_base = _rotary(native, attn)
    norm = native.ln_final or next(iter(first.norms.values()), None)
    return LensConfig(
        model_name=str(getattr(hf, "name_or_path", "")) or native.architecture.name,
        original_architecture=type(native.core).__name__,
        architecture=native.architecture.name,
        plugin=native.plugin,
        **asdict(sizes),
        d_vocab_out=sizes.d_vocab if native.unembed is None else native.unembed.n_out,
        act_fn=native.act_fn,
        eps=norm.eps if norm else 0.0,
        normalization_type=norm.kind if norm else "none",
        final_rms=native.ln_final is not None and native.ln_final.kind == "RMS",
        positional_embedding_type=_positions(native, attn),
        rotary_dim=rotary_dim,
        rotary_base=rotary_base,
        **_of_mlps(native),
        parallel_attn_mlp=first.residual == "parallel",
        tie_word_embeddings=bool(settings.to_dict().get("tie_word_embeddings", _is_tied(native))),
        attn_implementation=kernel_of(native.core),
        default_prepend_bos=default_prepend_bos,
        dtype=next(native.core.parameters()).dtype,
        device=device,
        hf=hf,
    )


def _of_mlps(native: ResolvedModel) -> dict[str, Any]:
    mlps = [block.mlp for block in native.blocks]
    return {
        "gated_mlp": any(isinstance(mlp, MLPPart) and mlp.gate is not None for mlp in mlps),
        "n_experts": next((mlp.n_experts for mlp in mlps if isinstance(mlp, MoEPart)), None),
    }


def _rotary(native: ResolvedModel, attn: AttentionPart | None) -> tuple[int | None, float | None]:
    """How many dimensions rotate, and the base of their speeds; None where nothing says it."""
    if attn is None or not attn.rotary:
        return None, None
    said = native.main.config.to_dict()
    rope = dict(said.get("rope_parameters") or {})
    if native.calling.is_plain and not rope:
        base = said.get("rope_theta")
        return None, None if base is None else float(base)
    width = int(native.sizes.d_head * rope.get("partial_rotary_factor", 1.0))
    return width, float(rope.get("rope_theta", _ROPE_THETA))


def _is_tied(native: ResolvedModel) -> bool:
    """Whether the embedding and the head are one parameter, where no config says it."""
    tables = (native.main.embed, native.unembed.module if native.unembed else None)
    weights = [None if one is None else one._parameters.get("weight") for one in tables]
    return native.calling.is_plain and weights[0] is not None and weights[0] is weights[1]


def _positions(native: ResolvedModel, attn: AttentionPart | None) -> str:
    if attn is not None and attn.rotary:
        return "rotary"
    if native.main.pos_embed is not None:
        return "standard"
    biased = any(block.attn and block.attn.position_bias for block in native.blocks)
    return "relative_bias" if biased else "none"
