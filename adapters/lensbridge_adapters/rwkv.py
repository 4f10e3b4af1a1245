"""RWKV 4: linear attention and a receptance-gated MLP, both fed with a mix of this and last token.

Layer 0 norms the stream itself before anything else, so its inside is not that of the others.
"""

from lensbridge.spec import MLP, Architecture, Block, Dims, Mixer, Norms

BLOCKS = (
    Block(norms=Norms(pre_attn="pre_ln"), residual=None),
    Block(
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
    ),
)

RWKV = Architecture(
    name="rwkv",
    classes=("RwkvForCausalLM", "RwkvModel"),
    dims=Dims(context="context_length"),
    embed="rwkv.embeddings",
    blocks="rwkv.blocks",
    block=BLOCKS,
    final_norm="rwkv.ln_out",
    unembed="head",
    undescribed={
        "residual": "the first layer norms the stream itself before anything else",
        "attn": "RWKV mixes positions with linear attention and has no pattern",
        "mlp": "of the first layer only the input and the output are described",
    },
)

ARCHITECTURES = (RWKV,)
