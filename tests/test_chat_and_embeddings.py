"""Chat messages and embeddings as inputs, against the tokenizer's template and the bare model."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import lensbridge
from lensbridge.errors import InputError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
ASKED = [{"role": "user", "content": "The Eiffel Tower is in the city of"}]
ANSWERED = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": " Rome"}]
PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module")
def model() -> Any:
    demo = lensbridge.load("demo")
    tokenizer = copy.deepcopy(demo.tokenizer)
    tokenizer.chat_template = TEMPLATE
    return lensbridge.load(demo.hf_model, tokenizer=tokenizer)


def templated(model: Any, chat: Any, add_generation_prompt: bool) -> Tensor:
    ids = model.tokenizer.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=False
    )
    return torch.tensor([ids])


def embedded(model: Any, ids: Tensor) -> Tensor:
    table = model.hf_model.get_input_embeddings()
    return table(ids).detach()


# --- chats ---------------------------------------------------------------------------------------


def test_a_chat_is_what_the_template_makes_of_it(model: Any) -> None:
    for chat, prompted in ((ASKED, True), (ANSWERED, False)):
        assert torch.equal(model.to_tokens(chat), templated(model, chat, prompted))
        for asked in (True, False):
            found = model.to_tokens(chat, add_generation_prompt=asked)
            assert torch.equal(found, templated(model, chat, asked))
    ids = templated(model, ASKED, True)
    assert (ids == model.tokenizer.bos_token_id).sum() == 1 + (
        model.tokenizer.bos_token_id == model.tokenizer.eos_token_id
    )
    assert model.to_str_tokens(ASKED) == [model.tokenizer.decode(one) for one in ids[0]]
    assert model.get_token_position(" Tower", ASKED) == ids[0].tolist().index(
        model.to_single_token(" Tower")
    )


def test_a_template_without_bos_gets_none_unless_it_is_asked_for(model: Any) -> None:
    plain = copy.deepcopy(model.tokenizer)
    plain.chat_template = TEMPLATE.removeprefix("{{ bos_token }}")
    bare = lensbridge.load(model.hf_model, tokenizer=plain)
    ids = templated(bare, ASKED, True)
    assert torch.equal(bare.to_tokens(ASKED), ids)
    bos = torch.tensor([[plain.bos_token_id]])
    assert torch.equal(bare.to_tokens(ASKED, prepend_bos=True), torch.cat([bos, ids], 1))
    assert torch.equal(model.to_tokens(ASKED, prepend_bos=True), model.to_tokens(ASKED))


def test_chats_run_wherever_text_does(model: Any) -> None:
    ids = templated(model, ASKED, True)
    with torch.no_grad():
        wanted = model.hf_model(ids).logits
    assert torch.equal(model(ASKED), wanted)
    logits, cache = model.run_with_cache(ASKED, "resid_post")
    assert torch.equal(logits, wanted)
    assert torch.equal(cache.tokens, ids)
    told = model(ASKED, add_generation_prompt=False)
    assert torch.equal(told, model.hf_model(templated(model, ASKED, False)).logits)

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 3].mean()

    cells = [(("resid_post", 1), (0, 3), 0.0)]
    swept = [model.sweep(given, cells, metric, verbose=False).values for given in (ASKED, ids)]
    torch.testing.assert_close(*swept)
    slopes = [
        model.gradients(given, ("resid_pre", 1), of=metric).gradients["resid_pre", 1]
        for given in (ASKED, ids)
    ]
    assert torch.equal(*slopes)


def test_a_batch_of_chats_is_padded_like_texts(model: Any) -> None:
    ids, mask = model.to_tokens([ASKED, ANSWERED], return_mask=True)
    for row, real, chat, prompted in zip(ids, mask, (ASKED, ANSWERED), (True, False), strict=True):
        assert torch.equal(row[real.bool()][None], templated(model, chat, prompted))
    logits = model([ASKED, ANSWERED])
    for i, chat in enumerate((ASKED, ANSWERED)):
        alone = model(chat)[0]
        torch.testing.assert_close(logits[i, : len(alone)], alone)
    left = model.to_tokens([ASKED, ANSWERED], padding_side="left")
    assert torch.equal(
        left[:, -1], torch.stack([model.to_tokens(c)[0, -1] for c in (ASKED, ANSWERED)])
    )


def test_a_chat_is_generated_from(model: Any) -> None:
    ids = templated(model, ASKED, True)
    new: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    wanted = model.hf_model.generate(
        ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **new
    )
    found = model.generate(ASKED, **new, verbose=False, return_type="tokens", stop_at_eos=False)
    assert torch.equal(found[:, : wanted.shape[1]], wanted)
    text = model.generate(ASKED, **new, verbose=False)
    assert text == model.tokenizer.decode(wanted[0], skip_special_tokens=True)
    several = model.generate([ASKED, ANSWERED], **new, verbose=False)
    assert several[0] == text
    assert len(several) == 2
    assert "".join(model.stream(ASKED, 3, do_sample=False)) == text.removeprefix(
        model.tokenizer.decode(ids[0], skip_special_tokens=True)
    )


@pytest.mark.parametrize(
    ("given", "options", "told"),
    [
        (PROMPT, {"add_generation_prompt": True}, "for messages of a chat"),
        (torch.tensor([[1, 2]]), {"add_generation_prompt": True}, "for messages of a chat"),
        ([ASKED, "text"], {}, "A chat is a list of messages"),
        ([ASKED[0], "text"], {}, "A chat is a list of messages"),
        (
            [{"role": "user", "content": {"a": 1}}, {"role": "x"}],
            {},
            "does not take these messages",
        ),
    ],
)
def test_what_is_no_chat(model: Any, given: Any, options: Any, told: str) -> None:
    strict = copy.deepcopy(model.tokenizer)
    strict.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'x' %}{{ raise_exception('no x') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    lens = lensbridge.load(model.hf_model, tokenizer=strict)
    with pytest.raises(InputError, match=told):
        lens(given, **options)


# --- embeddings ----------------------------------------------------------------------------------


def test_embeddings_are_an_input_in_every_form(model: Any) -> None:
    ids = model.to_tokens(PROMPT)
    embeds = embedded(model, ids)
    with torch.no_grad():
        wanted = model.hf_model(inputs_embeds=embeds).logits
    for logits in (
        model(embeds),
        model(inputs_embeds=embeds),
        model({"inputs_embeds": embeds}),
        model({"inputs_embeds": embeds, "attention_mask": torch.ones_like(ids)}),
        model.run_with_cache(inputs_embeds=embeds, names_filter="z")[0],
        model.run_with_hooks(inputs_embeds=embeds),
        model.run_with_interventions({"inputs_embeds": embeds}, []),
    ):
        assert torch.equal(logits, wanted)


def test_embeddings_in_sweeps_gradients_and_generation(model: Any) -> None:
    ids = model.to_tokens(PROMPT)
    embeds = embedded(model, ids)
    mapping = {"inputs_embeds": embeds}

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 3].mean()

    cells = [(("resid_post", 1), (0, 3), 0.0), (("z", 2), (0, 8, 1), 0.0)]
    wanted = model.sweep(ids, cells, metric, verbose=False).values
    for given in (embeds, mapping):
        found = model.sweep(given, cells, metric, verbose=False).values
        torch.testing.assert_close(found, wanted)

    leaf = embeds.clone().requires_grad_()
    slope = torch.autograd.grad(model.hf_model(inputs_embeds=leaf).logits[:, -1, 3].sum(), leaf)[0]
    at_once = torch.autograd.grad(model(inputs_embeds=leaf)[:, -1, 3].sum(), leaf)[0]
    assert torch.equal(at_once, slope)
    for given, options in ((embeds, {}), (mapping, {}), (None, mapping)):
        found = model.gradients(given, ("resid_pre", 0), of=metric, **options)
        torch.testing.assert_close(found.gradients["resid_pre", 0], slope)

    new: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    wanted = model.hf_model.generate(
        inputs_embeds=embeds, attention_mask=torch.ones_like(ids), pad_token_id=0, **new
    )
    for given, options in ((embeds, {}), (mapping, {}), (None, mapping)):
        found = model.generate(given, **new, **options, verbose=False, stop_at_eos=False)
        assert torch.equal(found[:, : wanted.shape[1]], wanted)


def test_padded_embeddings_with_their_mask(model: Any) -> None:
    ids, mask = model.to_tokens([PROMPT, "The Eiffel"], return_mask=True)
    given = {"inputs_embeds": embedded(model, ids), "attention_mask": mask}
    logits, cache = model.run_with_cache(given, "resid_post")
    torch.testing.assert_close(logits[1, : mask[1].sum()], model("The Eiffel")[0])
    assert torch.equal(cache.attention_mask, mask)


def test_an_input_is_passed_once(model: Any) -> None:
    embeds = torch.zeros(1, 3, model.cfg.d_model)
    with pytest.raises(TypeError, match="inputs_embeds beside it"):
        model(PROMPT, inputs_embeds=embeds)
    with pytest.raises(TypeError, match="both input_ids and inputs_embeds"):
        model({"input_ids": [[1, 2, 3]], "inputs_embeds": embeds})
    for run in (model, model.run_with_cache, model.generate):
        with pytest.raises(InputError, match="There is no input"):
            run()
    with pytest.raises(InputError, match=r"\[batch, pos, 128\]"):
        model(inputs_embeds=torch.zeros(1, 3, 5))
