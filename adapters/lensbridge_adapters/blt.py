"""Byte Latent Transformer: layers on bytes, a large stack on patches of bytes, layers on bytes."""

from dataclasses import replace

from lensbridge.spec import Stack
from lensbridge_adapters.llama import BLOCK, DIMS, LLAMA

ENCODER = Stack(
    prefix="local.blocks",
    dims=DIMS,
    config="encoder_config",
    blocks="model.local_encoder.layers",
    block=BLOCK,
)

PATCHES = replace(
    ENCODER,
    prefix="global.blocks",
    dims=replace(DIMS, vocab=0),
    config="global_config",
    blocks="model.global_transformer.layers",
)

PATCHER = replace(
    ENCODER,
    prefix="patcher.blocks",
    config="patcher_config",
    embed="model.patcher.embed_tokens",
    blocks="model.patcher.layers",
    final_norm="model.patcher.norm",
)

BLT = replace(
    LLAMA,
    name="blt",
    classes=("BltForCausalLM", "BltModel"),
    config="decoder_config",
    # hashes of groups of bytes are added to the embeddings, and the encoder runs on them
    embed="model.local_encoder.embed_tokens",
    embed_mixed=True,
    embed_overwritten=True,
    blocks="model.local_decoder.layers",
    interrupted=True,  # by cross-attention to the patches
    final_norm="model.local_decoder.norm",
    towers=(PATCHER, ENCODER, PATCHES),
    requires={"patch_in_forward": True},
)

BLT_WITHOUT_PATCHER = replace(
    BLT,
    name="blt_without_patcher",
    towers=(ENCODER, PATCHES),
    requires={"patch_in_forward": False},
)

ARCHITECTURES = (BLT, BLT_WITHOUT_PATCHER)
