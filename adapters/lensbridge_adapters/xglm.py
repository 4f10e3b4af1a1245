"""XGLM: sinusoidal positions; plain MLP on the block itself."""

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

XGLM = Architecture(
    name="xglm",
    classes=("XGLMForCausalLM", "XGLMModel"),
    embed="model.embed_tokens",
    pos_embed="model.embed_positions",
    blocks="model.layers",
    block=Block(
        norms=Norms(pre_attn="self_attn_layer_norm", pre_mlp="final_layer_norm"),
        attn=Attention("self_attn", qkv=SplitQKV(), out="out_proj"),
        mlp=MLP("", up="fc1", down="fc2", act="activation_function", written_by="fc2"),
    ),
    final_norm="model.layer_norm",
    unembed="lm_head",
)

ARCHITECTURES = (XGLM,)
