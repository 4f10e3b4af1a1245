"""`model.run(experiment)`: the same as the separate calls, bit for bit, and nothing left behind."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import lensbridge
from lensbridge import Experiment
from lensbridge.errors import InputError, LensbridgeError, TokenError, UnsupportedError
from lensbridge.experiments import KL, ExperimentResult, LogitDiff, LogProb, Loss, Prob
from lensbridge.interventions import Add, Resample, Scale, Zero

TEXT = "The Eiffel Tower is in the city of"
TEXTS = [TEXT, "The Colosseum is in"]
EDITS = [Zero(("z", 1), heads=3), Scale(("mlp_out", 2), 0.5, positions=-1)]
CELLS = [Zero(("z", 2), heads=head) for head in range(4)]
METRIC = LogitDiff(" Paris", " Rome")


@pytest.fixture(scope="module")
def model() -> Any:
    return lensbridge.load("demo")


INPUTS = {
    "text": TEXT,
    "texts": TEXTS,
    "ids": torch.tensor([[1, 5, 9, 4], [3, 4, 5, 6]]),
    "row": [1, 5, 9, 4],
    "encoded": {
        "input_ids": torch.tensor([[0, 5, 9], [1, 2, 3]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    },
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("edits", [(), EDITS], ids=["plain", "edited"])
def test_an_experiment_is_what_the_separate_calls_give(model: Any, kind: str, edits: Any) -> None:
    given = INPUTS[kind]
    asked = Experiment(
        given,
        points=[("resid_post", -1), "z"],
        interventions=edits,
        metric=METRIC,
        sweep=CELLS,
        gradients=["resid_pre", ("z", 0)],
        generate={"max_new_tokens": 3, "do_sample": False},
        pos_slice=[0, -1],
        returns=("logits", "loss"),
    )
    result = model.run(asked)
    kept = {"names_filter": [("resid_post", -1), "z"], "pos_slice": [0, -1]}
    with model.intervene(list(edits)):
        (logits, loss), cache = model.run_with_cache(given, return_type="both", **kept)
        swept = model.sweep(given, CELLS, METRIC, baseline=True)
        value, grads = model.gradients(given, ["resid_pre", ("z", 0)], METRIC, pos_slice=[0, -1])
    tokens = model.generate(
        given, 3, do_sample=False, return_type="tokens", verbose=False, interventions=list(edits)
    )
    assert torch.equal(result.logits, logits)
    assert torch.equal(result.loss, loss)
    same_caches(result.cache, cache)
    assert torch.equal(result.metric, value)
    assert torch.equal(result.sweep.values, swept.values)
    assert torch.equal(result.sweep.baseline, swept.baseline)
    torch.testing.assert_close(result.sweep.baseline, result.metric)
    same_caches(result.gradients, grads)
    assert torch.equal(result.tokens, tokens)
    assert not result.logits.requires_grad


def same_caches(found: Any, wanted: Any) -> None:
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_generated_text_is_that_of_generate(model: Any) -> None:
    for given in (TEXT, TEXTS):
        how = {"max_new_tokens": 4, "do_sample": False}
        result = model.run(Experiment(given, generate=how, returns=(), interventions=EDITS))
        text = model.generate(given, **how, interventions=EDITS, verbose=False)
        assert result.text == text
        assert (result.logits, result.cache, result.metrics) == (None, None, {})


def test_an_edit_of_what_is_generated_leaves_the_inputs_alone(model: Any) -> None:
    later = Add(("resid_post", 2), 40 * torch.randn(128), when="decode")
    how = {"max_new_tokens": 4, "do_sample": False}
    result = model.run(Experiment(TEXT, interventions=[later], generate=how))
    assert torch.equal(result.logits, model(TEXT))
    assert result.text == model.generate(TEXT, **how, interventions=[later], verbose=False)
    assert result.text != model.generate(TEXT, **how, verbose=False)
    with pytest.raises(InputError, match="the experiment generates none"):
        model.run(Experiment(TEXT, interventions=[later]))


def test_several_metrics_by_name(model: Any) -> None:
    metrics = {"difference": METRIC, "prob": Prob(" Paris"), "loss": Loss(), "kl": KL()}
    result = model.run(
        Experiment(TEXTS, metric=metrics, interventions=EDITS, sweep=CELLS, gradients="z")
    )
    logits = model.run_with_interventions(TEXTS, EDITS)
    loss = model.run_with_interventions(TEXTS, EDITS, return_type="loss")
    assert list(result.metrics) == list(metrics)
    torch.testing.assert_close(result.metrics["loss"], loss)
    paris = model.to_single_token(" Paris")
    last = torch.stack([logits[0, -1], logits[1, 4]])
    torch.testing.assert_close(result.metrics["prob"], last.softmax(-1)[:, paris].mean())
    clean = model(TEXTS)
    assert torch.equal(
        result.metrics["kl"],
        model.run(Experiment(TEXTS, metric=KL(clean), interventions=EDITS)).metric,
    )
    assert result.sweep["prob"].shape == (4,)
    assert set(result.gradients) == set(metrics)
    with model.intervene(EDITS):
        _, grads = model.gradients(TEXTS, "z", METRIC)
        _, of_loss = model.gradients(TEXTS, "z", "loss")
    same_caches(result.gradients["difference"], grads)
    for name in of_loss:
        torch.testing.assert_close(result.gradients["loss"][name], of_loss[name])


def test_metrics_of_each_example(model: Any) -> None:
    result = model.run(
        Experiment(TEXTS, metric=METRIC.reduced("none"), sweep=CELLS, gradients=("resid_pre", 0))
    )
    assert result.metric.shape == (2,)
    assert result.sweep.shape == (4, 2)
    for row, text in enumerate(TEXTS):  # the gradient of each example is that of it alone
        alone = model.gradients(text, ("resid_pre", 0), METRIC).gradients["resid_pre", 0][0]
        found = result.gradients["resid_pre", 0][row, : len(alone)]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_cells_of_several_interventions_and_with_names(model: Any) -> None:
    windows = {f"{i}-{i + 1}": [Zero(("z", i)), Zero(("z", i + 1))] for i in range(3)}
    result = model.run(Experiment(TEXT, metric=METRIC, sweep=windows)).sweep
    by_hand = [
        model.run(Experiment(TEXT, metric=METRIC, interventions=w)) for w in windows.values()
    ]
    torch.testing.assert_close(result.values, torch.stack([one.metric for one in by_hand]))
    assert list(result.axis_labels["cell"]) == list(windows)
    unnamed = model.run(Experiment(TEXT, metric=METRIC, sweep=list(windows.values()))).sweep
    assert torch.equal(unnamed.values, result.values)


def test_bos_is_as_the_experiment_says(model: Any) -> None:
    for bos in (None, True, False):
        result = model.run(Experiment(TEXT, prepend_bos=bos, metric=METRIC, sweep=CELLS))
        assert torch.equal(result.logits, model(TEXT, prepend_bos=bos))
        assert result.sweep.positions.texts[0] == ("The" if bos is False else "<|endoftext|>")


def test_inputs_are_objects_that_hold_prompts_too(model: Any) -> None:
    class Question:
        def as_input(self) -> str:
            return TEXT

    assert Experiment(Question()) == Experiment(TEXT)
    encoded = model.tokens.encode(TEXTS)
    assert torch.equal(model.run(Experiment(encoded)).logits, model(TEXTS))


def test_chats_go_through_the_template_of_the_model(model: Any) -> None:
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
    )
    chatting = lensbridge.load(model.hf_model, tokenizer=tokenizer)
    chat = [{"role": "user", "content": TEXT}]
    for given, texts in ((chat, f"user: {TEXT}"), ([chat, chat], [f"user: {TEXT}"] * 2)):
        how = {"max_new_tokens": 2, "do_sample": False}
        asked = Experiment(given, metric=METRIC, sweep=CELLS, generate=how)
        result = chatting.run(Experiment.from_json(asked.to_json()))
        assert torch.equal(result.logits, model(texts))
        assert result.text == model.generate(texts, **how, verbose=False)
        assert torch.equal(result.sweep.values, model.sweep(texts, CELLS, METRIC).values)


def test_a_model_without_a_tokenizer_takes_ids() -> None:
    config = GPT2Config(vocab_size=9, n_layer=2, n_embd=8, n_head=2, n_positions=16)
    hf_model = GPT2LMHeadModel(config).eval()
    model = lensbridge.load(hf_model)
    ids = torch.tensor([[1, 2, 3]])
    how = {"max_new_tokens": 2, "do_sample": False, "stop_at_eos": False}
    result = model.run(Experiment(ids, metric=LogitDiff(3, 4), generate=how, sweep=[[Zero("z")]]))
    with torch.no_grad():
        logits = hf_model(ids).logits
    assert torch.equal(result.metric, logits[0, -1, 3] - logits[0, -1, 4])
    assert torch.equal(result.tokens[:, :3], ids)
    assert (result.tokens.shape, result.text) == ((1, 5), None)
    with pytest.raises(LensbridgeError, match="tokenizer"):
        model.run(Experiment(ids, metric=LogitDiff(" a", " b")))


def test_an_encoder_decoder_is_measured_at_its_decoder() -> None:
    config = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    hf_model = T5ForConditionalGeneration(config).eval()
    model = lensbridge.load(hf_model)
    given = {
        "input_ids": torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "decoder_input_ids": torch.tensor([[0, 5, 6], [0, 7, 8]]),
        "decoder_attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }
    with torch.no_grad():
        logits = hf_model(**given).logits
    result = model.run(Experiment(given, metric=LogitDiff(3, 4, reduce="none"), gradients="embed"))
    last = torch.stack([logits[0, 2], logits[1, 1]])
    torch.testing.assert_close(result.metric, last[:, 3] - last[:, 4])


def test_only_what_is_asked_for_is_run(model: Any) -> None:
    runs: list[Tensor] = []
    handle = model.hf_model.register_forward_hook(lambda *args: runs.append(args))
    try:
        model.run(Experiment(TEXT, points="z", interventions=EDITS, metric=METRIC))
        assert len(runs) == 1
        runs.clear()
        model.run(Experiment(TEXT, metric=KL(), interventions=EDITS))
        assert len(runs) == 2  # and the run without edits
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "part",
    [
        {"points": "blocks.9.hook_z"},
        {"interventions": [*EDITS, Zero(("z", 1), heads=99)]},
        {"metric": LogitDiff(" Paris", "the city of")},
        {"metric": LogProb(999_999)},
        {"sweep": [Zero(("z", 1), heads=99)], "metric": METRIC},
        {"gradients": "blocks.9.hook_z", "metric": METRIC},
        {"generate": {"max_new_tokens": 9999}},
        {"generate": {"nonsense": 1}},
        {"pos_slice": [99]},
    ],
    ids=lambda part: next(iter(part)),
)
def test_nothing_stays_attached_when_a_part_fails(model: Any, part: Any) -> None:
    before = model(TEXT)
    asked = Experiment(TEXT, **{"interventions": EDITS, "points": "z", **part})
    with pytest.raises((LensbridgeError, TypeError)):
        model.run(asked)
    assert model.engine.is_idle
    assert not any(module._forward_hooks for module in model.hf_model.modules())
    assert torch.equal(model(TEXT), before)


def test_tokens_are_looked_up_before_anything_runs(model: Any) -> None:
    runs: list[Any] = []
    handle = model.hf_model.register_forward_hook(lambda *args: runs.append(args))
    try:
        with pytest.raises(TokenError, match="not one"):
            model.run(Experiment(TEXT, metric=LogitDiff(" Paris", "the city of")))
    finally:
        handle.remove()
    assert not runs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"points": lambda name: True}, "A function of names cannot be sent"),
        ({"points": ["z", lambda name: True]}, "A function of names cannot be sent"),
        ({"points": 3}, "points are names, short names or globs"),
        ({"interventions": [lambda x: x]}, "a function would have to run where the model is"),
        ({"metric": lambda logits: logits.sum()}, "model.sweep and model.gradients take functions"),
        ({"metric": {}}, "The mapping of metrics is empty"),
        ({"metric": {"a": 3}}, "no declared metric"),
        ({"sweep": CELLS}, "sweep=... is of a metric, and the experiment has none"),
        ({"gradients": "z"}, "gradients=... is of a metric, and the experiment has none"),
        ({"sweep": [], "metric": METRIC}, "sweep is empty"),
        ({"sweep": [[]], "metric": METRIC}, "sweep is empty, or one of its cells is"),
        ({"sweep": CELLS[0], "metric": METRIC}, "for one, pass"),
        ({"sweep": ["z"], "metric": METRIC}, "no intervention"),
        ({"generate": 8}, "generate is options of model.generate"),
        ({"generate": {"interventions": []}}, "interventions=... of its own"),
        ({"generate": {"return_dict_in_generate": True}}, "both text and tokens"),
        ({"generate": {"streamer": object()}}, "something that is no data"),
        ({"returns": "logit"}, "Did you mean 'logits'"),
    ],
)
def test_what_is_no_data_is_refused_when_the_experiment_is_made(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Experiment(TEXT, **given)


def test_run_takes_an_experiment_only(model: Any) -> None:
    with pytest.raises(InputError, match="run takes an Experiment, not a str"):
        model.run(TEXT)


def test_an_engine_says_what_it_lacks_before_it_runs() -> None:
    asked = Experiment(TEXT, points="z", metric=METRIC, gradients="z")
    assert asked.parts == ("points", "metric", "gradients")
    asked.require("This engine", {"sweep": "it has one row"})
    with pytest.raises(UnsupportedError, match="asks for gradients, which vLLM does not have: no"):
        asked.require("vLLM", {"gradients": "no graph is recorded"})


def test_results_and_experiments_show_what_is_in_them(model: Any) -> None:
    asked = Experiment(TEXT, points="z", metric=METRIC, interventions=EDITS[0])
    assert repr(asked) == (
        f"Experiment({TEXT!r}, points='z', interventions=(Zero(('z', 1), heads=(3,)),), "
        "metric=LogitDiff(' Paris', ' Rome'))"
    )
    assert repr(model.run(asked)).startswith(
        "ExperimentResult(logits [1, 9, 564], cache of 4, metr"
    )
    with pytest.raises(InputError, match="There are 0 metrics"):
        _ = ExperimentResult().metric


def test_values_of_another_run_are_data_of_the_experiment(model: Any) -> None:
    _, cache = model.run_with_cache(TEXT, names_filter=("resid_post", 1))
    edit = Resample(("resid_post", 1), cache, positions=[2, 3])
    asked = Experiment("The Galata Tower is in the city of", interventions=[edit])
    again = Experiment.from_json(asked.to_json())
    wanted = model.run_with_interventions("The Galata Tower is in the city of", edit)
    assert torch.equal(model.run(again).logits, wanted)
