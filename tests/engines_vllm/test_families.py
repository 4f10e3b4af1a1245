"""Models in vLLM beside the same models in HuggingFace: logits, activations, edits, weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm")
from vllm_models import FAMILIES, GROUPED, TEXTS, hugging, opened

from lensbridge.errors import AbsentPointError, UnsupportedArchitectureError
from lensbridge.interventions import Add, Scale

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """The values at tokens, without padding."""
    return values if mask is None else values[mask.bool()]


def worst(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family: str, folder: Callable[[str], Path]) -> None:
    lens, hf = opened(folder(family)), hugging(folder(family))
    read_alike(lens, hf)
    edited_alike(lens, hf)
    weights_alike(lens, hf)


def read_alike(lens: Any, hf: Any) -> None:
    """Three texts of different lengths: every point, and the bare model's log-probabilities."""
    logits, cache = lens.run_with_cache(TEXTS, names_filter="*")
    _, wanted = hf.run_with_cache(TEXTS, names_filter="*")
    mask = wanted.attention_mask
    assert {name.rpartition(".")[2] for name in set(wanted) - set(cache)} == {
        "hook_pattern",
        "hook_attn_scores",
    }
    for name, value in cache.items():
        assert worst(tokens(value, mask), tokens(wanted[name], mask)) < 2e-5, name
        assert not value[~mask.bool()].any(), name
    for row, text in enumerate(TEXTS):  # the bare model, one text at a time
        ids = hf.to_tokens(text)
        with torch.no_grad():
            bare = hf.hf_model(ids).logits[0].log_softmax(-1)
        assert worst(logits[row, : ids.shape[1]].log_softmax(-1), bare) < 1e-4


def edited_alike(lens: Any, hf: Any) -> None:
    """An edit at every point has the effect that it has in HuggingFace."""
    torch.manual_seed(1)
    plain, places = hf(TEXTS[0]), [1, 3, -1]
    _, cache = hf.run_with_cache(TEXTS[0], names_filter=list(lens.hook_names))
    for name in lens.hook_names:
        if name == "hook_logits":
            continue
        edit: Any = Add(name, torch.randn(cache[name].shape[-1]) * 0.3, positions=places)
        if name.endswith("hook_scale"):
            edit = Scale(name, 1.5, positions=places)
        wanted = hf.run_with_interventions(TEXTS[0], edit)
        assert worst(wanted, plain) > 1e-4, name  # it does something
        assert worst(lens.run_with_interventions(TEXTS[0], edit), wanted) < 1e-5, name


def weights_alike(lens: Any, hf: Any) -> None:
    for name in hf.weight_names:
        assert torch.equal(lens.weight(name), hf.weight(name)), name
    assert torch.equal(lens.W_Q[1], hf.W_Q[1])
    assert torch.equal(lens.W_U, hf.W_U)
    assert torch.equal(lens.W_E, hf.W_E)


def test_what_vllm_never_has_is_refused(llama: Any) -> None:
    for point in ("pattern", "attn_scores"):
        with pytest.raises(AbsentPointError, match="one kernel over paged keys and values"):
            llama.run_with_cache(TEXTS[0], (point, 1))


def test_huggingface_code_inside_vllm_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Olmo2Config, Olmo2ForCausalLM

    from lensbridge.loading import demo_folder

    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    Olmo2ForCausalLM(Olmo2Config(vocab_size=len(tokenizer), **GROUPED)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitectureError, match="no code of its own"):
        opened(tmp_path)
