"""Beam: every sum weighs the branch and the stream by depth; gated attention, experts."""

from dataclasses import replace
from typing import Any

from lensbridge.spec import MoE, Norms
from lensbridge_adapters.llama import ATTENTION, BLOCK, GATED_MLP, LLAMA

NORMS = Norms(
    pre_attn="input_layernorm",
    post_attn="post_attention_layernorm",
    pre_mlp="pre_feedforward_layernorm",
    post_mlp="post_feedforward_layernorm",
    kind="RMS",
)
# the sum number n is branch / sqrt(n) + stream * sqrt((n - 1) / n), and the first has n = 2
ATTN_SUM: dict[str, Any] = {
    "scale": "1 / sqrt(2 * layer_index + 2)",
    "skip_scale": "sqrt((2 * layer_index + 1) / (2 * layer_index + 2))",
}
MLP_SUM: dict[str, Any] = {
    "scale": "1 / sqrt(2 * layer_index + 3)",
    "skip_scale": "sqrt((2 * layer_index + 2) / (2 * layer_index + 3))",
}
GATED = replace(ATTENTION, q_norm="q_norm", k_norm="k_norm", gated=True, **ATTN_SUM)
DENSE = replace(BLOCK, norms=NORMS, attn=GATED, mlp=replace(GATED_MLP, **MLP_SUM))

BEAM = replace(
    LLAMA,
    name="beam",
    classes=("BeamForCausalLM", "BeamModel"),
    block=(replace(DENSE, mlp=MoE("mlp", **MLP_SUM)), DENSE),
    logit_softcap="final_logit_softcapping",
)

ARCHITECTURES = (BEAM,)
