"""Each reason why a model lacks a point, told by a model of which it is true."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from lensbridge_adapters.bert import BERT
from lensbridge_adapters.clip import CLIP_VISION
from lensbridge_adapters.deepseek_v4 import DEEPSEEK_V4
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.mamba import MAMBA
from lensbridge_adapters.mixtral import MIXTRAL
from lensbridge_adapters.phi import PHI
from lensbridge_adapters.xmod import XMOD
from lensbridge_adapters.zamba import ZAMBA

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import AbsentPointError
from lensbridge.sites.wiring.absence import ABSENCES
from lensbridge.spec import Architecture, Block, Norms
from lensbridge.testing import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCK: Any = MIXTRAL.block
WITHOUT_EXPERTS = replace(
    MIXTRAL,
    block=replace(BLOCK, mlp=replace(BLOCK.mlp, experts=None)),
    undescribed={"experts": "nobody looked into them"},
)
WITHOUT_POOLER = replace(
    BERT, pooler=None, classes=("BertModel",), undescribed={"pooler": "it reads one position"}
)
CLOSED = replace(
    GPT2, block=Block(Norms(), residual=None), undescribed={"residual": "nobody looked into it"}
)

WITHOUT_ENDS = replace(
    GPT2,
    embed=None,
    pos_embed=None,
    final_norm=None,
    unembed=None,
    undescribed={"unembed": "nobody looked into it"},
)

CASES = [
    (GPT2, "{point}.hook_sae_input", "no SAE with this value is spliced in there"),
    (
        PHI,
        "blocks.{i}.hook_resid_mid",
        "attention and MLP run in parallel, so there is no residual between them",
    ),
    (WITHOUT_ENDS, "hook_embed", "'gpt2' does not describe the embedding of GPT2LMHeadModel"),
    (
        WITHOUT_ENDS,
        "ln_final.hook_out",
        "'gpt2' describes no norm after the last layer of GPT2LMHeadModel",
    ),
    (PHI, "hook_pos_embed", "it has no learned absolute positions"),
    (CLIP_VISION, "hook_logits", "CLIPVisionModel has no head"),
    (
        WITHOUT_POOLER,
        "hook_pooler_out",
        "the pooler of BertModel is not described ('bert'): it reads one position",
    ),
    (GPT2, "hook_pooler_out", "GPT2LMHeadModel has no pooler"),
    (GPT2, "projector.hook_out", "it has no vision tower"),
    (GPT2, "head.hook_hidden", "its head reads the stream or the final norm directly"),
    (GPT2, "blocks.{i}.mlp.hook_pre_linear", "its MLP is not gated"),
    (GPT2, "blocks.{i}.hook_per_layer_out", "its layers have no per-layer input"),
    (GPT2, "blocks.{i}.attn.hook_rel_pos_bias", "it has no relative-position bias"),
    (
        CLOSED,
        "blocks.{i}.mlp.hook_pre",
        "the inside of GPT2Block is not described ('gpt2'): nobody looked into it",
    ),
    (
        XMOD,
        "blocks.{i}.hook_resid_mid",
        "how the branches of XmodLayer write to the stream is not described ('xmod'): "
        "each language has an adapter behind the MLPs that adds to the stream",
    ),
    (
        MAMBA,
        "blocks.{i}.hook_resid_mid",
        "'mamba' describes one branch of MambaBlock, so there is no residual between two",
    ),
    (PHI, "blocks.{i}.ln2.hook_out", "attention and MLP read the same norm, which is ln1"),
    (
        ZAMBA,
        "blocks.{i}.attn.hook_q",
        "no projections to the queries and keys of ZambaAttention are described; hook_rot_q and "
        "hook_rot_k are what its kernel gets",
    ),
    (
        WITHOUT_EXPERTS,
        "blocks.{i}.mlp.hook_expert_weights",
        "the experts of MixtralDecoderLayer are not described ('mixtral'): nobody looked into them",
    ),
    (GPT2, "blocks.{i}.cross_attn.hook_q", "GPT2Block has no cross-attention"),
    (
        GPT2,
        "blocks.{i}.hook_mixer_out",
        "GPT2Block has no mixer, beside attention or in its place",
    ),
    (
        GPT2,
        "blocks.{i}.mlp.experts.{e}.hook_post",
        "GPT2Block has no experts that can be read one by one",
    ),
    (GPT2, "blocks.{i}.mlp.shared.hook_post", "GPT2Block has no MLP that all tokens share"),
    (GPT2, "blocks.{i}.mlp.hook_router_logits", "GPT2Block has no router"),
    (GPT2, "blocks.{i}.mlp.hook_expert_indices", "GPT2Block has no experts"),
    (GPT2, "blocks.{i}.attn.hook_kv_latent", "GPT2Block has no latent attention"),
    (GPT2, "blocks.{i}.attn.hook_rot_k", "its attention has no rotary embedding"),
    (GPT2, "blocks.{i}.attn.hook_head_out", "GPT2Block has no norm after that branch"),
    (
        ZAMBA,
        "blocks.{i}.hook_attn_out",
        "its attention feeds the mixer, and neither reads nor writes the stream alone",
    ),
    (
        MAMBA,
        "blocks.{i}.attn.hook_pattern",
        "MambaBlock has MambaMixer in the place of attention",
    ),
    (
        DEEPSEEK_V4,
        "blocks.{i}.attn.hook_pattern",
        "DeepseekV4DecoderLayer has no attention that 'deepseek_v4' describes: "
        f"{DEEPSEEK_V4.undescribed['attn']}",
    ),
    (MAMBA, "blocks.{i}.hook_mlp_out", "MambaBlock has no MLP that 'mamba' describes"),
    (MIXTRAL, "blocks.{i}.mlp.hook_post", "MixtralDecoderLayer has no MLP of that form"),
    (GPT2, "ln_embed.hook_scale", "GPT2Block has no norm in that place"),
    (MAMBA, "blocks.{i}.ln2.hook_out", "MambaBlock has no norm in that place"),
    (MAMBA, "blocks.{i}.hook_q_input", "MambaBlock has no such point"),
]


@cache
def loaded(name: str) -> LensModel:
    architecture = next(one for one, _, _ in CASES if called(one) == name)
    return lensbridge.load(tiny_model(architecture), architecture=architecture)


def called(architecture: Architecture) -> str:
    """A name that is another one where something else is left out."""
    return f"{architecture.name} without {list(architecture.undescribed)}"


@pytest.mark.parametrize(("architecture", "row", "why"), CASES)
def test_a_model_says_why_it_lacks_a_point(architecture: Architecture, row: str, why: str) -> None:
    assert loaded(called(architecture)).vocabulary.absent[row] == why


def test_every_reason_has_a_case() -> None:
    told = [why for _, _, why in CASES]
    for absence in ABSENCES:
        form = re.sub(r"\\\{.*?\\\}", ".+", re.escape(absence.sentence))
        assert any(re.match(form, why) for why in told), absence.sentence


def test_the_error_of_a_run_gives_the_reason() -> None:
    with pytest.raises(AbsentPointError, match="GPT2Block has no router"):
        loaded(called(GPT2)).run_with_cache(
            [[5, 9]], names_filter="blocks.0.mlp.hook_router_logits"
        )
