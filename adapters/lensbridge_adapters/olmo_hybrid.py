"""OLMo Hybrid: delta nets with norms before the branches, attention with norms behind them."""

from dataclasses import replace

from lensbridge.spec import Block, Mixer, Norms
from lensbridge_adapters.llama import ATTENTION, GATED_MLP, LLAMA, NORMS

POST_NORMS = Norms(
    post_attn="post_attention_layernorm", post_mlp="post_feedforward_layernorm", kind="RMS"
)
STEPS = ("q_proj", "k_proj", "v_proj", "b_proj", "a_proj", "g_proj")

OLMO_HYBRID = replace(
    LLAMA,
    name="olmo_hybrid",
    classes=("OlmoHybridForCausalLM", "OlmoHybridModel"),
    block=(
        Block(
            norms=POST_NORMS,
            attn=replace(ATTENTION, q_norm="q_norm", k_norm="k_norm", qk_norm_axes="flat"),
            mlp=GATED_MLP,
        ),
        Block(norms=NORMS, mixer=Mixer("linear_attn", steps=STEPS), mlp=GATED_MLP),
    ),
)

ARCHITECTURES = (OLMO_HYBRID,)
