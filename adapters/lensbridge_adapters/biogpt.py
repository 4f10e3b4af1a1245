"""BioGPT: learned positions, plain MLP on the block itself."""

from lensbridge.spec import MLP, Architecture, Attention, Block, Norms, SplitQKV

BIOGPT = Architecture(
    name="biogpt",
    classes=("BioGptForCausalLM", "BioGptModel"),
    embed="biogpt.embed_tokens",
    pos_embed="biogpt.embed_positions",
    blocks="biogpt.layers",
    block=Block(
        norms=Norms(pre_attn="self_attn_layer_norm", pre_mlp="final_layer_norm"),
        attn=Attention("self_attn", qkv=SplitQKV(), out="out_proj"),
        mlp=MLP("", up="fc1", down="fc2", written_by="fc2"),
    ),
    final_norm="biogpt.layer_norm",
    unembed="output_projection",
)

ARCHITECTURES = (BIOGPT,)
