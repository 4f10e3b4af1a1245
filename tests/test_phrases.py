"""Where a phrase stands; the oracle is the offsets that the HuggingFace tokenizer gives."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokens import HF, KINDS, TOKENIZERS, bos_ids, letters
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from word_tokenizer import words

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import InputError, TokenError, TokenizerMissingError
from lensbridge.interventions import Zero
from lensbridge.metrics import Logit

PROMPT = "The Eiffel Tower is in the city of"
TEXTS = ["the cat sat on the mat.", "Hello naïve café, naïve!", "漢字 and 漢字, 1234 cats"]


@pytest.fixture(scope="module")
def model() -> LensModel:
    return lensbridge.load("demo")


def by_offsets(tokenizer: Any, text: str, start: int, stop: int, bos: int) -> list[int]:
    """The tokens that share a character with a part of a text."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = enumerate(offsets["offset_mapping"])
    return [i + bos for i, (a, b) in spans if a < stop and b > start]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.sampled_from(TEXTS), st.data())
def test_the_tokens_of_any_part_of_a_text(kind: str, text: str, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(text) - 2))
    last = data.draw(st.integers(first + 1, min(len(text), first + 9)))
    phrase = text[first:last].strip()
    if not phrase:
        return
    model = lensbridge.load(HF, tokenizer=TOKENIZERS[kind])
    bos = len(bos_ids(kind))
    found = [m.span() for m in re.finditer(re.escape(phrase), text)]
    for i, span in enumerate(found):
        wanted = by_offsets(TOKENIZERS[kind], text, *span, bos)
        assert model.positions_of(phrase, text, i) == wanted
        assert model.positions_of(phrase, text, i - len(found)) == wanted
        ids = model.to_tokens(text)
        assert model.positions_of(phrase, ids, i) == wanted
        assert model.positions_of(phrase, text, i, prepend_bos=False) == [p - bos for p in wanted]
    every = {p for span in found for p in by_offsets(TOKENIZERS[kind], text, *span, bos)}
    assert model.positions_of(phrase, text, None) == sorted(every)


def test_spaces_and_parts_of_tokens(model: LensModel) -> None:
    for phrase in ("Eiffel Tower", " Eiffel Tower", " Eiffel Tower ", "iffel Towe"):
        assert model.positions_of(phrase, PROMPT) == [2, 3]
    assert model.positions_of("The", PROMPT) == [1]
    assert model.positions_of(" The", PROMPT) == [1]  # nothing stands before the first word
    assert model.positions_of("of", PROMPT) == [8]
    assert model.positions_of("of", PROMPT, prepend_bos=False) == [7]
    bos = model.tokenizer.bos_token
    assert model.positions_of(bos, PROMPT) == [0]
    with pytest.raises(TokenError, match="does not occur"):
        model.positions_of(bos.strip("<|>"), PROMPT)  # a part of the name of BOS is no text


def test_batches_and_padding(model: LensModel) -> None:
    prompts = ["The Galata Tower is in", "The city of the Galata Tower", "The Tower"]
    wanted = [[3], [6], [2]]
    for side in ("left", "right"):
        assert model.positions_of("Tower", prompts, padding_side=side) == wanted
        ids, mask = model.to_tokens(prompts, padding_side=side, return_mask=True)
        given = {"input_ids": ids, "attention_mask": mask}
        assert model.positions_of("Tower", given) == wanted
        columns: Any = model.positions_of("Tower", given, count="columns")
        assert columns == model.positions_of("Tower", prompts, padding_side=side, count="columns")
        (token,) = {int(ids[row, at]) for row, (at,) in enumerate(columns)}
        assert model.to_single_str_token(token).strip() == "Tower"
    assert model.positions_of(["Galata", "city of", "Tow"], prompts) == [[2], [2, 3], [2]]
    assert model.positions_of("Tower", prompts[:1]) == [[3]]
    assert model.positions_of("Tower", model.to_tokens(prompts[0])) == [3]


def test_chats(model: LensModel, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    monkeypatch.setattr(model.tokenizer, "chat_template", template, raising=False)
    chat = [{"role": "user", "content": "The Galata Tower"}]
    assert model.positions_of("Tower", chat) == [2]  # the template writes no BOS
    assert model.positions_of("Tower", [chat, chat]) == [[2], [2]]


def test_they_are_positions_of_interventions_and_caches(model: LensModel) -> None:
    prompts = ["The Galata Tower is in", "The city of the Galata Tower"]
    places: Any = model.positions_of("Galata Tower", prompts)
    with model.intervene(Zero(("mlp_out", 1), positions=places)):
        _, cache = model.run_with_cache(prompts, "mlp_out")
    zero = cache["mlp_out", 1].norm(dim=-1).eq(0)
    assert zero.nonzero().tolist() == [[row, at] for row, some in enumerate(places) for at in some]
    _, kept = model.run_with_cache(prompts, "resid_pre", pos_slice=places)
    _, whole = model.run_with_cache(prompts, "resid_pre")
    rows = torch.arange(2)[:, None]
    assert torch.equal(kept["resid_pre", 2], whole["resid_pre", 2][rows, torch.tensor(places)])


def test_they_are_positions_of_metrics(model: LensModel) -> None:
    prompts = ["The Galata Tower is in", "The city of the Galata Tower"]
    places: Any = model.positions_of("Galata", prompts)
    logits = model(prompts)
    metric = Logit(" Tower", position=places, reduce="none")
    token = model.to_single_token(" Tower")
    wanted = torch.stack([logits[row, at, token] for row, (at,) in enumerate(places)])
    found = model.sweep(prompts, [[]], metric, reduce="none")
    torch.testing.assert_close(found[0], wanted)
    for wrong in ([True, False], [[1, 2], [3, 4]], "first"):
        with pytest.raises(InputError, match="position is an int, 'last', or a list with one int"):
            Logit(" Tower", position=wrong)  # type: ignore[arg-type]


def test_other_tokenizers() -> None:
    signs = lensbridge.load(HF, tokenizer=letters())
    assert signs.positions_of("cat", "the cat sat") == [5, 6, 7]
    assert signs.positions_of("at", "the cat sat", -1) == [10, 11]
    whole = lensbridge.load(HF, tokenizer=words("the", "cat", "sat"))
    assert whole.positions_of("cat sat", "the cat sat") == [1, 2]
    assert whole.positions_of("a", "the cat sat", 1) == [2]
    vocab = {"[UNK]": 0, "the": 1, "cat": 2, "##s": 3}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    lower = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    uncased = lensbridge.load(HF, tokenizer=lower)
    assert uncased.positions_of("The Cats", "The Cats the cat") == [0, 1, 2]
    assert uncased.positions_of("Cats", "The cats THE CATS", 1) == [4, 5]


def test_what_is_not_there(model: LensModel) -> None:
    with pytest.raises(TokenError) as error:
        model.positions_of("the Eiffel Tower", PROMPT)
    assert "It has 'The Eiffel Tower', in other letters." in str(error.value)
    assert "' Eiffel', ' Tower', ' is'" in str(error.value)
    with pytest.raises(TokenError, match="does not occur in the text of example 1"):
        model.positions_of("Eiffel", [PROMPT, "The Galata Tower"])
    with pytest.raises(TokenError, match="'Eiffel' occurs once in the text, so there is no occ"):
        model.positions_of("Eiffel", PROMPT, 1)
    with pytest.raises(InputError, match="There are 1 phrases"):
        model.positions_of(["Eiffel"], [PROMPT, PROMPT])
    for nothing in ("", "  ", 3):
        with pytest.raises(InputError, match="A phrase is a part of the text"):
            model.positions_of(nothing, PROMPT)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="A mapping needs input_ids"):
        model.positions_of("Eiffel", {"ids": [1]})
    with pytest.raises(InputError, match="occurrence is a number"):
        model.positions_of("Eiffel", PROMPT, "first")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no text to find"):
        model.positions_of("Eiffel", [])
    with pytest.raises(TokenizerMissingError):
        lensbridge.load(HF).positions_of("Eiffel", [1, 2, 3])
    long = "a " * 60
    with pytest.raises(TokenError, match=r"and 2. more"):
        model.positions_of("Eiffel", model.to_tokens(long)[:, :62])
