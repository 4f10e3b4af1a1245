"""CTRL: sinusoidal positions, which are no weights; an MLP that is a list of modules."""

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

CTRL = Architecture(
    name="ctrl",
    classes=("CTRLLMHeadModel", "CTRLModel"),
    embed="transformer.w",
    embed_scale="sqrt(n_embd)",
    blocks="transformer.h",
    block=Block(
        norms=Norms(pre_attn="layernorm1", pre_mlp="layernorm2"),
        attn=Attention(
            "multi_head_attention",
            qkv=SplitQKV("Wq", "Wk", "Wv"),
            out="dense",
            written_by="dropout1",
        ),
        mlp=MLP("ffn", up="0", down="2", act="relu", written_by="dropout2"),
    ),
    final_norm="transformer.layernorm",
    unembed="lm_head",
)

ARCHITECTURES = (CTRL,)
