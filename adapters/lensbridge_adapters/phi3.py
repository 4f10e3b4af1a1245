"""Phi 3 and 4: Llama with fused QKV and a fused gated MLP."""

from dataclasses import replace

from lensbridge.spec import Attention, Block, FusedGatedMLP, FusedQKV
from lensbridge_adapters.llama import LLAMA, NORMS

PHI3 = replace(
    LLAMA,
    name="phi3",
    classes=(
        "Phi3ForCausalLM",
        "Phi3Model",
        "Phi4MultimodalForCausalLM",
        "Phi4MultimodalModel",
    ),
    block=Block(
        norms=NORMS,
        attn=Attention(
            "self_attn",
            qkv=FusedQKV("qkv_proj", layout="blocked"),
            out="o_proj",
            rotary=True,
            written_by="resid_attn_dropout",
        ),
        mlp=FusedGatedMLP(
            "mlp", gate_up="gate_up_proj", down="down_proj", written_by="resid_mlp_dropout"
        ),
    ),
)

ARCHITECTURES = (PHI3,)
