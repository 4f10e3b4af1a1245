"""Accuracy, sampling, rows of tokens, prompts and names: by hand and against transformers."""

import sys
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import VOCAB, Shape, build, left_padded, tokens
from torch.utils.data import DataLoader
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import lensbridge
from lensbridge import LensModel, get_act_name
from lensbridge.analysis import (
    lm_accuracy,
    logits_to_df,
    sample_logits,
    test_prompt,
    tokenize_and_concatenate,
)
from lensbridge.errors import InputError, LensbridgeError, UnknownPointError

pytestmark = pytest.mark.usefixtures("one_thread")

EIFFEL = "The Eiffel Tower is in the city of"


@cache
def demo() -> LensModel:
    return lensbridge.load("demo")


# --- accuracy ---------------------------------------------------------------------------------


def test_accuracy_by_hand() -> None:
    ids, mask = left_padded()
    with torch.no_grad():
        logits = build(Shape("llama"))(ids, attention_mask=mask).logits
    for real in (None, mask):
        right, counted = [], 0
        for row in range(3):
            for pos in range(6):
                if real is not None and not (real[row, pos] and real[row, pos + 1]):
                    right.append(False)
                    continue
                counted += 1
                right.append(int(logits[row, pos].argmax()) == int(ids[row, pos + 1]))
        found = lm_accuracy(logits, ids, attention_mask=real)
        assert float(found) == pytest.approx(sum(right) / counted)
        each = lm_accuracy(logits, ids, per_token=True, attention_mask=real)
        assert each.flatten().tolist() == right


def test_a_good_model_is_accurate() -> None:
    ids = demo().to_tokens(f"{EIFFEL} Paris.")
    with torch.no_grad():
        logits = demo().hf_model(ids).logits
    assert bool(lm_accuracy(logits, ids, per_token=True)[0, -2])
    labels = torch.full_like(ids, -100)
    labels[0, -2] = ids[0, -2]
    assert float(lm_accuracy(logits, labels)) == 1.0
    with pytest.raises(InputError, match="No pair"):
        lm_accuracy(logits, torch.full_like(ids, -100))
    with pytest.raises(InputError, match="every position"):
        lm_accuracy(logits[:, :-1], ids)


# --- sampling ---------------------------------------------------------------------------------


def drawn_with(logits: torch.Tensor, seed: int) -> torch.Tensor:
    """A draw from logits that somebody else warped."""
    draw = torch.Generator().manual_seed(seed)
    return torch.multinomial(logits.softmax(-1), 1, generator=draw)[:, 0]


@given(st.integers(0, 1000), st.sampled_from([0.5, 1.0, 2.0]))
def test_sampling_draws_what_transformers_would(seed: int, temperature: float) -> None:
    logits = 3 * torch.randn(64, 20, generator=torch.Generator().manual_seed(seed))
    ids = torch.randint(0, 20, (64, 5), generator=torch.Generator().manual_seed(seed + 1))
    warm = TemperatureLogitsWarper(temperature)(ids, logits)
    wanted = {
        "top_k": (4, TopKLogitsWarper(4)(ids, warm)),
        "top_p": (0.7, TopPLogitsWarper(0.7)(ids, warm)),
    }
    for name, (value, warped) in wanted.items():
        how: dict[str, Any] = {name: value, "temperature": temperature}
        found = sample_logits(logits, generator=torch.Generator().manual_seed(seed), **how)
        assert torch.equal(found, drawn_with(warped, seed))
    penalized = RepetitionPenaltyLogitsProcessor(1.7)(ids, logits)
    found = sample_logits(
        logits,
        repetition_penalty=1.7,
        tokens=ids,
        generator=torch.Generator().manual_seed(seed),
    )
    assert torch.equal(found, drawn_with(penalized, seed))


def test_frequencies_follow_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = probs.log().expand(20000, 4)
    seeded = torch.Generator().manual_seed(0)
    counts = sample_logits(rows, generator=seeded).bincount(minlength=4) / 20000
    torch.testing.assert_close(counts, probs, atol=0.015, rtol=0)
    cut = sample_logits(rows, top_p=0.75, generator=seeded).bincount(minlength=4) / 20000
    torch.testing.assert_close(cut[:2], probs[:2] / 0.8, atol=0.015, rtol=0)
    assert cut[2:].tolist() == [0.0, 0.0]
    # 0 came twice: its odds fall by exp(2 * penalty)
    ids = torch.tensor([[0, 3, 0]]).expand(20000, 3)
    fell = sample_logits(rows, freq_penalty=0.5, tokens=ids, generator=seeded)
    odds = probs * torch.exp(-0.5 * torch.tensor([2.0, 0.0, 0.0, 1.0]))
    found = fell.bincount(minlength=4) / 20000
    torch.testing.assert_close(found, odds / odds.sum(), atol=0.015, rtol=0)


def test_greedy_and_refusals() -> None:
    logits = torch.randn(5, 9)
    assert torch.equal(sample_logits(logits, temperature=0.0), logits.argmax(-1))
    assert torch.equal(sample_logits(logits, top_k=1), logits.argmax(-1))
    assert sample_logits(logits, top_k=99).shape == (5,)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"top_k": 2, "top_p": 0.5}, "exclude"),
        ({"top_k": 0}, "1 or more"),
        ({"top_p": 0.0}, "a probability above 0"),
        ({"temperature": -1.0}, "0 or more"),
        ({"freq_penalty": 1.0}, "pass tokens"),
        ({"freq_penalty": 1.0, "tokens": torch.zeros(3, 2).long()}, "as many rows as the logits"),
    ]
    for arguments, message in wrong:
        with pytest.raises(InputError, match=message):
            sample_logits(logits, **arguments)
    with pytest.raises(InputError, match="final_logits are"):
        sample_logits(logits[0])


def test_a_table_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: rows))
    with torch.no_grad():
        logits = demo()(EIFFEL)[0, -1]
    lines = logits_to_df(logits, demo().tokenizer, top_k=3)
    assert [line["token_index"] for line in lines] == logits.topk(3).indices.tolist()
    assert lines[0]["token_string"] == " Paris"
    probability = float(logits.double().softmax(-1).max())
    assert lines[0]["probability"] == pytest.approx(probability)
    everything = logits_to_df(logits)
    assert sum(line["probability"] for line in everything) == pytest.approx(1.0)
    assert "token_string" not in everything[0]
    with pytest.raises(InputError, match="one position"):
        logits_to_df(logits[None])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LensbridgeError, match="pip install pandas"):
        logits_to_df(logits)


# --- rows of tokens ---------------------------------------------------------------------------


def test_rows_of_tokens_by_hand() -> None:
    tokenizer = demo().tokenizer
    texts = [f"{EIFFEL} Paris.", "", "Then, Tom and Mary went to the store."] * 5
    joined: list[int] = []
    for i, text in enumerate(texts):
        joined += ([tokenizer.eos_token_id] if i else []) + tokenizer.encode(text)
    before = tokenizer.pad_token, len(tokenizer), tokenizer.init_kwargs.copy()
    for bos in (True, False):
        rows = tokenize_and_concatenate(texts, tokenizer, max_length=8, add_bos_token=bos)
        width = 8 - bos
        wanted = [joined[i : i + width] for i in range(0, len(joined) - width + 1, width)]
        assert rows["tokens"][:, int(bos) :].tolist() == wanted
        assert not bos or rows["tokens"][:, 0].tolist() == [tokenizer.bos_token_id] * len(rows)
    documents = [{"body": text, "id": i} for i, text in enumerate(texts)]
    again = tokenize_and_concatenate(
        iter(documents), tokenizer, max_length=8, column_name="body", add_bos_token=False
    )
    assert torch.equal(again["tokens"], rows["tokens"])
    stream = tokenize_and_concatenate(
        texts, tokenizer, streaming=True, max_length=8, add_bos_token=False
    )
    for _ in range(2):
        streamed = torch.stack([one["tokens"] for one in stream])
        assert torch.equal(streamed, rows["tokens"])
    batches = [one["tokens"] for one in DataLoader(stream, batch_size=3)]
    assert torch.equal(torch.cat(batches), rows["tokens"])
    batches = [one["tokens"] for one in DataLoader(rows, batch_size=3)]
    assert torch.equal(torch.cat(batches), rows["tokens"])
    assert (tokenizer.pad_token, len(tokenizer), tokenizer.init_kwargs) == before


def test_a_thousand_texts_are_joined_at_a_time() -> None:
    tokenizer = demo().tokenizer
    texts = ["the store", "the park"] * 700
    rows = tokenize_and_concatenate(texts, tokenizer, max_length=10, add_bos_token=False)
    parts = [
        tokenize_and_concatenate(part, tokenizer, max_length=10, add_bos_token=False)["tokens"]
        for part in (texts[:1000], texts[1000:])
    ]
    assert torch.equal(rows["tokens"], torch.cat(parts))
    few = tokenize_and_concatenate(["the store"], tokenizer, max_length=6)["tokens"]
    fill = tokenizer.pad_token_id
    assert few.tolist() == [
        [0, *tokenizer.encode("the store"), *[fill] * (6 - few.ne(0).sum() - 1)]
    ]


def test_rows_of_tokens_that_cannot_be_had() -> None:
    tokenizer = demo().tokenizer
    nothing = SimpleNamespace(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    with pytest.raises(InputError, match="no EOS"):
        tokenize_and_concatenate(["a"], nothing)
    with pytest.raises(InputError, match="add_bos_token=False"):
        tokenize_and_concatenate(["a"], SimpleNamespace(bos_token_id=None, eos_token_id=1))
    with pytest.raises(InputError, match="no room"):
        tokenize_and_concatenate(["a"], tokenizer, max_length=1)
    with pytest.raises(InputError, match="'text'"):
        tokenize_and_concatenate([{"body": "a"}], tokenizer)
    with pytest.raises(InputError, match="no texts"):
        tokenize_and_concatenate([], tokenizer)


# --- prompts ----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_prompt_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    result = test_prompt(EIFFEL, "Paris", demo(), top_k=3)
    logits = demo().hf_model(demo().to_tokens(EIFFEL)).logits[0, -1]
    answer = demo().to_single_token(" Paris")
    (said,) = result.answers[0]
    assert (said.token, said.id, said.rank) == (" Paris", answer, 0)
    assert said.logit == pytest.approx(float(logits[answer]), abs=1e-4)
    assert said.probability == pytest.approx(float(logits.softmax(-1)[answer]), abs=1e-5)
    assert [one.id for one in result.top[0]] == logits.topk(3).indices.tolist()
    printed = capsys.readouterr().out
    assert printed == f"{result}\n"
    assert "| Paris|" in printed
    assert f"Prompt: {demo().to_str_tokens(EIFFEL)}" in printed


@torch.no_grad()
def test_several_answers_and_answers_of_several_tokens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = test_prompt(EIFFEL, [" Rome", "Paris"], demo(), print_details=False)
    logits = demo().hf_model(demo().to_tokens(EIFFEL)).logits[0, -1]
    order = logits.argsort(descending=True).tolist()
    wanted = [[order.index(demo().to_single_token(one))] for one in (" Rome", " Paris")]
    assert result.ranks == wanted
    assert len(result.top) == 1
    prompt, answer = "The Eiffel Tower is in", "the city of"
    long = test_prompt(prompt, answer, demo(), print_details=False, prepend_bos=False)
    ids = demo().to_tokens(f"{prompt} {answer}", prepend_bos=False)
    rows = demo().hf_model(ids).logits[0]
    places = range(ids.shape[1] - 4, ids.shape[1] - 1)
    by_hand = [int((rows[i] > rows[i, ids[0, i + 1]]).sum()) for i in places]
    assert long.ranks == [by_hand]
    assert len(long.top) == 3
    assert capsys.readouterr().out == ""
    bare = test_prompt(EIFFEL, "Paris", demo(), prepend_space_to_answer=False, print_details=False)
    assert bare.answers[0][0].token == "Paris"


def test_pytest_does_not_collect_it() -> None:
    assert test_prompt.__test__ is False
    with pytest.raises(InputError, match="answer"):
        test_prompt(EIFFEL, [], demo())


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "full"),
    [
        (("k", 6, "a"), "blocks.6.attn.hook_k"),
        (("pre", 2), "blocks.2.mlp.hook_pre"),
        (("embed",), "hook_embed"),
        (("normalized", 27, "ln2"), "blocks.27.ln2.hook_normalized"),
        (("k6",), "blocks.6.attn.hook_k"),
        (("scale4ln1",), "blocks.4.ln1.hook_scale"),
        (("pre5",), "blocks.5.mlp.hook_pre"),
        (("resid_pre", 3), "blocks.3.hook_resid_pre"),
        (("resid_pre3",), "blocks.3.hook_resid_pre"),
        (("scale",), "ln_final.hook_scale"),
        (("normalized",), "ln_final.hook_normalized"),
        (("pattern", "5"), "blocks.5.attn.hook_pattern"),
        (("attn", 2), "blocks.2.attn.hook_pattern"),
        (("mlp_post", 1), "blocks.1.mlp.hook_post"),
        (("post", 1, "mlp"), "blocks.1.mlp.hook_post"),  # and not an expert's
        (("pre", 1, "m"), "blocks.1.mlp.hook_pre"),
        (("post3m",), "blocks.3.mlp.hook_post"),
        (("attn_out", 1, "block"), "blocks.1.hook_attn_out"),
        (("attn_in", 4), "blocks.4.hook_attn_in"),
        (("q_input", 0), "blocks.0.hook_q_input"),
        (("rot_q", 0), "blocks.0.attn.hook_rot_q"),
        (("unembed",), "hook_logits"),
        (("blocks.3.hook_resid_pre",), "blocks.3.hook_resid_pre"),
        (("hook_embed",), "hook_embed"),
    ],
)
def test_short_names(asked: tuple[Any, ...], full: str) -> None:
    assert get_act_name(*asked) == full


def test_short_names_that_there_are_not() -> None:
    with pytest.raises(UnknownPointError, match="no point"):
        get_act_name("patern", 2)
    with pytest.raises(UnknownPointError, match="say which"):
        get_act_name("scale", 2)
    model = lensbridge.load(build(Shape("gpt2")))
    _, cache = model.run_with_cache(tokens())
    assert cache[get_act_name("q", 1)].shape == (2, 7, 4, 6)
    assert cache[get_act_name("unembed")].shape == (2, 7, VOCAB)
