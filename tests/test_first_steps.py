"""What a newcomer gets wrong in the first minutes, and what the errors say."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, T5Config

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import (
    HookError,
    InputError,
    LoadError,
    TokenError,
    TokenizerMissingError,
    UnknownPointError,
)
from lensbridge.loading.tokenizer import named_tokenizer

TEXT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module")
def demo() -> LensModel:
    return lensbridge.load("demo")


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    """transformers makes an empty tokenizer of it, which drops every text."""
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2)).save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("hello")["input_ids"] == []
    model = lensbridge.load(tmp_path)
    with pytest.raises(TokenizerMissingError, match="has no tokenizer files"):
        model("hello")
    assert model([[1, 2]]).shape == (1, 2, model.cfg.d_vocab_out)
    lensbridge.load("demo").tokenizer.save_pretrained(tmp_path)
    assert lensbridge.load(tmp_path).to_tokens("The").shape == (1, 2)


@pytest.mark.parametrize("config", [T5Config(), LlamaConfig()], ids=["t5", "llama"])
def test_empty_tokenizers_of_other_kinds_are_refused(config: object, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    with pytest.raises(LoadError):
        named_tokenizer(str(tmp_path), {})


def test_a_misspelt_demo_is_refused_without_the_hub() -> None:
    with pytest.raises(LoadError, match=r"no model 'dmeo'\. Did you mean 'demo'\?"):
        lensbridge.load("dmeo")


def test_the_class_says_how_to_open_a_model() -> None:
    with pytest.raises(TypeError, match=r"lensbridge\.load\('demo'\)"):
        LensModel("demo")  # type: ignore[call-arg,arg-type]


def test_a_short_name_without_its_layer(demo: LensModel) -> None:
    _, cache = demo.run_with_cache(TEXT)
    with pytest.raises(UnknownPointError, match=r"each layer has one. Say which: \('pattern', 0\)"):
        cache["pattern"]
    assert torch.equal(cache["pattern", 0], cache["blocks.0.attn.hook_pattern"])


def test_a_word_without_its_space(demo: LensModel) -> None:
    with pytest.raises(TokenError, match="' Eiffel', with a space in front, is one token"):
        demo.get_token_position("Eiffel", TEXT)
    with pytest.raises(TokenError, match=r"\]\.$"):
        demo.to_single_token("Eiffel Tower")


def test_a_text_is_no_id(demo: LensModel) -> None:
    with pytest.raises(InputError):
        demo.to_single_str_token("Paris")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 ids"):
        demo.to_single_str_token(torch.tensor([1, 2]))  # type: ignore[arg-type]


def test_hooks_of_a_wrong_form(demo: LensModel) -> None:
    name = "blocks.1.hook_resid_pre"
    with pytest.raises(HookError, match=r"called with \(activation, hook\)"):
        demo.run_with_hooks(TEXT, fwd_hooks=[(name, lambda resid: resid)])
    with pytest.raises(HookError, match="fwd_hooks is a list of pairs"):
        demo.run_with_hooks(TEXT, fwd_hooks=(name, lambda resid, hook: resid))  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [4, -5])
def test_a_weight_of_a_layer_that_there_is_not(demo: LensModel, layer: int) -> None:
    with pytest.raises(IndexError, match=f"no layer {layer}: this weight has 4 layers, 0 to 3"):
        demo.W_O[layer, 1]
    with pytest.raises(IndexError, match=f"no layer {layer}"):
        demo.W_O[layer] = 0
    assert len(list(demo.W_O)) == 4


def test_a_short_generation_shows_no_bar(
    demo: LensModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.generate(TEXT, max_new_tokens=1).endswith(" Paris")
    assert "generating" not in capsys.readouterr().err


def test_a_keyword_of_another_name(demo: LensModel) -> None:
    with pytest.raises(TypeError, match=r"Tools take positions=\.\.\."):
        demo.logit_lens(TEXT, pos=None)
