"""RWKV 4: linear attention and a receptance-gated MLP, both fed with a mix of this and last token.

The norm of the embeddings is in layer 0. In eval mode the model halves the stream after every
`rescale_every` layers, and what later ones write.
"""

from lensbridge.spec import MLP, Architecture, Block, Dims, Mixer, Norms

BLOCK = Block(
    norms=Norms(pre_attn="ln1", pre_mlp="ln2"),
    mixer=Mixer("attention", steps=("key", "value", "receptance")),
    mlp=MLP(
        "feed_forward",
        up="key",
        down="value",
        act="relu2",
        token_shift="time_mix_key",
        out_gate="receptance",
    ),
)

RWKV = Architecture(
    name="rwkv",
    classes=("RwkvForCausalLM", "RwkvModel"),
    dims=Dims(context="context_length"),
    embed="rwkv.embeddings",
    embed_norm="rwkv.blocks.0.pre_ln",
    blocks="rwkv.blocks",
    block=BLOCK,
    interrupted="rescale_every",
    final_norm="rwkv.ln_out",
    unembed="head",
    undescribed={
        "attn": "RWKV mixes positions with linear attention and has no pattern",
    },
)

ARCHITECTURES = (RWKV,)
