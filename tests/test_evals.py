"""Evaluations: against loops over the bare model, and on a model that is known to be good."""

import math
import random
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import Shape, build, tokens
from torch.utils.data import DataLoader

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import ContextLengthError, InputError, LensbridgeError
from lensbridge.evals import (
    IOIDataset,
    evaluate_on_dataset,
    induction_loss,
    ioi_eval,
    repeated_tokens,
    sanity_check,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def demo() -> LensModel:
    return lensbridge.load("demo")


@pytest.fixture
def dataset() -> IOIDataset:
    return IOIDataset(demo().tokenizer, num_samples=40, seed=0)


# --- sentences --------------------------------------------------------------------------------


def test_sentences_are_what_the_field_expects(dataset: IOIDataset) -> None:
    tokenizer = demo().tokenizer
    for i, sample in enumerate(dataset.samples):
        item = dataset[i]
        assert tokenizer.decode(item["prompt"][1:]) == sample.text
        assert int(item["prompt"][0]) == tokenizer.bos_token_id
        assert tokenizer.decode(item["IO"]) == f" {sample.io}"
        assert tokenizer.decode(item["S"]) == f" {sample.s}"
        assert sample.text.endswith(f" to {sample.io}")
        assert sample.text.count(sample.s) == 2
        assert sample.io != sample.s
    assert len(dataset) == 40
    assert len({one.text for one in dataset.samples}) > 30


def test_positions_point_at_the_names(dataset: IOIDataset) -> None:
    clean, rows = dataset.clean, torch.arange(len(dataset))
    at = {name: clean.tokens[rows, where] for name, where in dataset.positions.items()}
    assert torch.equal(at["IO"], dataset.io_tokens)
    assert torch.equal(at["S1"], dataset.s_tokens)
    assert torch.equal(at["S2"], dataset.s_tokens)
    assert bool((dataset.positions["S1"] < dataset.positions["S2"]).all())
    assert set(demo().tokenizer.batch_decode(at["end"].unsqueeze(1))) == {" to"}
    assert torch.equal(dataset.positions["end"], clean.mask.sum(1) - 1)


def test_corrupted_sentences_differ_at_the_second_subject_only(dataset: IOIDataset) -> None:
    rows, s2 = torch.arange(len(dataset)), dataset.positions["S2"]
    third = torch.tensor([demo().to_single_token(f" {one.c}") for one in dataset.samples])
    for prompts, name in ((dataset.corrupted, third), (dataset.flipped, dataset.io_tokens)):
        assert torch.equal(prompts.mask, dataset.clean.mask)
        changed = prompts.tokens != dataset.clean.tokens
        assert changed.sum(1).tolist() == [1] * len(dataset)
        assert torch.equal(prompts.tokens[rows, s2], name)
    assert not any(one.c in (one.io, one.s) for one in dataset.samples)


def test_the_demo_model_follows_the_corruption(dataset: IOIDataset) -> None:
    def difference(prompts: Any) -> torch.Tensor:
        with torch.no_grad():
            logits = demo()(prompts.tokens, attention_mask=prompts.mask)
        rows = torch.arange(len(dataset))
        last = logits[rows, dataset.positions["end"]]
        return last[rows, dataset.io_tokens] - last[rows, dataset.s_tokens]

    assert bool((difference(dataset.clean) > 0).all())
    assert bool((difference(dataset.flipped) < 0).all())
    assert float(difference(dataset.corrupted).abs().mean()) < float(
        difference(dataset.clean).mean() * 0.8
    )


def test_symmetric_seeded_and_without_bos() -> None:
    tokenizer = demo().tokenizer
    pairs = IOIDataset(tokenizer, num_samples=6, symmetric=True, seed=3, prepend_bos=False)
    for one, other in zip(pairs.samples[::2], pairs.samples[1::2], strict=True):
        assert (one.io, one.s) == (other.s, other.io)
        assert other.swapped() == one
    assert int(pairs[0]["prompt"][0]) != tokenizer.bos_token_id
    state = random.getstate()
    again = IOIDataset(tokenizer, num_samples=6, symmetric=True, seed=3, prepend_bos=False)
    assert again.samples == pairs.samples
    assert random.getstate() == state
    other = IOIDataset(tokenizer, num_samples=6, symmetric=True, seed=4)
    assert other.samples != pairs.samples


def test_sentences_of_ones_own() -> None:
    own = IOIDataset(
        demo().tokenizer,
        templates=["[A] met with [B]. Then [B] gave the [THING] to [A]"],
        names=["John", "Mary", "Bartholomew", "Tom"],
        nouns={"THING": ["ball"]},
        num_samples=5,
        seed=0,
    )
    assert own.names == ("John", "Mary", "Tom")
    assert own.dropped_names == ("Bartholomew",)
    assert all(" gave the ball to " in one.text for one in own.samples)
    two = IOIDataset(demo().tokenizer, names=["John", "Mary"], num_samples=2)
    assert two.flipped.tokens.shape == two.clean.tokens.shape
    with pytest.raises(InputError, match=r"dataset\.flipped"):
        _ = two.corrupted
    for wrong, message in (
        ({"names": ["Bartholomew", "John"]}, "of 2 names 1 are"),
        ({"templates": ["[A] and [B] and [B] to [X] [A]"]}, r"\['X'\]"),
        ({"templates": ["[A] gave [B] a ball"]}, "twice"),
        ({"num_samples": 3, "symmetric": True}, "come in pairs"),
    ):
        with pytest.raises(InputError, match=message):
            IOIDataset(demo().tokenizer, **{"num_samples": 2, **wrong})  # type: ignore[arg-type]


# --- scores -----------------------------------------------------------------------------------


@torch.no_grad()
def test_ioi_eval_is_a_loop_over_the_bare_model(dataset: IOIDataset) -> None:
    differences = []
    for i in range(len(dataset)):
        item = dataset[i]
        logits = demo().hf_model(item["prompt"][None, :-1]).logits[0, -1]
        differences.append(float(logits[item["IO"]] - logits[item["S"]]))
    found = ioi_eval(demo(), dataset, batch_size=7)
    assert found["Logit Difference"] == pytest.approx(sum(differences) / 40, abs=1e-4)
    assert found["Accuracy"] == sum(one > 0 for one in differences) / 40
    assert found["Accuracy"] == 1.0
    assert found["Logit Difference"] > 3


def test_ioi_eval_draws_and_refuses() -> None:
    drawn = ioi_eval(demo(), num_samples=6, symmetric=True, seed=1)
    data = IOIDataset(demo().tokenizer, num_samples=6, symmetric=True, seed=1)
    assert drawn == ioi_eval(demo(), data)
    names = {"prompt": torch.tensor([5, 9, 8, 7]), "IO": torch.tensor([8, 7])}
    model = lensbridge.load(build(Shape("llama")))
    found = ioi_eval(model, [{**names, "S": torch.tensor([8, 4])}])
    with torch.no_grad():
        logits = model(torch.tensor([[5, 9, 8]]))[0, -1]
    assert found["Logit Difference"] == pytest.approx(float(logits[7] - logits[4]), abs=1e-5)
    with pytest.raises(InputError, match="no token distinguishes"):
        ioi_eval(model, [{**names, "S": torch.tensor([8])}])
    with pytest.raises(InputError, match="empty"):
        ioi_eval(model, [])


@torch.no_grad()
def test_induction_loss_is_low_where_there_are_induction_heads() -> None:
    ids = repeated_tokens(demo(), batch_size=3, subseq_len=30, seed=5)
    logits = demo().hf_model(ids).logits
    predicted = F.cross_entropy(
        logits[:, 31:-1].flatten(0, 1), ids[:, 32:].flatten(), reduction="none"
    )
    found = induction_loss(demo(), batch_size=3, subseq_len=30, seed=5)
    assert found == pytest.approx(float(predicted.mean()), abs=1e-5)
    assert found < 0.1 * math.log(demo().cfg.d_vocab)
    chance = induction_loss(lensbridge.load(build(Shape("gpt2"))), subseq_len=15, seed=0)
    assert chance > 3.0


def test_repeated_tokens() -> None:
    ids = repeated_tokens(demo(), batch_size=2, subseq_len=10, seed=0)
    assert ids.shape == (2, 21)
    assert torch.equal(ids[:, 1:11], ids[:, 11:])
    assert ids[:, 0].tolist() == [demo().tokenizer.bos_token_id] * 2
    assert not bool((ids[:, 1:] == demo().tokenizer.bos_token_id).any())
    assert torch.equal(ids, repeated_tokens(demo(), batch_size=2, subseq_len=10, seed=0))
    assert repeated_tokens(demo(), subseq_len=4, prepend_bos=False).shape == (4, 8)
    without = lensbridge.load(build(Shape("llama")))
    assert repeated_tokens(without, subseq_len=4).shape == (4, 8)
    with pytest.raises(InputError, match="BOS"):
        repeated_tokens(without, subseq_len=4, prepend_bos=True)
    with pytest.raises(InputError, match="subseq_len=63 or less"):
        induction_loss(demo())


@torch.no_grad()
def test_the_loss_on_a_data_set_counts_every_prediction_once() -> None:
    model, ids = lensbridge.load(build(Shape("llama"))), tokens(6, 9)
    logits = model.hf_model(ids).logits
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    rows = [{"tokens": row} for row in ids]
    found = evaluate_on_dataset(model, DataLoader(rows, batch_size=4))
    assert found == pytest.approx(float(losses.mean()), abs=1e-5)
    first = evaluate_on_dataset(model, DataLoader(rows, batch_size=2), truncate=1)
    assert first == pytest.approx(float(losses.view(6, 8)[:2].mean()), abs=1e-5)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    counted = torch.cat([losses.view(6, 8)[0, :3], losses.view(6, 8)[1:].flatten()])
    padded = evaluate_on_dataset(model, [{"tokens": ids, "attention_mask": mask}])
    assert padded == pytest.approx(float(counted.mean()), abs=1e-5)
    with pytest.raises(InputError, match="no token to predict"):
        evaluate_on_dataset(model, [])


@torch.no_grad()
def test_sanity_check_is_the_loss_on_some_text() -> None:
    from lensbridge.evals.scores import PLAIN_ENGLISH

    ids = demo().to_tokens(PLAIN_ENGLISH, truncate=True)
    wanted = demo().hf_model(ids, labels=ids).loss
    assert sanity_check(demo()) == pytest.approx(float(wanted), abs=1e-5)
    assert ids.shape[1] == demo().cfg.n_ctx
    with pytest.raises(ContextLengthError):
        demo()(PLAIN_ENGLISH)


def test_models_that_predict_no_next_token_are_refused() -> None:
    from lensbridge_adapters import lensbridge_architectures

    from lensbridge.testing import tiny_model

    found = next(a for a in lensbridge_architectures() if "T5ForConditionalGeneration" in a.classes)
    model = lensbridge.load(tiny_model(found, "T5ForConditionalGeneration"))
    for score in (ioi_eval, induction_loss, sanity_check):
        with pytest.raises(LensbridgeError, match="causal"):
            score(model)
