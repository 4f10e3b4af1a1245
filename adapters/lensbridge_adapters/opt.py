"""OPT: learned positions, MLP on the block itself, norms before the branches or behind them."""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

BLOCK = Block(
    norms=Norms(pre_attn="self_attn_layer_norm", pre_mlp="final_layer_norm"),
    attn=Attention("self_attn", qkv=SplitQKV(), out="out_proj"),
    mlp=MLP("", up="fc1", down="fc2", act="activation_function", written_by="fc2"),
    flattens=True,
)

OPT = Architecture(
    name="opt",
    classes=("OPTForCausalLM", "OPTModel"),
    requires={"do_layer_norm_before": True, "_remove_final_layer_norm": False},
    embed="model.decoder.embed_tokens",
    pos_embed="model.decoder.embed_positions",
    blocks="model.decoder.layers",
    block=BLOCK,
    final_norm="model.decoder.final_layer_norm",
    # only where the embedding is narrower than the stream (350M)
    head_hidden="model.decoder.project_out",
    unembed="lm_head",
)

OPT_POST_NORM = replace(
    OPT,
    name="opt_post_norm",
    requires={"do_layer_norm_before": False},
    block=replace(
        BLOCK,
        norms=Norms(post_attn="self_attn_layer_norm", post_mlp="final_layer_norm"),
        residual="post_norm",
    ),
    final_norm=None,
)

OPT_UNNORMED = replace(
    OPT,
    name="opt_unnormed",
    requires={"do_layer_norm_before": True, "_remove_final_layer_norm": True},
    final_norm=None,
)

ARCHITECTURES = (OPT, OPT_POST_NORM, OPT_UNNORMED)
