"""Log-probabilities of answers: against the bare model, one prompt and answer at a time."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import lensbridge
from lensbridge.errors import ContextLengthError, InputError, LensbridgeError
from lensbridge.interventions import Scale, Zero

PROMPTS = ["The Eiffel Tower is in the city of", "The Colosseum is in", "John and Mary went to"]
ANSWERS = [" Paris.", " Rome", " the store. When"]
EDITS = [Zero(("z", 1), heads=3), Scale(("mlp_out", 2), 0.5, positions=[0, 1])]


@pytest.fixture(scope="module")
def model() -> Any:
    return lensbridge.load("demo")


def alone(model: Any, prompt: str, answer: str, edits: Any = (), bos: bool = True) -> Tensor:
    """The log-probability of each token of an answer, from the bare logits of one text."""
    front = model.tokenizer(prompt)["input_ids"]
    ids = [*([model.tokenizer.bos_token_id] if bos else []), *front]
    start, ids = len(ids), [*ids, *model.tokenizer(answer)["input_ids"]]
    with torch.no_grad(), model.intervene(list(edits)):
        logits = model.hf_model(torch.tensor([ids])).logits[0]
    rows = logits.double().log_softmax(-1)
    return torch.stack([rows[at - 1, ids[at]] for at in range(start, len(ids))])


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found).double(), torch.as_tensor(wanted).double(), rtol=1e-5, atol=2e-5
    )


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("edits", [(), EDITS], ids=["plain", "edited"])
def test_each_answer_is_that_of_its_text_alone(model: Any, batch_size: int, edits: Any) -> None:
    wanted = [alone(model, *pair, edits) for pair in zip(PROMPTS, ANSWERS, strict=True)]
    found = model.answer_logprobs(PROMPTS, ANSWERS, interventions=edits, batch_size=batch_size)
    assert found.shape == (3,)
    close(found, torch.stack([one.sum() for one in wanted]))
    how = {"interventions": edits, "batch_size": batch_size, "per_token": True}
    each = model.answer_logprobs(PROMPTS, ANSWERS, **how)
    for tokens, values, answer in zip(each, wanted, ANSWERS, strict=True):
        close(tokens, values)
        assert len(tokens) == len(model.tokenizer(answer)["input_ids"])
    with model.intervene(list(edits)):
        assert torch.equal(model.answer_logprobs(PROMPTS, ANSWERS, batch_size=batch_size), found)
    by_tokens = torch.stack([one.mean() for one in wanted])
    for normalize in (True, "tokens"):
        how = {"interventions": edits, "normalize": normalize}
        close(model.answer_logprobs(PROMPTS, ANSWERS, **how), by_tokens)
    pairs = zip(wanted, ANSWERS, strict=True)
    by_length = torch.stack([one.sum() / len(answer) for one, answer in pairs])
    how = {"interventions": edits, "normalize": "characters"}
    close(model.answer_logprobs(PROMPTS, ANSWERS, **how), by_length)


def test_the_shape_is_that_of_the_answers(model: Any) -> None:
    def of(prompt: str, answer: str) -> Tensor:
        return alone(model, prompt, answer).sum()

    one = model.answer_logprobs(PROMPTS[0], ANSWERS[0])
    assert one.shape == ()
    close(one, of(PROMPTS[0], ANSWERS[0]))
    several = model.answer_logprobs(PROMPTS[0], ANSWERS)
    close(several, torch.stack([of(PROMPTS[0], answer) for answer in ANSWERS]))
    shared = model.answer_logprobs(PROMPTS, ANSWERS[0])
    close(shared, torch.stack([of(prompt, ANSWERS[0]) for prompt in PROMPTS]))
    ragged = model.answer_logprobs(PROMPTS, [ANSWERS, ANSWERS[:1], ANSWERS[:2]])
    assert ragged.shape == (3, 3)
    assert ragged.isnan().tolist() == [
        [False] * 3,
        [False, True, True],
        [False, False, True],
    ]
    close(ragged[0], several)
    tokens = model.answer_logprobs(PROMPTS, [ANSWERS, ANSWERS[:1], ANSWERS[:2]], per_token=True)
    assert [len(row) for row in tokens] == [3, 1, 2]
    close(tokens[2][1].sum(), ragged[2, 1])
    close(ragged[2, :2], torch.stack([of(PROMPTS[2], answer) for answer in ANSWERS[:2]]))


def test_ids_and_chats_are_prompts_too(model: Any) -> None:
    wanted = model.answer_logprobs(PROMPTS[0], ANSWERS)
    ids = model.to_tokens(PROMPTS[0])
    answers = [model.tokenizer(one)["input_ids"] for one in ANSWERS]
    for prompt in (ids[0], ids[0].tolist()):
        assert torch.equal(model.answer_logprobs(prompt, answers), wanted)
        assert torch.equal(model.answer_logprobs(prompt, ANSWERS), wanted)
    rows = model.answer_logprobs(ids, [list(map(torch.tensor, answers))])
    assert torch.equal(rows[0], wanted)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chatting = lensbridge.load(model.hf_model, tokenizer=tokenizer)
    chat = [{"role": "user", "content": PROMPTS[0]}]
    assert torch.equal(chatting.answer_logprobs(chat, ANSWERS), wanted)
    found = model.answer_logprobs(PROMPTS[0], ANSWERS[0], prepend_bos=False)
    close(found, alone(model, PROMPTS[0], ANSWERS[0], bos=False).sum())


def test_tokens_of_an_answer_are_those_of_the_text_of_both() -> None:
    """A tokenizer that puts a space in front of every text, as that of Llama 2 does."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<s>", "\u2581", "\u2581The", "\u2581city", "\u2581Paris"]
    backend = Tokenizer(models.Unigram([(one, -1.0) for one in words], unk_id=0))
    space = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    backend.normalizer = normalizers.Sequence(space)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = lensbridge.load(LlamaForCausalLM(config).eval(), tokenizer=tokenizer)
    assert tokenizer(" Paris")["input_ids"] == [1, 4]
    (found,) = model.answer_logprobs("The city", " Paris", per_token=True)
    ids = torch.tensor([[0, 2, 3, 4]])
    with torch.no_grad():
        rows = model.hf_model(ids).logits[0].log_softmax(-1)
    close(found, rows[2, 4])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.answer_logprobs(PROMPTS, ANSWERS[:2]), InputError, "2 answers and 3 prompts"),
        (lambda m: m.answer_logprobs(PROMPTS, [ANSWERS]), InputError, "1 lists of answers and 3"),
        (lambda m: m.answer_logprobs(PROMPTS[:1], [[]]), InputError, "at least one answer"),
        (lambda m: m.answer_logprobs(PROMPTS[0], []), InputError, "no answers to score"),
        (lambda m: m.answer_logprobs(PROMPTS[0], 3), InputError, "Answers are texts or rows"),
        (lambda m: m.answer_logprobs(PROMPTS[0], ""), InputError, "The answer '' has no tokens"),
        (lambda m: m.answer_logprobs(PROMPTS[0], "a", normalize="x"), InputError, "normalize is a"),
        (
            lambda m: m.answer_logprobs("a", "b", batch_size=0),
            InputError,
            "batch_size is 1 or more",
        ),
        (
            lambda m: m.answer_logprobs("a", "b", per_token=True, normalize=True),
            InputError,
            "leave it out with per_token",
        ),
        (
            lambda m: m.answer_logprobs("a", [5], normalize="characters"),
            InputError,
            "answers that are text",
        ),
        (lambda m: m.answer_logprobs("a", " a" * 400), ContextLengthError, "more than the context"),
        (
            lambda m: m.answer_logprobs("a", "b", interventions=Zero("z", when="decode")),
            InputError,
            "tokens that generation adds",
        ),
        (lambda m: m.answer_logprobs(torch.zeros(1, 2, 128), "b"), InputError, "not embeddings"),
    ],
)
def test_what_cannot_be_scored_says_so(model: Any, call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call(model)
    assert model.engine.is_idle


def test_a_model_that_does_not_predict_the_next_token_is_refused() -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    bert = lensbridge.load(BertForMaskedLM(config).eval())
    with pytest.raises(LensbridgeError, match="does not predict the next token"):
        bert.answer_logprobs(torch.tensor([1, 2]), [[3]])
