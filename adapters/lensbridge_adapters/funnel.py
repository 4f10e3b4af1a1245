"""Funnel Transformer: layers at full, half and a quarter of the positions, then a decoder on all.

The decoder is the main stack. The first layer of a shorter stack pools its positions, so that these
stacks are described by their ends. Scores are products of queries and keys, plus biases, relative
positions and token types.
"""

from dataclasses import replace

from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, Norms, SplitQKV, Stack

BLOCK = Block(
    norms=Norms(post_attn="attention.layer_norm", post_mlp="ffn.layer_norm"),
    attn=Attention(
        "attention",
        qkv=SplitQKV("q_head", "k_head", "v_head"),
        out="post_proj",
        written_by="attention.hidden_dropout",
    ),
    mlp=MLP("ffn", up="linear_1", down="linear_2", written_by="ffn.dropout"),
    residual="post_norm",
)


def pooled(prefix: str, index: int, block: Block = BLOCK) -> Stack:
    """The layers of one resolution, without the embeddings."""
    dims = Dims(layers=f"block_sizes.{index}", context=None)
    return Stack(prefix=prefix, blocks=f"funnel.encoder.blocks.{index}", block=block, dims=dims)


FUNNEL = Architecture(
    name="funnel",
    classes=("FunnelForMaskedLM", "FunnelForTokenClassification", "FunnelModel"),
    dims=Dims(layers="num_decoder_layers", context=None),
    embed="funnel.embeddings.word_embeddings",
    embed_mixed=True,
    blocks="funnel.decoder.layers",
    block=BLOCK,
    towers=(
        replace(pooled("full.blocks", 0), embed_norm="funnel.embeddings.layer_norm"),
        pooled("half.blocks", 1, Block(residual=None)),
        pooled("quarter.blocks", 2, Block(residual=None)),
    ),
    unembed=("lm_head", "classifier"),
)

ARCHITECTURES = (FUNNEL,)
