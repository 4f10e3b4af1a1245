"""DeepSeek V4: several streams that layers mix (hyper-connections), and mixtures of experts."""

from dataclasses import replace

from lensbridge.spec import Architecture, Block, Dims, GatedMLP, Mixer, MoE, Norms

MIXTURE = MoE(
    "mlp",
    shared=GatedMLP("shared_experts", gate="gate_proj", up="up_proj", down="down_proj"),
)
BLOCK = Block(
    norms=Norms(pre_attn="input_layernorm", pre_mlp="post_attention_layernorm", kind="RMS"),
    mixer=Mixer(
        "self_attn", steps=("q_a_proj", "q_a_norm", "q_b_proj", "kv_proj", "kv_norm", "o_b_proj")
    ),
    mlp=MIXTURE,
    residual=None,
)

DEEPSEEK_V4 = Architecture(
    name="deepseek_v4",
    classes=("DeepseekV4ForCausalLM", "DeepseekV4Model"),
    dims=Dims(),
    embed="model.embed_tokens",
    blocks="model.layers",
    block=(replace(BLOCK, mlp=replace(MIXTURE, table="gate.tid2eid")), BLOCK),
    streams="streams_last",
    final_norm="model.norm",
    unembed="lm_head",
    undescribed={
        "residual": "several streams are mixed by weights that each token computes "
        "(hyper-connections), so there is no one stream that branches add to",
        "attn": "keys are values too, turned by position and turned back after the kernel, and the "
        "output projection goes through a narrow latent for each group of heads",
    },
)

ARCHITECTURES = (DEEPSEEK_V4,)
