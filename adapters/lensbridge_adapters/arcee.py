"""Arcee: Llama with an MLP that is not gated. Jais 2 and Nemotron: the same with LayerNorms."""

from dataclasses import replace

from lensbridge.spec import MLP
from lensbridge_adapters.llama import BLOCK, LLAMA, NORMS

PLAIN = replace(BLOCK, mlp=MLP("mlp", up="up_proj", down="down_proj"))

ARCEE = replace(LLAMA, name="arcee", classes=("ArceeForCausalLM", "ArceeModel"), block=PLAIN)

JAIS2 = replace(
    LLAMA,
    name="jais2",
    classes=("Jais2ForCausalLM", "Jais2Model"),
    block=replace(PLAIN, norms=replace(NORMS, kind="LN")),
)

NEMOTRON = replace(
    LLAMA,
    name="nemotron",
    classes=("NemotronForCausalLM", "NemotronModel"),
    block=replace(PLAIN, norms=replace(NORMS, kind="LN", unit_offset=True)),
)

ARCHITECTURES = (ARCEE, JAIS2, NEMOTRON)
