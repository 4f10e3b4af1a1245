"""Falcon: the decoders of RefinedWeb-1B, of 7B and of 40B (the new one), with rotary or ALiBi."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, FusedQKV, Norms

ATTENTION = Attention(
    "self_attention", qkv=FusedQKV("query_key_value", layout="grouped"), out="dense"
)
MLP_ADDED_INTO = MLP(
    "mlp", up="dense_h_to_4h", down="dense_4h_to_h", act="activation", overwritten=True
)
# one norm for both branches
SINGLE_NORM = Block(
    norms=Norms(pre_attn="input_layernorm", pre_mlp="input_layernorm"),
    attn=ATTENTION,
    mlp=MLP("mlp", up="dense_h_to_4h", down="dense_4h_to_h", act="activation", overwritten=True),
    residual="parallel",
)
DOUBLE_NORM = replace(SINGLE_NORM, norms=Norms(pre_attn="ln_attn", pre_mlp="ln_mlp"))
SEQUENTIAL = replace(
    SINGLE_NORM,
    norms=Norms(pre_attn="input_layernorm", pre_mlp="post_attention_layernorm"),
    mlp=replace(MLP_ADDED_INTO, overwritten=False),
    residual="sequential",
)


def _decoder(
    name: str, kv_heads: str | int | None, *blocks: Block, **requires: bool
) -> tuple[Architecture, Architecture]:
    alibi = Architecture(
        name=f"{name}_alibi",
        classes=("FalconForCausalLM", "FalconModel"),
        requires={**requires, "alibi": True},
        dims=Dims(kv_heads=kv_heads),
        embed="transformer.word_embeddings",
        blocks="transformer.h",
        block=blocks,
        final_norm="transformer.ln_f",
        unembed="lm_head",
    )
    attn = replace(ATTENTION, rotary=True)
    rotary = replace(
        alibi,
        name=name,
        requires={**requires, "alibi": False},
        block=tuple(replace(block, attn=attn) for block in blocks),
    )
    return rotary, alibi


NEW = {"new_decoder_architecture": True}
OLD = {"new_decoder_architecture": False}
ONE_KEY = OLD | {"multi_query": True}
KEY_FOR_EACH = OLD | {"multi_query": False}

ARCHITECTURES = (
    *_decoder("falcon_new_decoder", "num_kv_heads", DOUBLE_NORM, SINGLE_NORM, **NEW),
    *_decoder("falcon", 1, SINGLE_NORM, parallel_attn=True, **ONE_KEY),
    *_decoder("falcon_multi_head", None, SINGLE_NORM, parallel_attn=True, **KEY_FOR_EACH),
    *_decoder("falcon_sequential", 1, SEQUENTIAL, parallel_attn=False, **ONE_KEY),
    *_decoder(
        "falcon_multi_head_sequential", None, SEQUENTIAL, parallel_attn=False, **KEY_FOR_EACH
    ),
)
