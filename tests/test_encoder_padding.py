"""Sources of encoder-decoders in one batch: each text gives what it gives alone."""

from typing import Any

import pytest
import torch
from lensbridge_adapters import lensbridge_architectures
from test_tokens import letters
from torch import Tensor, nn

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import ContextLengthError
from lensbridge.interventions import Steer

TEXTS = ["a long sentence about cats", "hi", "dogs, too"]
QUIET = {"max_new_tokens": 6, "do_sample": False, "verbose": False, "stop_at_eos": False}

FAMILIES = [
    "BartForConditionalGeneration",
    "MBartForConditionalGeneration",
    "MarianMTModel",
    "PegasusForConditionalGeneration",
    "BlenderbotForConditionalGeneration",
    "M2M100ForConditionalGeneration",
    "T5ForConditionalGeneration",
    "UMT5ForConditionalGeneration",
]


def tiny(name: str) -> Any:
    description = next(one for one in lensbridge_architectures() if name in one.classes)
    hf: Any = tiny_model(description, name)
    generation = hf.generation_config
    generation.decoder_start_token_id, generation.forced_eos_token_id = 2, None
    generation.pad_token_id = 0
    return hf


def ids_of(text: str) -> Tensor:
    return torch.tensor([letters()("<s>" + text)["input_ids"]])


def alone(hf: Any, text: str) -> Tensor:
    """What the bare model generates from one text."""
    return hf.generate(
        ids_of(text), max_new_tokens=6, do_sample=False, num_beams=1, eos_token_id=[10**6]
    )


def states(hf: Any, text: str) -> Tensor:
    """What the bare encoder gives for one text."""
    encoder: nn.Module = hf.get_encoder()
    return encoder(ids_of(text)).last_hidden_state[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_each_text_is_generated_from_as_if_alone(name: str) -> None:
    hf = tiny(name)
    model = lensbridge.load(hf, tokenizer=letters())
    last = f"encoder.{model.native.towers[0].sizes.n_layers - 1}.hook_resid_post"
    expected = torch.cat([alone(hf, text) for text in TEXTS])
    found, cache = model.generate(TEXTS, return_type="tokens", return_cache=True, **QUIET)
    assert torch.equal(found, expected)
    assert torch.equal(model.generate(TEXTS, return_type="tokens", **QUIET), expected)
    encoded = model.to_tokens(TEXTS)
    mask = torch.tensor([[int(i <= len(text)) for i in range(encoded.shape[1])] for text in TEXTS])
    by_ids = model.generate(encoded, attention_mask=mask, **QUIET)
    by_mapping = model.generate({"input_ids": encoded, "attention_mask": mask}, **QUIET)
    assert torch.equal(by_ids, expected)
    assert torch.equal(by_mapping, expected)
    texts = model.generate(TEXTS, **QUIET)
    assert texts == [model.generate(text, **QUIET) for text in TEXTS]
    with torch.no_grad():
        ends = f"{last.rpartition('.')[0]}.hook_resid_post"
        if model.native.towers[0].ln_final is not None:
            ends = "encoder.ln_final.hook_out"
        _, of_run = model.run_with_cache(TEXTS, ends, return_type=None, decoder_input_ids=expected)
        for row, text in enumerate(TEXTS):
            wanted = states(hf, text)
            for kept in (cache, of_run):
                torch.testing.assert_close(
                    kept[ends][row, : len(wanted)], wanted, rtol=1e-4, atol=1e-4
                )


@pytest.mark.parametrize("name", ["BartForConditionalGeneration", "T5ForConditionalGeneration"])
def test_an_edit_of_the_last_source_position_is_of_each_texts_own(name: str) -> None:
    hf = tiny(name)
    model = lensbridge.load(hf, tokenizer=letters())
    steer = Steer("encoder.0.hook_resid_post", torch.randn(hf.config.d_model) * 9, positions="last")
    together = model.generate(TEXTS, interventions=[steer], return_type="tokens", **QUIET)
    for row, text in enumerate(TEXTS):
        single = model.generate(text, interventions=[steer], return_type="tokens", **QUIET)
        assert torch.equal(together[row], single[0])


def test_another_side_can_be_asked_for() -> None:
    """T5's positions are relative: a text gives the same on either side."""
    hf = tiny("T5ForConditionalGeneration")
    model = lensbridge.load(hf, tokenizer=letters())
    left = model.generate(TEXTS, padding_side="left", return_type="tokens", **QUIET)
    assert torch.equal(left, torch.cat([alone(hf, text) for text in TEXTS]))


def test_new_tokens_have_a_context_of_their_own() -> None:
    hf = tiny("BartForConditionalGeneration")
    model, limit = lensbridge.load(hf), hf.config.max_position_embeddings
    ids = torch.randint(4, 30, (1, limit))
    options = {**QUIET, "max_new_tokens": limit - 1}
    bare = hf.generate(
        ids, max_new_tokens=limit - 1, do_sample=False, num_beams=1, eos_token_id=[10**6]
    )
    assert torch.equal(model.generate(ids, **options), bare)
    with pytest.raises(ContextLengthError, match=f"max_new_tokens={limit + 1}"):
        model.generate(ids, **{**QUIET, "max_new_tokens": limit + 1})
