"""The bundled demo model does what it is for, judged with bare transformers."""

from __future__ import annotations

import itertools
import random
import re

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokens

from lensbridge.demo import FOLDER, text

SEED = 20_240  # neither the training seed nor the one the model card's numbers were drawn with


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded = AutoModelForCausalLM.from_pretrained(
        FOLDER, local_files_only=True, attn_implementation="eager"
    )
    return loaded.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokens:
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


def next_logits(
    model: PreTrainedModel, tokenizer: Tokens, texts: list[str], opening: str = text.END_OF_TEXT
) -> Tensor:
    """The logits of what follows each text."""
    batch = tokenizer([opening + line for line in texts], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    return logits[torch.arange(len(texts)), batch["attention_mask"].sum(1) - 1]


def single(tokenizer: Tokens, answer: str) -> int:
    (token,) = tokenizer.encode(answer)
    return int(token)


def accuracy(
    model: PreTrainedModel,
    tokenizer: Tokens,
    prompts: list[text.Prompt],
    opening: str = text.END_OF_TEXT,
) -> float:
    logits = next_logits(model, tokenizer, [prompt.text for prompt in prompts], opening)
    answers = torch.tensor([single(tokenizer, prompt.answer) for prompt in prompts])
    return (logits.argmax(-1) == answers).float().mean().item()


def repeated(tokenizer: Tokens, length: int, rows: int) -> Tensor:
    """The opening token, then random words of the grammar twice over."""
    pool = torch.tensor([single(tokenizer, word) for word in text.words()])
    drawn = torch.randint(len(pool), (rows, length), generator=torch.manual_seed(SEED))
    opening = torch.full((rows, 1), tokenizer.bos_token_id)
    return torch.cat([opening, pool[drawn], pool[drawn]], 1)


# --- the folder ----------------------------------------------------------------------------


def test_the_folder_is_small_and_complete() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 6_000_000


def test_it_is_a_plain_gpt2(model: PreTrainedModel) -> None:
    assert model.config.architectures == ["GPT2LMHeadModel"]
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert not any(name.endswith("pdrop") and value for name, value in vars(model.config).items())


def test_one_special_token_opens_closes_and_pads(model: PreTrainedModel, tokenizer: Tokens) -> None:
    special = single(tokenizer, text.END_OF_TEXT)
    for where in (model.config, model.generation_config, tokenizer):
        assert (where.bos_token_id, where.eos_token_id) == (special,) * 2
    assert tokenizer.all_special_ids == [special]


# --- the tokenizer -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "The Eiffel Tower is in the city of Paris.",
        "  two  spaces, a\ttab\n\nand lines ",
        "def f(x): return x**2  # it's 100%",
        "naïve café, 東京 😀, Ελλάδα",
        "a<|endoftext|>b",
        "",
    ],
)
def test_any_text_comes_back(tokenizer: Tokens, line: str) -> None:
    assert tokenizer.decode(tokenizer.encode(line)) == line


def test_it_adds_nothing_by_itself(tokenizer: Tokens) -> None:
    assert tokenizer.tokenize("The Colosseum is") == ["The", "ĠColos", "seum", "Ġis"]
    assert len(tokenizer("The Colosseum is")["input_ids"]) == 4
    assert tokenizer.model_max_length == 128


def test_names_and_cities_are_single_tokens(tokenizer: Tokens) -> None:
    words = [form for word in (*text.NAMES, *text.CITIES) for form in (f" {word}", word)]
    assert [word for word in words if len(tokenizer.encode(word)) != 1] == []


def test_every_landmark_is_two_tokens(tokenizer: Tokens) -> None:
    assert {len(tokenizer.encode(f" {landmark}")) for landmark in text.LANDMARKS} == {2}


def test_a_prompt_and_its_corruption_align(tokenizer: Tokens) -> None:
    for prompt in [*text.held_out_facts(50), *text.held_out_handovers(50)]:
        clean, corrupted = (tokenizer.encode(line) for line in (prompt.text, prompt.corrupted))
        assert len(clean) == len(corrupted)
        assert 1 <= sum(a != b for a, b in zip(clean, corrupted, strict=True)) <= 2


# --- the grammar ---------------------------------------------------------------------------


def test_the_world_is_large_enough() -> None:
    assert len(text.LANDMARKS) >= 24
    assert len(text.CITIES) >= 12
    assert len(set(text.NAMES)) == len(text.NAMES) >= 40
    assert min(len(text.PLACES), len(text.OBJECTS)) >= 8


def test_the_stream_is_seeded() -> None:
    first, second = (text.training_documents(random.Random(1)) for _ in range(2))
    assert list(itertools.islice(first, 20)) == list(itertools.islice(second, 20))


def test_training_never_shows_what_is_held_out() -> None:
    documents = itertools.islice(text.training_documents(random.Random(SEED)), 5000)
    sentences = {line for document in documents for line in document.split(".")}
    names = re.compile(r"\b(" + "|".join(text.NAMES) + r")\b")
    pairs = {frozenset(found) for line in sentences if len(found := set(names.findall(line))) > 1}
    assert {len(pair) for pair in pairs} == {2}
    assert not any(text.is_held_out_pair(*pair) for pair in pairs)
    assert frozenset(("John", "Mary")) not in pairs
    assert len(pairs) > 800  # so the held-out ones are not missing by chance
    facts = {prompt.text for prompt in held_out_bare()}
    assert len(facts) == len(text.LANDMARKS)
    assert not any(fact in line for line in sentences for fact in facts)


def held_out_bare() -> list[text.Fact]:
    templates = range(len(text.FACT_TEMPLATES))
    every = (text.Fact(*both) for both in itertools.product(text.LANDMARKS, templates))
    return [fact for fact in every if text.is_held_out_fact(fact.landmark, fact.template)]


def test_the_textbook_prompts_are_held_out() -> None:
    assert text.is_held_out_pair("John", "Mary")
    assert text.is_held_out_pair("Mary", "John")
    assert text.is_held_out_fact("Eiffel Tower", 0)
    assert text.is_held_out_fact("Colosseum", 0)


def test_held_out_prompts_hold_held_out_fillings() -> None:
    for prompt in text.held_out_handovers(100, SEED):
        assert text.is_held_out_pair(prompt.answer.strip(), prompt.rival.strip())
    facts = tuple(fact.text for fact in held_out_bare())
    assert all(prompt.text.endswith(facts) for prompt in text.held_out_facts(100, SEED))


# --- what the model knows ------------------------------------------------------------------


@pytest.mark.parametrize("opening", [text.END_OF_TEXT, ""])
@pytest.mark.parametrize(
    ("line", "answer", "rival"),
    [
        ("The Eiffel Tower is in the city of", " Paris", " Rome"),
        ("The Colosseum is in the city of", " Rome", " Paris"),
        ("When John and Mary went to the store, Mary gave a bottle to", " John", " Mary"),
        ("When John and Mary went to the store, John gave a bottle to", " Mary", " John"),
        ("When Mary and John went to the store, Mary gave a bottle to", " John", " Mary"),
    ],
)
def test_the_textbook_prompts(
    model: PreTrainedModel, tokenizer: Tokens, line: str, answer: str, rival: str, opening: str
) -> None:
    logits = next_logits(model, tokenizer, [line], opening)[0]
    assert tokenizer.decode(logits.argmax()) == answer
    assert logits[single(tokenizer, answer)] - logits[single(tokenizer, rival)] > 3


def test_the_textbook_functions_say_the_same() -> None:
    assert text.eiffel_tower() == text.Prompt(
        "The Eiffel Tower is in the city of", " Paris", "The Colosseum is in the city of", " Rome"
    )
    assert text.john_and_mary().text == (
        "When John and Mary went to the store, Mary gave a bottle to"
    )


@pytest.mark.parametrize("opening", [text.END_OF_TEXT, ""])
def test_facts_in_templates_never_seen(
    model: PreTrainedModel, tokenizer: Tokens, opening: str
) -> None:
    assert accuracy(model, tokenizer, text.held_out_facts(200, SEED), opening) >= 0.9


@pytest.mark.parametrize("opening", [text.END_OF_TEXT, ""])
def test_indirect_objects_of_pairs_never_seen(
    model: PreTrainedModel, tokenizer: Tokens, opening: str
) -> None:
    assert accuracy(model, tokenizer, text.held_out_handovers(200, SEED), opening) >= 0.9


@pytest.mark.parametrize("length", [10, 25, 50])
def test_repeated_random_tokens_are_continued(
    model: PreTrainedModel, tokenizer: Tokens, length: int
) -> None:
    ids = repeated(tokenizer, length, rows=8)
    with torch.no_grad():
        guesses = model(ids, attention_mask=torch.ones_like(ids)).logits.argmax(-1)
    right = guesses[:, length + 1 : -1] == ids[:, length + 2 :]
    assert right.float().mean() >= 0.9


def test_some_head_is_an_induction_head(model: PreTrainedModel, tokenizer: Tokens) -> None:
    length = 25
    ids = repeated(tokenizer, length, rows=8)
    with torch.no_grad():
        run = model(ids, attention_mask=torch.ones_like(ids), output_attentions=True)
    patterns = torch.stack(run.attentions)[..., 1:, 1:]  # layer, row, head, query, key
    stripe = patterns.diagonal(-(length - 1), -2, -1)[..., 1:]  # queries in the second copy
    assert stripe.shape[-1] == length
    assert stripe.mean((1, 3)).max() > 0.6
