"""JetMoE: experts in attention too, which is described only at its ends."""

from dataclasses import replace

from lensbridge.spec import Block, Mixer, MoE, StackedExperts
from lensbridge_adapters.llama import LLAMA, NORMS

EXPERTS = StackedExperts(
    "",
    gate_up="input_linear.weight",
    down="output_linear.weight",
    activation="activation",
    given="sorted",
)

JETMOE = replace(
    LLAMA,
    name="jetmoe",
    classes=("JetMoeForCausalLM", "JetMoeModel"),
    block=Block(
        norms=NORMS,
        # Queries and outputs go through experts' projections, sorted by expert: no heads in them.
        mixer=Mixer("self_attention", steps=("kv_proj",)),
        mlp=MoE(
            "mlp", router="router", experts=EXPERTS, act="activation_function", out_bias="bias"
        ),
    ),
)

ARCHITECTURES = (JETMOE,)
