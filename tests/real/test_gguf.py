"""GGUF files with trained weights: what transformers reads from them, in a fraction of its time."""

from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import pytest
import torch
from real.convert import MODELS
from real.trained import STORY
from transformers import AutoModelForCausalLM, AutoTokenizer

import lensbridge

TEXTS = (
    STORY,
    "  12345 + 678 =\n\n\tdef f(x): return x",
    "Größe, 日本語, 🙂 <|im_start|><bos>",
    "",
)


@dataclass(frozen=True)
class Opened:
    """A file, the model that lensbridge reads from it, and the processor time that this took."""

    path: Path
    lens: lensbridge.LensModel
    seconds: float


@pytest.fixture(scope="module", params=MODELS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    path = MODELS[request.param](tmp_path_factory.mktemp("gguf"))
    return Opened(path, *timed(lambda: lensbridge.load(path)))


def timed(read: Any) -> tuple[Any, float]:
    start = process_time()
    found = read()
    return found, process_time() - start


def test_the_model_is_the_one_that_transformers_reads(opened: Opened) -> None:
    at = {"pretrained_model_name_or_path": opened.path.parent, "gguf_file": opened.path.name}
    theirs, seconds = timed(lambda: AutoModelForCausalLM.from_pretrained(**at))
    assert opened.seconds < seconds / 2
    mine = opened.lens.hf_model.state_dict()
    assert list(mine) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(mine[name], value), name
    config = theirs.config.to_dict()
    del config["quantization_config"]
    assert opened.lens.hf_model.config.to_dict() == config
    tokenizer = AutoTokenizer.from_pretrained(**at)
    for text in TEXTS:
        assert opened.lens.tokenizer(text) == tokenizer(text)


def test_the_converted_copy_is_the_same_model(opened: Opened, tmp_path: Path) -> None:
    ids = opened.lens.to_tokens(STORY)
    kept = lensbridge.load(opened.path, save_converted=tmp_path / "kept")
    assert torch.equal(kept(ids), opened.lens(ids))
    assert kept.to_tokens(STORY).tolist() == ids.tolist()
