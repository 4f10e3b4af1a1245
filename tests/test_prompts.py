"""Prompt objects as inputs: everything that takes text takes them, against the bare model."""

from functools import cache, partial
from typing import Any

import pytest
import torch
from tiny_models import Shape, build, tokens
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.analysis import logit_lens, test_prompt, tokenize_and_concatenate
from lensbridge.demo.text import Fact, Handover, eiffel_tower, john_and_mary
from lensbridge.errors import InputError
from lensbridge.evals import IOIDataset, Prompts
from lensbridge.inputs.prompts import Encoded
from lensbridge.interventions import causal_trace

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def demo() -> LensModel:
    return lensbridge.load("demo")


@pytest.fixture
def dataset() -> IOIDataset:
    data = IOIDataset(demo().tokenizer, num_samples=12, seed=1)
    assert not bool(data.clean.mask.all())  # so that padding matters
    return data


@torch.no_grad()
def bare(prompts: Any) -> Tensor:
    return demo().hf_model(prompts.tokens, attention_mask=prompts.mask).logits


@torch.no_grad()
def bare_last(texts: list[str]) -> Tensor:
    """Logits after each text, run alone."""
    tokenizer = demo().tokenizer
    rows = [
        [tokenizer.bos_token_id, *tokenizer(t, add_special_tokens=False).input_ids] for t in texts
    ]
    return torch.stack([demo().hf_model(torch.tensor([row])).logits[0, -1] for row in rows])


def before_answers(data: IOIDataset) -> list[str]:
    return [one.text[: one.text.rindex(" ")] for one in data.samples]


def test_a_data_set_runs_its_clean_prompts(dataset: IOIDataset) -> None:
    model, wanted = demo(), bare(dataset.clean)
    real = dataset.clean.mask.bool()
    logits, cache = model.run_with_cache(dataset)
    for found in (model(dataset), logits, model.run_with_hooks(dataset)):
        assert torch.equal(found[real], wanted[real])
    assert torch.equal(cache.tokens, dataset.clean.tokens)
    assert torch.equal(cache.attention_mask, dataset.clean.mask)
    assert cache.prepend_bos is True
    flipped = model(dataset.flipped)
    assert torch.equal(flipped[real], bare(dataset.flipped)[real])
    assert not torch.equal(flipped[real], wanted[real])


def test_left_padding_moves_the_rows_and_nothing_else(dataset: IOIDataset) -> None:
    wanted = bare_last(before_answers(dataset))
    torch.testing.assert_close(
        demo()(dataset, padding_side="left")[:, -1], wanted, atol=1e-4, rtol=0
    )


def test_tokens_are_those_of_the_sentences(dataset: IOIDataset) -> None:
    model, texts = demo(), before_answers(dataset)
    for side in ("left", "right"):
        ids, mask = model.to_tokens(dataset, padding_side=side, return_mask=True)
        theirs, masked = model.to_tokens(texts, padding_side=side, return_mask=True)
        assert torch.equal(mask, masked)
        assert torch.equal(ids * mask, theirs * masked)
    assert model.to_str_tokens(dataset) == model.to_str_tokens(texts)
    assert torch.equal(model.to_tokens(dataset.samples) * mask, theirs * masked)


def test_prompts_with_one_text_run_it() -> None:
    model = demo()
    for one, text in (
        (eiffel_tower(), "The Eiffel Tower is in the city of"),
        (Fact("Eiffel Tower"), "The Eiffel Tower is in the city of"),
        (Handover("Mary", "John"), Handover("Mary", "John").text),
    ):
        torch.testing.assert_close(model(one)[:, -1], bare_last([text]), atol=1e-4, rtol=0)
        assert torch.equal(model.to_tokens(one), model.to_tokens(text))
        assert model.get_token_position(" of" if " of" in text else " to", one) > 0
    pair = [eiffel_tower(), john_and_mary()]
    assert torch.equal(model.to_tokens(pair), model.to_tokens([one.text for one in pair]))
    mixed = [eiffel_tower(), john_and_mary().text]
    assert torch.equal(model(mixed), model([one.text for one in pair]))


def test_generation_continues_prompts(dataset: IOIDataset) -> None:
    model, how = demo(), {"do_sample": False, "verbose": False, "max_new_tokens": 2}
    best = bare_last(before_answers(dataset)).argmax(-1)
    found = model.generate(dataset, **how)
    for text, before, one in zip(found, before_answers(dataset), best.tolist(), strict=True):
        assert text.startswith(before + model.to_single_str_token(one))
    assert model.generate(eiffel_tower(), **how).startswith(eiffel_tower().sentence[:-1])
    assert model.generate([eiffel_tower()], **how) == [model.generate(eiffel_tower(), **how)]
    assert "".join(model.stream(eiffel_tower(), 1, do_sample=False)) == " Paris"
    with pytest.raises(InputError, match="12 rows"):
        model.stream(dataset)
    with pytest.raises(InputError, match="2 rows"):
        model.stream([eiffel_tower(), john_and_mary()])


def test_analyses_take_prompts(dataset: IOIDataset) -> None:
    model = demo()
    lens = logit_lens(model, dataset, positions=-1)
    torch.testing.assert_close(
        lens.values[-1], bare_last(before_answers(dataset)), atol=1e-3, rtol=1e-4
    )
    prompt = eiffel_tower()
    found = test_prompt(prompt, prompt.answer, model, print_details=False)  # type: ignore[arg-type]
    assert found.ranks == [[0]]
    trace = causal_trace(model, prompt, "Eiffel Tower", samples=1)
    assert trace.clean == causal_trace(model, prompt.text, "Eiffel Tower", samples=1).clean
    with pytest.raises(InputError, match="one prompt"):
        causal_trace(model, dataset, "store")


def test_rows_of_a_corpus_run(dataset: IOIDataset) -> None:
    model = demo()
    rows = tokenize_and_concatenate(
        [one.text for one in dataset.samples], model.tokenizer, max_length=16
    )
    with torch.no_grad():
        assert torch.equal(model(rows), model.hf_model(rows.tokens).logits)
    generated = model.generate(rows, 1, do_sample=False, verbose=False)
    assert generated.shape == (len(rows), 17)  # ids for ids


def test_sweeps_patch_prompts_and_measure_the_logit_difference(dataset: IOIDataset) -> None:
    model, (rows, ends) = demo(), (torch.arange(12), dataset.positions["end"])

    def by_hand(logits: Tensor) -> Tensor:
        last = logits[rows, ends]
        return last[rows, dataset.io_tokens] - last[rows, dataset.s_tokens]

    torch.testing.assert_close(
        dataset.logit_diff(bare(dataset.clean), per_prompt=True), by_hand(bare(dataset.clean))
    )
    torch.testing.assert_close(
        dataset.logit_diff(bare(dataset.flipped)), by_hand(bare(dataset.flipped)).mean()
    )
    _, clean = model.run_with_cache(dataset)
    cells = [(("resid_pre", layer), (slice(None),), clean) for layer in range(4)]
    swept = model.sweep(dataset.flipped, cells, dataset.logit_diff, baseline=True)
    layers = model.hf_model.transformer.h
    for layer in range(4):
        given = clean["resid_pre", layer]
        handle = layers[layer].register_forward_pre_hook(
            lambda module, args, given=given: (given, *args[1:])
        )
        wanted = by_hand(bare(dataset.flipped)).mean()
        handle.remove()
        torch.testing.assert_close(swept.values[layer], wanted, atol=1e-4, rtol=1e-4)
    assert float(swept.baseline) < 0 < float(swept.values[0])
    kept = model.sweep(
        dataset.flipped,
        cells,
        partial(dataset.logit_diff, per_prompt=True),
        reduce="none",
    )
    torch.testing.assert_close(kept.values.mean(-1), swept.values, atol=1e-4, rtol=1e-4)


def test_logits_of_something_else_are_refused(dataset: IOIDataset) -> None:
    logits = bare(dataset.clean)
    for wrong in (logits[:3], logits[:, -1], logits[:, -1:]):
        with pytest.raises(InputError, match="all positions"):
            dataset.logit_diff(wrong)


def test_bos_is_as_the_data_set_was_made(dataset: IOIDataset) -> None:
    model = demo()
    assert torch.equal(model(dataset, prepend_bos=True), model(dataset))
    with pytest.raises(InputError, match="begin with BOS"):
        model(dataset, prepend_bos=False)
    without = IOIDataset(model.tokenizer, num_samples=3, seed=1, prepend_bos=False)
    assert model.run_with_cache(without)[1].prepend_bos is False
    with pytest.raises(InputError, match="do not begin with BOS"):
        model.to_tokens(without, prepend_bos=True)


def test_prompts_without_a_tokenizer_and_of_ones_own() -> None:
    bare_model = build(Shape("llama"))
    model = lensbridge.load(bare_model)
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0

    class Mine:
        def as_input(self) -> Encoded:
            return Encoded(ids, mask, None)

    for given in (Mine(), Prompts(ids, mask)):
        with torch.no_grad():
            wanted = bare_model(ids, attention_mask=mask).logits
        assert torch.equal(model(given)[mask.bool()], wanted[mask.bool()])
    cut, kept = model.to_tokens(Mine(), truncate=True, return_mask=True)
    assert torch.equal(cut, ids)
    assert torch.equal(kept, mask)
    with pytest.raises(InputError, match="one text for each item"):
        model([Mine(), Mine()])


@pytest.mark.parametrize("side", ["left", "right"])
def test_cut_and_padded_rows_keep_their_tokens(side: Any) -> None:
    ids = torch.tensor([[7, 8, 9, 0], [0, 0, 5, 6], [1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    rows = Encoded(ids, mask, None).cut(3).padded(side)
    found = [row[keep.bool()].tolist() for row, keep in zip(rows.ids, rows.mask, strict=True)]
    assert found == [[7, 8, 9], [5, 6], [1, 2, 3]]
    edge = rows.mask[:, -1 if side == "left" else 0]
    assert bool(edge.all())
