"""Kimi Linear and Ling 2.5: delta attention and latent attention (MLA) by turns, experts, dense."""

from dataclasses import replace

from lensbridge.spec import Block, Dims, LatentQKV, Mixer, MoE
from lensbridge_adapters.llama import ATTENTION, GATED_MLP, LLAMA, NORMS

EXPERTS = MoE("mlp", shared=replace(GATED_MLP, path="shared_experts"))
UNROTATED = replace(ATTENTION, rotary=False)

LATENT = Block(norms=NORMS, attn=replace(UNROTATED, qkv=LatentQKV()), mlp=GATED_MLP)
# without a latent for the queries
PLAIN_QUERIES = replace(
    LATENT, attn=replace(UNROTATED, qkv=LatentQKV(q="q_proj", q_down=None, q_norm=None))
)
DELTA = Block(
    norms=NORMS,
    mixer=Mixer(
        "self_attn",
        steps=("q_proj", "k_proj", "v_proj", "forget_gate.f_b_proj", "b_proj", "g_b_proj"),
    ),
    mlp=GATED_MLP,
)

KIMI_LINEAR = replace(
    LLAMA,
    name="kimi_linear",
    classes=("KimiLinearForCausalLM", "KimiLinearModel"),
    dims=Dims(),
    block=(
        replace(LATENT, mlp=EXPERTS),
        LATENT,
        replace(PLAIN_QUERIES, mlp=EXPERTS),
        PLAIN_QUERIES,
        replace(DELTA, mlp=EXPERTS),
        DELTA,
    ),
)

# z is gated per head before the output projection; some configs have a latent for the queries
GATED_LATENT = replace(LATENT, attn=replace(ATTENTION, qkv=LatentQKV(), gated=True))
GATED_PLAIN_QUERIES = replace(
    LATENT,
    attn=replace(ATTENTION, qkv=LatentQKV(q="q_proj", q_down=None, q_norm=None), gated=True),
)
GATED_DELTA = replace(
    DELTA,
    mixer=Mixer(
        "self_attn",
        steps=("q_proj", "k_proj", "v_proj", "forget_gate.f_proj", "b_proj", "g_proj"),
    ),
)

BAILING_HYBRID = replace(
    KIMI_LINEAR,
    name="bailing_hybrid",
    classes=("BailingHybridForCausalLM", "BailingHybridModel"),
    block=(
        replace(GATED_LATENT, mlp=EXPERTS),
        GATED_LATENT,
        replace(GATED_PLAIN_QUERIES, mlp=EXPERTS),
        GATED_PLAIN_QUERIES,
        replace(GATED_DELTA, mlp=EXPERTS),
        GATED_DELTA,
    ),
)

ARCHITECTURES = (KIMI_LINEAR, BAILING_HYBRID)
