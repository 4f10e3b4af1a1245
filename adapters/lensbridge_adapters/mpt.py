"""MPT: fused QKV, ALiBi, LayerNorm without bias; its MLP adds the residual itself."""

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, FusedQKV, Norms

MPT = Architecture(
    name="mpt",
    classes=("MptForCausalLM", "MptModel"),
    dims=Dims(context="max_seq_len"),
    embed="transformer.wte",
    blocks="transformer.blocks",
    block=Block(
        norms=Norms(pre_attn="norm_1", pre_mlp="norm_2"),
        attn=Attention(
            "attn",
            qkv=FusedQKV("Wqkv", layout="blocked"),
            out="out_proj",
            written_by="resid_attn_dropout",
            clip="attn_config.clip_qkv",
        ),
        mlp=MLP(
            "ffn",
            up="up_proj",
            down="down_proj",
            act="gelu",  # not in the config
            written_by="ffn.down_proj",
        ),
    ),
    final_norm="transformer.norm_f",
    unembed="lm_head",
)

ARCHITECTURES = (MPT,)
