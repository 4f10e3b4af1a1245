"""What may be passed to a model: each form is the same run, a padded row is the row alone."""

from typing import Any

import numpy as np
import pytest
import torch
from test_tokens import letters
from tiny_models import CONTEXT, FAMILIES, VOCAB, Shape, build, tokens
from torch import Tensor
from transformers import BatchEncoding, DynamicCache

import lensbridge
from lensbridge.errors import (
    ContextLengthError,
    InputError,
    TokenError,
    TokenizerMissingError,
)
from lensbridge.tensors.loss import lm_cross_entropy_loss

LENGTHS = (7, 3, 5)


def padded(side: str, fill: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Rows of several lengths, and the same rows in one tensor with its mask."""
    rows = [tokens(1, length, seed=length)[0] for length in LENGTHS]
    ids = torch.full((len(rows), max(LENGTHS)), fill)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(ids.shape[1] - len(row), None)
        ids[i, where], mask[i, where] = row, 1
    return rows, ids, mask


def hf_loss(model: Any, row: Tensor) -> Tensor:
    """HuggingFace's own loss on one row."""
    return model(row.unsqueeze(0), labels=row.unsqueeze(0)).loss


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_a_padded_batch_gives_what_it_gives_alone(
    family: str, side: str, kernel: str
) -> None:
    hf = build(Shape(family, kernel=kernel))
    model = lensbridge.load(hf)
    rows, ids, mask = padded(side)
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids, attention_mask=mask)
        for i, row in enumerate(rows):
            real = mask[i].bool()
            alone, single = model.run_with_cache(row)
            torch.testing.assert_close(logits[i][real], alone[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(alone[0], hf(row[None]).logits[0], rtol=0, atol=0)
            for name in cache:
                found, wanted = cache[name][i], single[name][0]
                if "hook_rot_" in name:
                    continue  # turned by the position in the tensor; only differences count
                if "k" in model.explain(name).axes.split():
                    found, wanted = found[:, real][..., real], wanted
                else:
                    found = found[real]
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_ignores_padding(family: str, side: str) -> None:
    hf = build(Shape(family))
    model = lensbridge.load(hf)
    rows, ids, mask = padded(side, fill=5)
    with torch.no_grad():
        alone = torch.stack([hf_loss(hf, row) for row in rows])
        pairs = torch.tensor([len(row) - 1 for row in rows])
        wanted = (alone * pairs).sum() / pairs.sum()
        loss = model(ids, return_type="loss", attention_mask=mask)
        per_token = model(ids, return_type="loss", loss_per_token=True, attention_mask=mask)
        logits, both = model(ids, return_type="both", attention_mask=mask)
        marked = lm_cross_entropy_loss(logits, ids.masked_fill(mask == 0, -100), mask)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(per_token.sum(-1) / pairs, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(loss, both)
    assert torch.equal(loss, marked)
    assert torch.equal(loss, model.loss_fn(logits, ids, mask))
    assert torch.equal(per_token == 0, ~(mask[:, 1:] * mask[:, :-1]).bool())


def test_the_loss_of_one_row_and_of_labels_is_huggingfaces() -> None:
    hf = build(Shape("llama"))
    model, ids = lensbridge.load(hf), tokens()
    labels = tokens(seed=4).masked_fill(torch.rand(2, 7) < 0.3, -100)
    with torch.no_grad():
        torch.testing.assert_close(model(ids, return_type="loss"), hf(ids, labels=ids).loss)
        found = model(ids, return_type="loss", labels=labels)
        torch.testing.assert_close(found, hf(ids, labels=labels).loss)
        short = model(ids.to(torch.int32), return_type="loss")
    assert torch.equal(short, model(ids, return_type="loss"))


def test_a_loss_needs_the_logits_of_every_position() -> None:
    model = lensbridge.load(build(Shape("llama")))
    with pytest.raises(InputError, match="every position"):
        model(tokens(), return_type="loss", logits_to_keep=1)


def read_only(ids: Tensor) -> np.ndarray:
    array = ids.numpy().copy()
    array.setflags(write=False)
    return array


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_every_form_of_ids_is_the_same_run(family: str) -> None:
    hf = build(Shape(family))
    model, ids = lensbridge.load(hf), tokens(2, 5)
    wanted = hf(ids).logits
    whole = [ids.tolist(), ids.numpy(), read_only(ids), ids.to(torch.int32), [*ids]]
    whole += [ids.numpy().astype(np.uint16), BatchEncoding({"input_ids": ids.tolist()})]
    whole += [{"input_ids": ids}, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    for form in whole:
        assert torch.equal(model(form), wanted)
    for row in (ids[0], ids[0].tolist(), ids[0].numpy(), tuple(ids[0].tolist())):
        assert torch.equal(model(row), hf(ids[:1]).logits)
    embeds = hf.get_input_embeddings()(ids)
    assert torch.equal(model(embeds), wanted)
    assert torch.equal(model(embeds.detach().numpy()), wanted)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_and_what_a_tokenizer_returns_are_the_same_run(family: str, side: str) -> None:
    tokenizer = letters()
    model = lensbridge.load(build(Shape(family)), tokenizer=tokenizer)
    texts = ["the cat", "a dog ran", "x"]
    ids, mask = model.to_tokens(texts, padding_side=side, return_mask=True)
    wanted = model(ids, attention_mask=mask)
    assert torch.equal(model(texts, padding_side=side), wanted)
    assert torch.equal(model(tuple(texts), padding_side=side), wanted)
    full = ["<s>" + text for text in texts]
    for kind in ("pt", "np", None):
        tokenizer.padding_side = side
        batch = tokenizer(full, padding=True, return_tensors=kind, return_token_type_ids=False)
        _, cache = model.run_with_cache(batch)
        assert torch.equal(cache.tokens, ids)
        assert torch.equal(cache.attention_mask, mask)
        assert torch.equal(model(batch), wanted)
    assert torch.equal(model("the cat"), model(model.to_tokens("the cat")))
    assert torch.equal(model(tokenizer("<s>a", return_tensors="pt")), model("a"))


def test_token_types_reach_a_model_that_reads_them() -> None:
    hf, ids = build(Shape("gpt2")), tokens()
    batch = {"input_ids": ids, "token_type_ids": tokens(seed=3)}
    assert torch.equal(lensbridge.load(hf)(batch), hf(**batch).logits)
    assert not torch.equal(hf(**batch).logits, hf(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_continues_a_cache(family: str) -> None:
    hf = build(Shape(family))
    model = lensbridge.load(hf, tokenizer=letters())
    past = DynamicCache(config=hf.config)
    with torch.no_grad():
        model("the cat", past_key_values=past)
        found = model(" sat", past_key_values=past, prepend_bos=False)
        torch.testing.assert_close(found, model("the cat sat")[:, -4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", [[1, 1, 0, 1], np.array([True, True, False, True])])
def test_masks_of_every_form(mask: Any) -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(1, 4)
    wanted = model(ids, attention_mask=torch.tensor([[1, 1, 0, 1]]))
    for form in (mask, [mask] if isinstance(mask, list) else mask[None]):
        assert torch.equal(model(ids, attention_mask=form), wanted)
        assert torch.equal(model({"input_ids": ids, "attention_mask": form}), wanted)


IDS = tokens(1, 4)
WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "too high": ([1, VOCAB], {}, TokenError, f"1 to {VOCAB}; .*vocabulary is 0 to {VOCAB - 1}"),
    "negative": ([-1, 3], {}, TokenError, "-1 to 3"),
    "text": ("the cat", {}, TokenizerMissingError, "Pass one"),
    "no ids": ([], {}, InputError, r"got shape \(0,\)"),
    "no rows": (torch.empty(0, 3, dtype=torch.long), {}, InputError, r"got shape \(0, 3\)"),
    "four axes": (torch.zeros(1, 1, 1, 2), {}, InputError, r"got .*shape \(1, 1, 1, 2\)"),
    "ragged": ([[1, 2], [3]], {}, InputError, "list cannot be run"),
    "nothing": (None, {}, InputError, "NoneType cannot be run"),
    "mixed": ([1, "a"], {}, InputError, "list cannot be run"),
    "floats": ([1.0, 2.0], {}, InputError, "ids are integers"),
    "booleans": (torch.tensor([True, False]), {}, InputError, "integers; got torch.bool"),
    "width": (torch.zeros(1, 4, 3), {}, InputError, r"\[batch, pos, \d+\]"),
    "no input_ids": ({"ids": IDS}, {}, InputError, "no 'input_ids'; it has ids"),
    "unread key": ({"input_ids": IDS, "lenght": 4}, {}, TypeError, "'lenght'"),
    "labels": ({"input_ids": IDS, "labels": IDS}, {}, TypeError, "labels=... beside"),
    "long": ([3] * (CONTEXT + 1), {}, ContextLengthError, f"{CONTEXT + 1} positions.* {CONTEXT}"),
    "mask": (IDS, {"attention_mask": torch.ones(1, 5)}, InputError, r"\(1, 5\).*\(1, 4\)"),
    "keyword": (IDS, {"atention_mask": IDS}, TypeError, "Did you mean 'attention_mask'"),
    "return_type": (IDS, {"return_type": "logit"}, InputError, "'logits', 'loss', 'both' or None"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_error_and_runs_nothing(case: str) -> None:
    given, keywords, error, message = WRONG[case]
    hf = build(Shape("gpt2"))
    ran: list[int] = []
    hf.register_forward_pre_hook(lambda *_: ran.append(1))
    model = lensbridge.load(hf)
    for call in (model.forward, model.run_with_cache, model.run_with_hooks):
        with pytest.raises(error, match=message):
            call(given, **keywords)
    assert not ran


def test_wrong_text_is_one_clear_error() -> None:
    model = lensbridge.load(build(Shape("gpt2")), tokenizer=letters())
    with pytest.raises(InputError, match="no tokens in ''"):
        model("", prepend_bos=False)
    assert torch.equal(model(""), model([1]))
    with pytest.raises(InputError, match="no tokens in"):
        model(["a", ""], prepend_bos=False)
    with pytest.raises(InputError, match="Expected text, got int"):
        model(["a", 3])
    with pytest.raises(InputError, match="'left' or 'right', not 'middle'"):
        model(["a", "b"], padding_side="middle")
    with pytest.raises(ContextLengthError):
        model("a" * CONTEXT)


def test_what_is_given_twice_is_an_error() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    batch = {"input_ids": IDS, "position_ids": torch.arange(4)[None]}
    assert torch.equal(model(batch), model(IDS))
    with pytest.raises(TypeError, match="'position_ids' is in the input and beside it"):
        model(batch, position_ids=torch.arange(4)[None])
