"""JetMoE: experts in attention too, which is described only at its ends."""

from dataclasses import replace

from lensbridge.spec import Block, Mixer, MoE
from lensbridge_adapters.llama import LLAMA, NORMS

JETMOE = replace(
    LLAMA,
    name="jetmoe",
    classes=("JetMoeForCausalLM", "JetMoeModel"),
    block=Block(
        norms=NORMS,
        # Queries and outputs go through experts' projections, sorted by expert: no heads in them.
        mixer=Mixer("self_attention", steps=("kv_proj",)),
        mlp=MoE("mlp", router="router.layer", experts=None, act="activation_function"),
    ),
)

ARCHITECTURES = (JETMOE,)
