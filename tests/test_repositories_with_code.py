"""Repositories that have code of their own, which transformers runs if it is trusted."""

import json
from pathlib import Path

import pytest
import torch

from lensbridge.cli.new_adapter import _opening
from lensbridge.loading.checkpoint import model_class


@pytest.mark.parametrize(
    ("offered", "saved", "wanted"),
    [
        ({"AutoModel": "m.Encoder"}, "Encoder", "AutoModel"),
        ({"AutoModelForImageClassification": "m.Sees"}, "Sees", "AutoModelForImageClassification"),
        ({"AutoModel": "m.Base", "AutoModelForCausalLM": "m.LM"}, "LM", "AutoModelForCausalLM"),
        ({"AutoModel": "m.Base", "AutoModelForCausalLM": "m.LM"}, "Base", "AutoModel"),
        ({"AutoModel": "m.LM", "AutoModelForCausalLM": "m.LM"}, "Other", "AutoModelForCausalLM"),
        ({}, "LM", "AutoModelForCausalLM"),
    ],
)
def test_the_class_of_a_repository_with_code_is_the_one_that_was_saved(
    tmp_path: Path, offered: dict[str, str], saved: str, wanted: str
) -> None:
    told = {"architectures": [saved], "auto_map": {"AutoConfig": "m.Config", **offered}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    found = model_class(str(tmp_path), {"trust_remote_code": True})
    assert found.__name__ == wanted


def test_the_test_of_an_adapter_opens_a_repository_with_code_as_load_does() -> None:
    call, needs = _opening("a/b", torch.nn.Linear(1, 1), "MINE")
    assert needs == "import lensbridge\n"
    assert call == ('lensbridge.load("a/b", architecture=MINE, trust_remote_code=True).hf_model')
