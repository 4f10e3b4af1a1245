"""What the kit advises when one field of a description is wrong."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lensbridge_adapters.gemma2 import GEMMA2
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.gpt_oss import GPT_OSS
from lensbridge_adapters.granite import GRANITE
from lensbridge_adapters.qwen3 import QWEN3
from torch import nn

from lensbridge.conformance.kit import conformance
from lensbridge.conformance.tiny import tiny_model
from lensbridge.spec import Architecture, Block, SplitQKV

pytestmark = pytest.mark.usefixtures("one_thread")


def _with(architecture: Architecture, part: str, **fields: Any) -> Architecture:
    block = architecture.block
    assert isinstance(block, Block)
    return replace(
        architecture, block=replace(block, **{part: replace(vars(block)[part], **fields)})
    )


def _advised(model: nn.Module, wrong: Architecture) -> tuple[str, str]:
    """The field that is named first, and the change."""
    report = conformance(model, architecture=wrong)
    named, change = report.advice
    field = named.removeprefix("What the description may say wrongly: ").rstrip(".").split(", ")[0]
    return field, change.removeprefix("With one change it conforms: ").rstrip(".")


CASES: dict[str, tuple[Architecture, Callable[[Architecture], Architecture], str, str]] = {
    "sinks": (
        GPT_OSS,
        lambda one: _with(one, "attn", sinks=None),
        "sinks",
        "block.attn.sinks: None -> 'sinks'",
    ),
    "softcap": (
        GEMMA2,
        lambda one: replace(one, logit_softcap=None),
        "logit_softcap",
        "logit_softcap: None -> 'final_logit_softcapping'",
    ),
    "post-norm": (
        GEMMA2,
        lambda one: _with(one, "norms", post_mlp=None),
        "post_mlp",
        "block.norms.post_mlp: None -> 'post_feedforward_layernorm'",
    ),
    "norm of keys": (
        QWEN3,
        lambda one: _with(one, "attn", k_norm=None),
        "k_norm",
        "block.attn.k_norm: None -> 'k_norm'",
    ),
    "positions": (
        GPT2,
        lambda one: replace(one, pos_embed=None),
        "pos_embed",
        "pos_embed: None -> 'transformer.wpe'",
    ),
    "scale of the wrong kind": (
        GRANITE,
        lambda one: _with(one, "attn", scale=None, skip_scale="residual_multiplier"),
        "skip_scale",
        "block.attn.skip_scale moved to block.attn.scale",
    ),
    "bias": (
        GPT2,
        lambda one: replace(one, unembed_bias="transformer.ln_f.weight"),
        "unembed_bias",
        "unembed_bias: 'transformer.ln_f.weight' forgotten",
    ),
    "mixed embeddings": (
        GRANITE,
        lambda one: replace(one, embed_mixed=True),
        "embed_mixed",
        "embed_mixed: True -> False",
    ),
    "gate": (
        GRANITE,
        lambda one: _with(one, "mlp", gate_scale="residual_multiplier"),
        "gate_scale",
        "block.mlp.gate_scale: 'residual_multiplier' forgotten",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_wrong_field_is_named_first_and_the_right_value_is_found(case: str) -> None:
    right, spoil, field, change = CASES[case]
    model = tiny_model(right)
    assert _advised(model, spoil(right)) == (field, change)


def test_a_norm_that_shows_only_with_other_weights_is_named() -> None:
    """In a new model both norms do the same, and only gradients show which one an MLP reads."""
    model = tiny_model(GPT2)
    for name, parameter in model.named_parameters():
        if ".ln_" in name:
            nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
    wrong = _with(GPT2, "norms", pre_mlp="ln_1")
    assert _advised(model, wrong)[0] == "pre_mlp"


def test_the_one_fact_that_a_model_shows_is_named_alone() -> None:
    wrong = replace(GPT2, dims=replace(GPT2.dims, context=32))
    (row,) = conformance(tiny_model(GPT2), architecture=wrong).failures
    assert row.about == "context"


def test_a_new_model_that_does_not_fit_is_a_row_too() -> None:
    model = tiny_model(GRANITE)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
    wrong = _with(GRANITE, "attn", qkv=SplitQKV(q="nothing"))
    (row,) = conformance(model, architecture=wrong).rows
    assert (row.check, row.status) == ("the description fits the model", "failed")
