"""Factors of derived models are said with the fields that they come from, not with coincidences."""

from typing import Any

import pytest
import torch
import transformers
from raw import record

import lensbridge
from lensbridge.conformance.tiny import tiny_from
from lensbridge.derive import derive
from lensbridge.derive.fields import Fields

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[5, 9, 7, 11, 6]])
MINICPM: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "dim_model_base": 32,
}


def fields(**values: Any) -> Fields:
    return Fields(transformers.PretrainedConfig(**values))


@pytest.mark.parametrize(
    ("value", "by_layers", "said"),
    [
        (0.5, False, "dim_model_base / hidden_size"),
        (0.5, True, "dim_model_base / hidden_size"),
        (12.0, False, "scale_emb"),
        (8.0, False, "sqrt(hidden_size)"),
        (1.4 / 2, True, "scale_depth / sqrt(num_hidden_layers)"),
        (0.1, True, "residual_multiplier"),  # and not attention_dropout, which is as large
        (3**-0.5, True, 0.57735),  # the number of key heads has nothing to do with a factor
        (5**-0.5, False, 0.447214),
    ],
)
def test_a_factor_is_said_with_fields_that_have_to_do_with_it(
    value: float, by_layers: bool, said: float | str
) -> None:
    known = fields(
        attention_dropout=0.1,
        residual_multiplier=0.1,
        hidden_size=64,
        dim_model_base=32,
        num_hidden_layers=4,
        num_key_value_heads=3,
        num_experts=5,
        scale_emb=12,
        scale_depth=1.4,
    )
    assert known.number(value, by_layers=by_layers) == said


def test_the_number_of_layers_says_the_factor_of_a_branch_but_not_that_of_the_head() -> None:
    known = fields(hidden_size=64, num_hidden_layers=4)
    assert known.number(0.5) == "1 / sqrt(num_hidden_layers)"
    assert known.number(0.5, by_layers=False) == 0.5


def test_a_starter_file_names_other_formulas_with_the_same_value() -> None:
    known = fields(embedding_multiplier=1.7, attention_multiplier=1.7)
    assert known.number(1.7) == "embedding_multiplier"
    assert known.alternatives == {"embedding_multiplier": ("attention_multiplier",)}
    model = tiny_from(
        transformers.GraniteForCausalLM,
        {"embedding_multiplier": 1.7, "residual_multiplier": 1.7},
        torch.float32,
        None,
        seed=0,
    )
    text = derive(model).render()
    assert "multiplier has the same value in this config as" in text
    exec(compile(text, "starter", "exec"), {})


def test_a_derived_head_scale_is_right_for_a_model_with_other_sizes() -> None:
    def made(**sizes: Any) -> Any:
        fields = {**MINICPM, **sizes}
        return tiny_from(transformers.MiniCPM3ForCausalLM, fields, torch.float32, None, seed=0)

    architecture = derive(made()).architecture
    assert architecture is not None
    assert architecture.head_scale == "dim_model_base / hidden_size"
    other = made(num_hidden_layers=2, hidden_size=48, dim_model_base=12)
    lens = lensbridge.load(other, architecture=architecture)
    _, cache = lens.run_with_cache(IDS)
    raw = record(other, input_ids=IDS)
    logits = cache["ln_final.hook_out"] * (12 / 48) @ lens.W_U
    torch.testing.assert_close(logits, raw.logits)
