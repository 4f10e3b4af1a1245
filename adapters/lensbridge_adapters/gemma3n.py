"""Gemma 3n, the text model: several streams predict and correct one another (AltUp)."""

from lensbridge.spec import Architecture, Block, Dims, Norms

GEMMA3N_TEXT = Architecture(
    name="gemma3n_text",
    classes=("Gemma3nForCausalLM", "Gemma3nTextModel"),
    dims=Dims(kv_heads="num_key_value_heads"),
    embed="model.embed_tokens",
    blocks="model.layers",
    # There is no one stream that the branches add to.
    block=Block(norms=Norms(kind="RMS"), residual=None),
    streams="streams_first",
    final_norm="model.norm",
    unembed="lm_head",
    logit_softcap="final_logit_softcapping",
)

ARCHITECTURES = (GEMMA3N_TEXT,)
