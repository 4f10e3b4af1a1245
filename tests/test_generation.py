"""Generation: HuggingFace's `generate` on the bare model is the oracle, hooks included."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any

import pytest
import torch
from test_inputs import padded
from test_tokens import letters
from tiny_models import CONTEXT, FAMILIES, VOCAB, Layer, Shape, build, tokens
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    GPT2Model,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer
from transformers.utils import logging as hf_logging

import lensbridge
from lensbridge.errors import ContextLengthError, InputError, LensbridgeError
from lensbridge.generation.options import as_asked
from lensbridge.generation.processors import FrequencyPenalty

NEW = 5
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
QUIET = {"verbose": False, **GREEDY}


def bare(hf: Any, ids: Tensor, mask: Tensor | None = None, **settings: Any) -> Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    return hf.generate(ids, attention_mask=mask, **{**GREEDY, **settings})


def by_hand(hf: Any, ids: Tensor, count: int, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Greedy decoding in a plain loop; `score(last logits, ids so far)`."""
    with torch.no_grad():
        for _ in range(count):
            best = score(hf(ids).logits[:, -1], ids).argmax(-1)
            ids = torch.cat([ids, best.unsqueeze(1)], dim=1)
    return ids


def hook_count(hf: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_huggingfaces_batched_or_alone_cached_or_not(family: str, kernel: str) -> None:
    hf = build(Shape(family, kernel=kernel))
    model = lensbridge.load(hf)
    rows, ids, mask = padded("left")
    found = model.generate(ids, attention_mask=mask, **QUIET)
    assert torch.equal(found, bare(hf, ids, mask))
    assert torch.equal(
        found, model.generate(ids, attention_mask=mask, use_past_kv_cache=False, **QUIET)
    )
    whole = model.generate(ids, attention_mask=mask, stop_at_eos=False, **QUIET)
    for i, row in enumerate(rows):
        alone = model.generate(row, stop_at_eos=False, **QUIET)
        assert torch.equal(alone, by_hand(hf, row[None], NEW, lambda logits, _: logits))
        assert torch.equal(whole[i, -NEW:], alone[0, -NEW:])
    embeds = hf.get_input_embeddings()(ids)
    from_embeds = model.generate(embeds, attention_mask=mask, stop_at_eos=False, **QUIET)
    assert torch.equal(from_embeds, whole[:, -NEW:])


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_know_step_phase_and_positions(family: str, cached: bool) -> None:
    model = lensbridge.load(build(Shape(family)))
    rows, ids, mask = padded("left")
    seen: list[tuple[int, str, Tensor]] = []
    calls = {"attention_mask": mask, "stop_at_eos": False, "use_past_kv_cache": cached, **QUIET}

    def look(value: Tensor, hook: Any) -> None:
        assert hook.positions.shape == value.shape[:2]
        seen.append((hook.step, hook.phase, hook.positions))

    def check() -> None:
        assert [step for step, _, _ in seen] == [*range(NEW), *range(NEW)]
        for step, phase, positions in seen:
            assert phase == ("decode" if cached and step else "prefill")
            for i, row in enumerate(rows):
                last = len(row) + step
                wanted = [last - 1] if cached and step else [*range(last)]
                assert positions[i, -len(wanted) :].tolist() == wanted
        seen.clear()

    with model.hooks(fwd_hooks=[(("resid_pre", 1), look)]):
        model.generate(ids, **calls)
        model.generate(ids, **calls)
    check()
    model.add_hook(("pattern", 0), lambda value, hook: look(value.transpose(1, 2), hook))
    model.generate(ids, **calls)
    model.generate(ids, **calls)
    check()
    model(ids[:, :2])
    model(ids[:, :2])
    assert [step for step, _, _ in seen] == [0, 0]


EDITS: dict[str, Callable[[Layer], tuple[nn.Module, str]]] = {
    "hook_resid_pre": lambda layer: (layer.block, "input"),
    "hook_resid_post": lambda layer: (layer.block, "output"),
    "hook_attn_out": lambda layer: (layer.attn, "output"),
    "mlp.hook_post": lambda layer: (layer.down, "input"),
}


@contextmanager
def raw_hook(module: nn.Module, side: str, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if side == "input"
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


CASES = [(family, {}) for family in FAMILIES]
CASES += [("gpt2", {"use_cache": False}), ("mistral", {"num_beams": 3})]


@pytest.mark.parametrize(("family", "settings"), CASES, ids=str)
def test_an_edit_is_the_same_raw_hook_on_the_bare_model(family: str, settings: dict) -> None:
    hf = build(Shape(family))
    model = lensbridge.load(hf)
    _, ids, mask = padded("left")
    plain = bare(hf, ids, mask, **settings)
    differs = False
    for name, place in EDITS.items():
        with raw_hook(*place(Layer(hf, family, 1)), edit=lambda x: 0.5 * x + x.mean(-1, True)):
            wanted = bare(hf, ids, mask, **settings)
        with model.hooks([(f"blocks.1.{name}", lambda x, hook: 0.5 * x + x.mean(-1, True))]):
            found = model.generate(ids, attention_mask=mask, **settings, **QUIET)
        assert torch.equal(found, wanted), name
        differs = differs or not torch.equal(found, plain)
    assert differs
    assert torch.equal(model.generate(ids, attention_mask=mask, **settings, **QUIET), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_everything_changes_nothing_and_nothing_stays(family: str) -> None:
    hf = build(Shape(family))
    settings, config = copy.deepcopy(hf.generation_config), copy.deepcopy(hf.config)
    model, ids = lensbridge.load(hf), tokens()
    read: list[str] = []
    with model.hooks([(model.hook_names, lambda value, hook: read.append(hook.name))]):
        found = model.generate(ids, stop_at_eos=False, top_k=3, **QUIET)
    assert set(read) == set(model.hook_names)
    assert torch.equal(found, by_hand(hf, ids, NEW, lambda logits, _: logits))
    assert hf.generation_config.to_dict() == settings.to_dict()
    assert hf.config.to_dict() == config.to_dict()

    def fail(value: Tensor, hook: Any) -> None:
        if hook.step == 2:
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), model.hooks([("pattern", fail)]):
        model.generate(ids, stop_at_eos=False, **QUIET)
    assert hook_count(hf) == 0
    assert torch.equal(model.generate(ids, **QUIET), bare(hf, ids))


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 4}, {"top_p": 0.7}, {"temperature": 2}], ids=str
)
def test_seeded_sampling_is_huggingfaces(settings: dict) -> None:
    hf = build(Shape("llama"))
    model, ids = lensbridge.load(hf), tokens()
    hf.generation_config.update(temperature=0.6, top_p=0.9, do_sample=True)
    torch.manual_seed(3)
    told = {
        "top_k": 0,
        "top_p": 1.0,
        **settings,
        "temperature": float(settings.get("temperature", 1)),
    }
    wanted = bare(hf, ids, do_sample=True, **told)
    torch.manual_seed(3)
    found = model.generate(ids, max_new_tokens=NEW, verbose=False, **settings)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, bare(hf, ids))
    for greedy in ({"temperature": 0}, {"do_sample": False}):
        assert torch.equal(
            model.generate(ids, max_new_tokens=NEW, verbose=False, **greedy), bare(hf, ids)
        )


def penalized(logits: Tensor, ids: Tensor, temperature: float, penalty: float) -> Tensor:
    """The rule of TransformerLens's `sample_logits`."""
    counts = torch.stack([torch.bincount(row, minlength=logits.shape[-1]) for row in ids])
    return logits / temperature - penalty * counts


def test_the_frequency_penalty_is_transformerlenses() -> None:
    hf = build(Shape("gpt2"))
    model, ids = lensbridge.load(hf), tokens()
    calls = {"verbose": False, "stop_at_eos": False, "max_new_tokens": 12, "freq_penalty": 1.5}
    found = model.generate(ids, do_sample=False, **calls)
    wanted = by_hand(hf, ids, 12, lambda logits, row: penalized(logits, row, 1.0, 1.5))
    assert torch.equal(found, wanted)
    assert not torch.equal(found, by_hand(hf, ids, 12, lambda logits, row: logits))
    out = model.generate(
        ids,
        temperature=0.7,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **calls,
    )
    for step, (scores, logits) in enumerate(zip(out.scores, out.logits, strict=True)):
        row = out.sequences[:, : ids.shape[1] + step]
        torch.testing.assert_close(scores, penalized(logits, row, 0.7, 1.5), rtol=1e-5, atol=1e-5)


def test_padding_is_not_counted_by_the_frequency_penalty() -> None:
    ids, mask = torch.tensor([[0, 0, 3], [4, 0, 0]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    scores = torch.zeros(4, 6)
    sequences = torch.cat([ids.repeat_interleave(2, 0), torch.tensor([[5], [3], [0], [4]])], 1)
    found = FrequencyPenalty(1.0, 1.0, mask)(sequences, scores)
    wanted = [[0, 0, 0, 1, 0, 1], [0, 0, 0, 2, 0, 0], [3, 0, 0, 0, 1, 0], [2, 0, 0, 0, 2, 0]]
    assert torch.equal(-found, torch.tensor(wanted, dtype=torch.float))


def test_the_frequency_penalty_of_a_padded_row_is_that_of_the_row_alone() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    calls = {"freq_penalty": 1.0, "stop_at_eos": False, **QUIET}
    alone = [model.generate(row, **calls)[0, -NEW:] for row in padded("left")[0]]
    for fill in set(torch.cat(alone).tolist()):  # a penalty on another changes no choice
        _, ids, mask = padded("left", fill)
        found = model.generate(ids, attention_mask=mask, **calls)
        for i, row in enumerate(alone):
            assert torch.equal(found[i, -NEW:], row)


def test_padding_is_no_part_of_the_text() -> None:
    ids, mask = torch.tensor([[3, 3, 4, 5], [6, 4, 5, 7]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    tokenizer = lensbridge.load(build(Shape("gpt2")), tokenizer=letters()).tokens
    assert as_asked(ids, ["a", "b"], "str", tokenizer, mask) == [" a", "b ac"]


def test_stopping_at_eos_or_not() -> None:
    hf = build(Shape("llama"))
    model, ids = lensbridge.load(hf, tokenizer=letters()), tokens(1)
    free = by_hand(hf, ids, NEW, lambda logits, _: logits)
    third = int(free[0, ids.shape[1] + 2])
    cut = ids.shape[1] + 1 + free[0, ids.shape[1] :].tolist().index(third)
    calls = {"do_sample": False, "max_new_tokens": NEW, "verbose": False}
    assert torch.equal(model.generate(ids, eos_token_id=third, **calls), free[:, :cut])
    assert torch.equal(model.generate(ids, eos_token_id=[third, 60], **calls), free[:, :cut])
    hf.generation_config.eos_token_id = third
    assert torch.equal(model.generate(ids, **calls), free[:, :cut])
    assert torch.equal(model.generate(ids, stop_at_eos=False, **calls), free)
    beams = model.generate(ids, stop_at_eos=False, num_beams=2, **calls)
    assert beams.shape[1] == free.shape[1]
    with pytest.raises(InputError, match="contradict"):
        model.generate(ids, stop_at_eos=False, eos_token_id=third, **calls)
    hf.generation_config.eos_token_id = None
    tokenizer = letters()
    tokenizer.add_tokens([f"more {i}" for i in range(VOCAB)])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(third)
    with_tokenizer = lensbridge.load(hf, tokenizer=tokenizer)
    assert torch.equal(with_tokenizer.generate(ids, **calls), free[:, :cut])


class Watch(BaseStreamer):
    """A streamer, a logits processor's call and a stopping criterion that keep what they see."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        self.seen.append(value)

    def end(self) -> None:
        pass


class Only(LogitsProcessor):
    """Allows one token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor(self.token), 0.0)


@pytest.mark.parametrize("many", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_huggingfaces_own_settings_pass_through(many: dict) -> None:
    hf = build(Shape("neox"))
    model, ids = lensbridge.load(hf, tokenizer=letters()), tokens()
    assert torch.equal(model.generate(ids, **many, **QUIET), bare(hf, ids, **many))
    only = model.generate(ids, logits_processor=LogitsProcessorList([Only(9)]), **QUIET)
    assert (only[:, -NEW:] == 9).all()
    limit = StoppingCriteriaList([MaxLengthCriteria(ids.shape[1] + 2)])
    assert model.generate(ids, stopping_criteria=limit, **QUIET).shape[1] == ids.shape[1] + 2
    watch = Watch()
    found = model.generate(ids[:1], streamer=watch, **QUIET)
    assert torch.equal(torch.cat([one.flatten() for one in watch.seen]), found[0])
    letter = [Only(model.to_single_token("q"))]
    assert model.generate("a", logits_processor=letter, stop_strings=["qq"], **QUIET) == "aqq"
    out = model.generate(ids, return_dict_in_generate=True, output_scores=True, **QUIET)
    assert torch.equal(out.sequences, bare(hf, ids))
    assert len(out.scores) == out.sequences.shape[1] - ids.shape[1]


def test_text_for_text_and_ids_for_ids() -> None:
    hf = build(Shape("gpt2"))
    tokenizer = letters()
    model = lensbridge.load(hf, tokenizer=tokenizer)
    texts = ["the cat", "a"]
    ids, mask = model.to_tokens(texts, padding_side="left", return_mask=True)
    wanted = bare(hf, ids, mask)
    decoded = tokenizer.batch_decode(wanted, skip_special_tokens=True)
    assert model.generate(texts, **QUIET) == decoded
    assert [model.generate(text, **QUIET) for text in texts] == decoded
    assert model.generate(texts[:1], **QUIET) == decoded[:1]
    assert torch.equal(model.generate(texts, return_type="tokens", **QUIET), wanted)
    assert torch.equal(model.generate(ids, attention_mask=mask, **QUIET), wanted)
    assert model.generate(ids, attention_mask=mask, return_type="str", **QUIET) == decoded
    assert model.generate(ids[0], return_type="str", **QUIET) == decoded[0]
    bare_text = model.generate("the cat", prepend_bos=False, return_type="tokens", **QUIET)
    assert torch.equal(bare_text, bare(hf, ids[:1, 1:]))
    several = model.generate("a", num_return_sequences=3, num_beams=3, **QUIET)
    assert len(several) == 3
    assert all(text.startswith("a") for text in several)


def test_a_progress_bar_goes_to_stderr_and_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    model, ids = lensbridge.load(build(Shape("llama"))), tokens()
    with model.hooks([("blocks.0.hook_resid_pre", lambda value, hook: sleep(0.6))]):
        with_bar = model.generate(ids, max_new_tokens=NEW, do_sample=False)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "generating" in shown.err
    assert not tqdm._instances
    assert torch.equal(with_bar, model.generate(ids, **QUIET))
    with pytest.raises(ZeroDivisionError), model.hooks([("pattern", lambda value, hook: 1 / 0)]):
        model.generate(ids, max_new_tokens=NEW)
    capsys.readouterr()
    model.generate(ids, **QUIET)
    assert capsys.readouterr() == ("", "")
    assert not tqdm._instances


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_huggingface_has_nothing_to_warn_about(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    hf, (_, ids, mask) = build(Shape(family)), padded("left")
    hf.generation_config.update(
        pad_token_id=None, temperature=0.6, top_p=0.9, top_k=20, do_sample=True
    )
    model = lensbridge.load(hf)
    verbosity, logger = hf_logging.get_verbosity(), logging.getLogger("transformers")
    hf_logging.set_verbosity_warning()
    hf_logging.warning_once.cache_clear()
    logger.addHandler(caplog.handler)
    try:
        for call in ({"do_sample": False}, {}, {"stop_at_eos": False}, {"num_beams": 2}):
            model.generate(ids, 3, attention_mask=mask, verbose=False, **call)
    finally:
        logger.removeHandler(caplog.handler)
        hf_logging.set_verbosity(verbosity)
    assert [record.getMessage() for record in caplog.records] == []


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown": ({"max_tokens": 3}, TypeError, "no keyword 'max_tokens'.*'max_new_tokens'"),
    "misspelt": ({"freq_penality": 3}, TypeError, "Did you mean 'freq_penalty'"),
    "config": ({"generation_config": None}, TypeError, "its settings one by one"),
    "max_length": ({"max_length": 9}, TypeError, "pass max_new_tokens"),
    "too long": ({"max_new_tokens": CONTEXT}, ContextLengthError, f"context is {CONTEXT}"),
    "none": ({"max_new_tokens": 0}, InputError, "at least 1, not 0"),
    "half": ({"max_new_tokens": 2.5}, InputError, "whole number"),
    "labels": ({"labels": tokens()}, TypeError, "no keyword 'labels'"),
    "temperature": ({"temperature": -1.0}, InputError, "temperature is 0 or more"),
    "top_k": ({"top_k": 0}, InputError, "top_k is at least 1"),
    "top_p": ({"top_p": 1.5}, InputError, "top_p is above 0 and at most 1"),
    "penalty": ({"freq_penalty": -1.0}, InputError, "freq_penalty is 0 or more"),
    "return_type": ({"return_type": "text"}, InputError, "'input', 'str' or 'tokens'"),
    "mask": ({"attention_mask": torch.ones(2, 8)}, InputError, "attention_mask has shape"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_one_clear_error(case: str) -> None:
    keywords, error, message = WRONG[case]
    model = lensbridge.load(build(Shape("gpt2")))
    with pytest.raises(error, match=message):
        model.generate(tokens(), **{"verbose": False, **keywords})


def test_a_prompt_that_cannot_be_continued_is_refused() -> None:
    _, ids, mask = padded("right")
    model = lensbridge.load(build(Shape("llama")))
    with pytest.raises(InputError, match="padding_side='left'"):
        model.generate(ids, attention_mask=mask, **QUIET)
    with pytest.raises(LensbridgeError, match="cannot generate"):
        lensbridge.load(GPT2Model(build(Shape("gpt2")).config)).generate(ids)
