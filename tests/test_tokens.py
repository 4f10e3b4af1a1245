"""Text to tokens and back; the oracle is the HuggingFace tokenizer itself."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONTEXT, Shape, build
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import lensbridge
from lensbridge.errors import InputError, TokenError, TokenizerMissingError

TEXTS = ["the cat sat on the mat.", "a dog ran to the river", "Hello world, 1234! naïve café"]
END = "<|endoftext|>"
CHARACTER = st.integers(0, 0xD7FF) | st.integers(0xE000, 0x10FFFF)
UNICODE = st.lists(CHARACTER.map(chr) | st.sampled_from("the cat.漢é\n"), min_size=1).map("".join)


def letters() -> PreTrainedTokenizerFast:
    """One token for each character, within the vocabulary of the tiny models."""
    signs = ["<pad>", "<s>", "</s>", "<unk>", *" abcdefghijklmnopqrstuvwxyz.,!?"]
    backend = Tokenizer(models.WordLevel({sign: i for i, sign in enumerate(signs)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def byte_level(**special: str) -> PreTrainedTokenizerFast:
    """GPT-2's kind: bytes as signs, words with the space in front of them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def adding_bos() -> PreTrainedTokenizerFast:
    """Llama 3's kind: byte level, and a post-processor that puts BOS first."""
    backend = byte_level().backend_tokenizer
    backend.add_special_tokens(["<s>", "</s>"])
    return _with_bos_first(backend)


def metaspace() -> PreTrainedTokenizerFast:
    """Llama 2's kind: SentencePiece with a prefix space and bytes for what is unknown."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first")
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*spaces, decoders.Strip(content=" ", left=1)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, show_progress=False)
    backend.train_from_iterator(TEXTS * 3, trainer)
    return _with_bos_first(backend)


def _with_bos_first(backend: Tokenizer) -> PreTrainedTokenizerFast:
    bos = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    unk = {} if backend.token_to_id("<unk>") is None else {"unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **unk
    )


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": lambda: byte_level(bos_token=END, eos_token=END),
    "without_bos": lambda: byte_level(eos_token=END),
    "bare": byte_level,
    "adding_bos": adding_bos,
    "metaspace": metaspace,
}
TOKENIZERS = {kind: make() for kind, make in KINDS.items()}
each_kind = pytest.mark.parametrize("kind", KINDS)
HF = build(Shape("llama"))


def lens(kind: str) -> lensbridge.LensModel:
    return lensbridge.load(HF, tokenizer=TOKENIZERS[kind])


def plain_ids(kind: str, text: str) -> list[int]:
    return TOKENIZERS[kind](text, add_special_tokens=False)["input_ids"]


def bos_ids(kind: str) -> list[int]:
    token = TOKENIZERS[kind].special_tokens_map.get("bos_token")
    return [] if token is None else TOKENIZERS[kind].convert_tokens_to_ids([token])


@each_kind
@pytest.mark.parametrize("text", [*TEXTS, " leading", "漢字 é\n", "x"])
def test_ids_are_the_tokenizers_with_bos_once(kind: str, text: str) -> None:
    model, ids, bos = lens(kind), plain_ids(kind, text), bos_ids(kind)
    assert model.to_tokens(text).tolist() == [bos + ids]
    assert model.to_tokens(text, prepend_bos=False).tolist() == [ids]
    if bos:
        assert model.to_tokens(text, prepend_bos=True).tolist() == [bos + ids]
    if kind in ("adding_bos", "metaspace"):
        assert model.to_tokens(text).tolist() == [TOKENIZERS[kind](text)["input_ids"]]


@pytest.mark.parametrize("kind", ["gpt2", "adding_bos", "metaspace"])
def test_a_chat_template_that_begins_with_bos_gets_no_second_one(kind: str) -> None:
    tokenizer = copy.deepcopy(TOKENIZERS[kind])
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    messages = [{"role": "user", "content": "the cat sat"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    wanted = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    model = lensbridge.load(HF, tokenizer=tokenizer)
    for prepend_bos in (None, True, False):
        assert model.to_tokens(text, prepend_bos=prepend_bos).tolist() == [wanted]
    assert wanted.count(bos_ids(kind)[0]) == 1


@pytest.mark.parametrize("kind", ["bare", "without_bos"])
def test_asking_for_a_bos_that_there_is_not_is_an_error(kind: str) -> None:
    with pytest.raises(InputError, match="has no BOS token"):
        lens(kind).to_tokens("the", prepend_bos=True)


def test_the_default_for_bos_can_be_changed() -> None:
    model = lens("gpt2")
    model.tokens.default_prepend_bos = False
    assert model.to_tokens("the cat").tolist() == [plain_ids("gpt2", "the cat")]
    assert model.to_tokens("the", prepend_bos=True)[0, 0] == bos_ids("gpt2")[0]


@each_kind
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_are_the_rows_alone_and_padding(kind: str, side: str) -> None:
    ids, mask = lens(kind).to_tokens(TEXTS, padding_side=side, return_mask=True)
    assert ids.shape == mask.shape
    for row, real, text in zip(ids, mask.bool(), TEXTS, strict=True):
        assert row[real].tolist() == bos_ids(kind) + plain_ids(kind, text)
        assert torch.equal(real, real.sort(descending=side == "right").values)


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_keeps_the_beginning_of_every_row(side: str) -> None:
    model = lensbridge.load(HF, tokenizer=letters())
    long, short = "a" * (CONTEXT + 9), "bc"
    ids, mask = model.to_tokens([long, short], padding_side=side, truncate=True, return_mask=True)
    assert ids.shape == (2, CONTEXT)
    assert ids[1][mask[1].bool()].tolist() == model.to_tokens(short)[0].tolist()
    assert torch.equal(ids[0], model.to_tokens(long)[0, :CONTEXT])


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_what_was_used_can_be_read_back_from_the_cache(prepend_bos: bool | None) -> None:
    model = lensbridge.load(HF, tokenizer=letters())
    texts = ["a cat", "dogs and rivers"]
    _, cache = model.run_with_cache(texts, prepend_bos=prepend_bos, padding_side="left")
    ids, mask = model.to_tokens(texts, prepend_bos, "left", return_mask=True)
    assert torch.equal(cache.tokens, ids)
    assert torch.equal(cache.attention_mask, mask)
    assert cache.prepend_bos is (prepend_bos is not False)
    _, one = model.run_with_cache("a cat", prepend_bos=prepend_bos)
    assert one.attention_mask is None
    assert torch.equal(one.tokens, model.to_tokens("a cat", prepend_bos=prepend_bos))
    assert model.run_with_cache("<s>a cat", prepend_bos=False)[1].prepend_bos is True
    assert model.run_with_cache(ids)[1].prepend_bos is None


@each_kind
@given(text=UNICODE)
def test_text_comes_back_as_the_tokenizer_gives_it_back(kind: str, text: str) -> None:
    model, tokenizer = lens(kind), TOKENIZERS[kind]
    found = model.to_string(model.to_tokens(text, prepend_bos=False)[0])
    assert found == tokenizer.decode(plain_ids(kind, text), clean_up_tokenization_spaces=False)
    if kind != "metaspace":
        assert found == text
    assert model.to_string(model.to_tokens([text, "x"], prepend_bos=False))[0].startswith(found)


@each_kind
@given(text=UNICODE)
def test_str_tokens_are_one_for_each_token_and_join_to_the_text(kind: str, text: str) -> None:
    model = lens(kind)
    ids = model.to_tokens(text, prepend_bos=False)[0]
    pieces = model.to_str_tokens(text, prepend_bos=False)
    assert len(pieces) == len(ids)
    assert pieces == model.to_str_tokens(ids) == [model.to_single_str_token(i) for i in ids]
    whole = model.to_string(ids)
    if "�" not in "".join(pieces):
        assert "".join(pieces) in (whole, " " + whole)


@each_kind
def test_str_tokens_keep_the_space_in_front_of_words(kind: str) -> None:
    pieces = lens(kind).to_str_tokens("the cat sat on the mat.", prepend_bos=False)
    assert pieces[0].strip() == "the"
    assert pieces[1:6] in ([" cat", " sat", " on", " the", one] for one in (" mat", " mat."))


def test_str_tokens_on_sentencepiece_are_its_pieces() -> None:
    tokenizer, model = TOKENIZERS["metaspace"], lens("metaspace")
    for ids in (plain_ids("metaspace", text) for text in [*TEXTS, "漢 é"]):
        pieces = tokenizer.convert_ids_to_tokens(ids)
        wanted = ["�" if one.startswith("<0x") else one.replace("▁", " ") for one in pieces]
        assert model.to_str_tokens(ids) == wanted


@each_kind
def test_pieces_of_a_split_character_do_not_crash(kind: str) -> None:
    pieces = lens(kind).to_str_tokens("漢", prepend_bos=False)
    assert pieces[-3:] == ["�"] * 3
    assert lens(kind).to_string(lens(kind).to_tokens("漢", prepend_bos=False)[0]) == "漢"


def test_str_tokens_of_every_kind_of_input() -> None:
    model = lensbridge.load(HF, tokenizer=letters())
    alone = ["<s>", "a", " ", "b"]
    ids = model.to_tokens("a b")
    for one in ("a b", ids, ids[0], ids.tolist(), ids[0].tolist(), ids.numpy(), [*ids]):
        assert model.to_str_tokens(one) == alone
    assert model.to_str_tokens(["a b", "c"]) == [alone, ["<s>", "c"]]
    assert model.to_str_tokens(torch.cat([ids, ids])) == [alone, alone]
    assert model.to_str_tokens("a b", prepend_bos=False) == alone[1:]


def test_strings_of_every_kind_of_ids() -> None:
    model = lensbridge.load(HF, tokenizer=letters())
    ids = model.to_tokens("a cat", prepend_bos=False)
    for one in (ids[0], ids[0].tolist(), ids[0].numpy(), ids[0].to(torch.int32)):
        assert model.to_string(one) == "a cat"
    for rows in (ids, ids.tolist(), ids.numpy().astype(np.uint16), [*ids]):
        assert model.to_string(rows) == ["a cat"]
    assert model.to_string(ids[0, 0]) == "a"
    for wrong in (torch.rand(3), [[1, 2], [3]], None, ["a"]):
        with pytest.raises(InputError):
            model.to_string(wrong)


@each_kind
def test_single_tokens(kind: str) -> None:
    model = lens(kind)
    token = model.to_single_token("the")
    assert [token] == plain_ids(kind, "the")
    assert model.to_single_str_token(token).strip() == "the"
    with pytest.raises(TokenError, match=r"is \d+ tokens, not one: \[.*'z'.*\]"):
        model.to_single_token("zzz")


def test_positions_of_tokens() -> None:
    model = lensbridge.load(HF, tokenizer=letters())
    ids = model.to_tokens("banana")
    for where in ("banana", ids, ids[0], ids.tolist(), ids.numpy()):
        assert model.get_token_position("a", where) == 2
        assert model.get_token_position("a", where, mode="last") == 6
    assert model.get_token_position("a", "banana", prepend_bos=False) == 1
    assert model.get_token_position(model.to_single_token("n"), "banana") == 3
    assert model.get_token_position(torch.tensor(1), "banana") == 0
    with pytest.raises(TokenError, match="does not occur"):
        model.get_token_position("z", "banana")
    with pytest.raises(InputError, match="One row"):
        model.get_token_position("a", torch.cat([ids, ids]))
    with pytest.raises(InputError, match="'first' or 'last'"):
        model.get_token_position("a", "banana", mode="middle")
    with pytest.raises(InputError, match="count is 'tokens' or 'columns'"):
        model.get_token_position("a", "banana", count="rows")  # type: ignore[arg-type]


@each_kind
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_the_tokens_of_a_padded_text(kind: str, side: Any) -> None:
    """As in the text alone, and as `pos_slice` reads them."""
    model = lens(kind)
    texts = ["the cat and the dog", "the"]
    ids, mask = model.to_tokens(texts, padding_side=side, return_mask=True)
    token = model.to_single_token("the")
    wanted = plain_row(model, texts[1]).index(token)
    row = {"input_ids": ids[1:], "attention_mask": mask[1:]}
    assert model.get_token_position(token, row) == wanted
    assert model.get_token_position(token, {name: one[0] for name, one in row.items()}) == wanted
    assert model.get_token_position(token, {**row, "attention_mask": mask[1].bool()}) == wanted
    column = ids[1].tolist().index(token)
    assert model.get_token_position(token, row, count="columns") == column
    assert model.get_token_position(token, ids[1], count="columns") == column
    if side == "right":
        assert model.get_token_position(token, ids[1]) == wanted == column
        return
    assert column > wanted
    with pytest.raises(InputError, match=r"begin with .* the id of padding.*attention_mask"):
        model.get_token_position(token, ids[1])
    with pytest.raises(InputError, match="the id of padding"):
        model.get_token_position(token, [model.tokens.pad_token_id, token], prepend_bos=False)
    with pytest.raises(InputError, match="attention_mask has 1 entries"):
        model.get_token_position(token, {"input_ids": ids[1], "attention_mask": mask[1, :1]})
    with pytest.raises(InputError, match="needs input_ids"):
        model.get_token_position(token, {"attention_mask": mask[1]})


def plain_row(model: lensbridge.LensModel, text: str) -> list[int]:
    """The ids of a text alone."""
    return model.to_tokens(text)[0].tolist()


@each_kind
def test_the_users_tokenizer_is_used_as_it_is(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = KINDS[kind]()
    before = copy.deepcopy(tokenizer)
    model = lensbridge.load(HF, tokenizer=tokenizer)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model.to_str_tokens(["the cat", "a"], padding_side="left")
        model.to_string(model.to_tokens(TEXTS, truncate=True))
    finally:
        logger.removeHandler(caplog.handler)
    assert model.tokenizer is tokenizer
    assert not caplog.records
    assert tokenizer.backend_tokenizer.to_str() == before.backend_tokenizer.to_str()
    changed = {k for k, v in vars(tokenizer).items() if k != "_tokenizer" and v != vars(before)[k]}
    assert not changed


def test_text_without_a_tokenizer_says_what_to_do() -> None:
    model = lensbridge.load(HF)
    assert model.tokenizer is None
    for ask in (model.to_tokens, model.to_str_tokens, model.to_single_token, model.forward):
        with pytest.raises(TokenizerMissingError, match=r"lensbridge\.load\(model, tokenizer="):
            ask("the")
    with pytest.raises(TokenizerMissingError):
        model.to_string([1, 2])
    model(torch.tensor([[1, 2]]))
