"""HyperCLOVA X: Granite, with norms behind the branches if the config says so."""

from dataclasses import replace

from lensbridge_adapters.granite import GRANITE, SCALED_BLOCK
from lensbridge_adapters.llama import NORMS

HYPERCLOVAX = replace(
    GRANITE,
    name="hyperclovax",
    classes=("HyperCLOVAXForCausalLM", "HyperCLOVAXModel"),
    requires={"use_post_norm": False},
    logit_scale="logits_scaling",
)

HYPERCLOVAX_POST_NORMS = replace(
    HYPERCLOVAX,
    name="hyperclovax_post_norms",
    requires={"use_post_norm": True},
    block=replace(
        SCALED_BLOCK, norms=replace(NORMS, post_attn="post_norm1", post_mlp="post_norm2")
    ),
)

ARCHITECTURES = (HYPERCLOVAX, HYPERCLOVAX_POST_NORMS)
