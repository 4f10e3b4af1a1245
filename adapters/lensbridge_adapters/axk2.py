"""A.X K2: DeepSeek's latent attention with a gate beside the queries, and norms with gates."""

from dataclasses import replace

from lensbridge.spec import LatentQKV
from lensbridge_adapters.deepseek import DEEPSEEK, EXPERTS, LATENT
from lensbridge_adapters.llama import ATTENTION, NORMS

QUERIES = LatentQKV(q="q_gate_proj", q_reads_latent=True, gated_q=True)
DENSE = replace(
    LATENT,
    norms=replace(NORMS, inner="norm", gate="mlp"),
    attn=replace(ATTENTION, qkv=QUERIES, gated=True),
)

AXK2 = replace(
    DEEPSEEK,
    name="axk2",
    classes=("AXK2ForCausalLM", "AXK2Model"),
    block=(replace(DENSE, mlp=EXPERTS), DENSE),
)

ARCHITECTURES = (AXK2,)
