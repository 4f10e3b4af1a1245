"""Requests in one dynamic batch: each with its own interventions, and nothing leaks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")
from vllm_models import TEXTS, opened

import lensbridge
from lensbridge.engines.vllm.settings import check_version
from lensbridge.errors import (
    ContextLengthError,
    EditError,
    InputError,
    LoadError,
    UnsupportedError,
)
from lensbridge.experiments import Experiment, LogitDiff, LogProb
from lensbridge.interventions import Add, Noise, Replace, Resample, Scale, Steer, Zero

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


def steering(layer: int = 0) -> Add:
    torch.manual_seed(3)
    return Add(("resid_post", layer), torch.randn(128))


def near(one: torch.Tensor, other: torch.Tensor, most: float = 1e-5) -> bool:
    return one.shape == other.shape and float((one - other).abs().max()) < most


def test_one_of_two_requests_is_steered(llama: Any, oracle: Any) -> None:
    pair = [TEXTS[0], TEXTS[2]]
    plain, before = llama.run_with_cache(pair, "resid_post")
    steered, after = llama.run_with_cache(pair, "resid_post", interventions=[[steering()], None])
    assert torch.equal(steered[1], plain[1])  # bit for bit
    assert torch.equal(after["resid_post", 1][1], before["resid_post", 1][1])
    wanted = oracle.run_with_interventions(TEXTS[0], steering())
    assert near(steered[0, : wanted.shape[1]], wanted[0])
    assert not near(steered[0], plain[0], 0.1)


def test_each_request_has_its_own(llama: Any, oracle: Any) -> None:
    each = [steering(), [Zero(("z", 1), heads=2), Scale(("mlp_out", 0), 2.0)], None]
    found = llama.run_with_interventions(TEXTS, each)
    for row, own in enumerate([[each[0]], each[1], []]):
        wanted = oracle.run_with_interventions(TEXTS[row], own)
        assert near(found[row, : wanted.shape[1]], wanted[0])


def test_interventions_that_know_their_rows(llama: Any, oracle: Any) -> None:
    _, source = oracle.run_with_cache(TEXTS, "resid_pre")
    several = [
        Add(("resid_post", 0), torch.randn(3, 1, 128)),
        Zero(("z", 0), positions=[[0], [1], [2, -1]]),
        Scale(("resid_mid", 1), 3.0, examples=[1]),
        Resample(("resid_pre", 1), source, positions=-1),
        Steer(("resid_post", 0), torch.randn(128), 2.0),
    ]
    for one in several:
        wanted = oracle.run_with_interventions(TEXTS, one)
        found = llama.run_with_interventions(TEXTS, one)
        for row, text in enumerate(TEXTS):
            count = oracle.to_tokens(text).shape[1]
            assert near(found[row, :count], wanted[row, :count]), one


def test_a_context_of_interventions(llama: Any, oracle: Any) -> None:
    with llama.intervene(steering()), oracle.intervene(steering()):
        found, wanted = llama(TEXTS[0]), oracle(TEXTS[0])
    assert near(found, wanted)
    assert near(llama(TEXTS[0]), oracle(TEXTS[0]))


def test_padding_on_the_left_and_masks(llama: Any, oracle: Any) -> None:
    found, cache = llama.run_with_cache(TEXTS, ["resid_post", "hook_rot_q"], padding_side="left")
    wanted, other = oracle.run_with_cache(TEXTS, "resid_post", padding_side="left")
    real = other.attention_mask.bool()
    assert torch.equal(cache.tokens, other.tokens)
    assert near(found[real], wanted[real])
    assert near(cache["resid_post", 1][real], other["resid_post", 1][real])
    _, last = llama.run_with_cache(TEXTS, "resid_post", pos_slice=-1, padding_side="left")
    _, same = oracle.run_with_cache(TEXTS, "resid_post", pos_slice=-1, padding_side="left")
    assert near(last["resid_post", 0], same["resid_post", 0])


def test_loss_and_stopping(llama: Any, oracle: Any) -> None:
    assert near(llama(TEXTS, return_type="loss"), oracle(TEXTS, return_type="loss"))
    ends = [one(TEXTS[0], stop_at_layer=1) for one in (llama, oracle)]
    assert near(*ends)


def test_generation_is_huggingface_s(llama: Any, oracle: Any) -> None:
    said = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    assert llama.generate(TEXTS[0], **said) == oracle.generate(TEXTS[0], **said)
    edits = [
        steering(),
        Add(("resid_post", 0), 2 * torch.randn(128), when="decode"),
        Zero(("z", 1), positions="last"),
        Scale(("mlp_out", 0), 3.0, when="prefill"),
    ]
    for edit in edits:
        wanted = oracle.generate(TEXTS[0], interventions=edit, return_type="tokens", **said)
        found = llama.generate(TEXTS[0], interventions=edit, return_type="tokens", **said)
        assert torch.equal(found, wanted), edit
    together = llama.generate(
        TEXTS, interventions=[None, steering(), edits[1]], return_type="tokens", **said
    )
    for row, edit in enumerate([None, steering(), edits[1]]):
        given = () if edit is None else edit
        alone = oracle.generate(TEXTS[row], interventions=given, return_type="tokens", **said)
        assert torch.equal(together[row, -alone.shape[1] :], alone[0])


def test_an_end_of_text_ends_a_row(llama: Any, oracle: Any) -> None:
    first = int(oracle(TEXTS[0])[0, -1].argmax())
    said = {"max_new_tokens": 5, "do_sample": False, "verbose": False, "eos_token_id": first}
    found = llama.generate(TEXTS[0], return_type="tokens", **said)
    assert torch.equal(found, oracle.generate(TEXTS[0], return_type="tokens", **said))


def test_an_experiment(llama: Any, oracle: Any) -> None:
    experiment = Experiment(
        TEXTS[0],
        points=[("resid_post", -1), "z"],
        interventions=[steering()],
        metric={"difference": LogitDiff(" Paris", " Rome"), "prob": LogProb(" Paris")},
        sweep=[Zero(("z", layer), heads=head) for layer in range(2) for head in range(4)],
        generate={"max_new_tokens": 3, "do_sample": False},
        returns=("logits", "loss"),
    )
    found = llama.run(Experiment.from_json(experiment.to_json()))
    wanted = oracle.run(experiment)
    assert found.engine == "vllm"
    assert near(found.logits, wanted.logits)
    assert near(found.loss, wanted.loss)
    assert list(found.cache) == list(wanted.cache)
    for name, value in wanted.metrics.items():
        assert near(found.metrics[name], value, 1e-4)
    assert near(found.sweep.values, wanted.sweep.values, 1e-4)
    assert near(found.sweep.baseline, wanted.sweep.baseline, 1e-4)
    assert found.text == wanted.text
    with pytest.raises(UnsupportedError, match="vLLM computes no gradients"):
        llama.run(Experiment(TEXTS[0], gradients="z", metric=LogProb(" Paris")))


def test_a_harvest(llama: Any, folder: Callable[[str], Path], tmp_path: Path) -> None:
    asked = lensbridge.Harvest(
        model=str(folder("Llama")), data=TEXTS * 3, points=["resid_post"], batch=4
    )
    engine = lensbridge.engines.VLLM(llama)
    report = asked.run(tmp_path / "vllm", engine=engine)
    asked.run(tmp_path / "here")
    assert report.complete
    found, wanted = (lensbridge.Activations(tmp_path / one) for one in ("vllm", "here"))
    for name in wanted.points:
        assert near(torch.as_tensor(found[name][:]), torch.as_tensor(wanted[name][:]), 1e-4)
    with pytest.raises(InputError, match="another model"):
        lensbridge.Harvest(model="demo", data=TEXTS, points=["resid_post"]).run(
            tmp_path / "other", engine=engine
        )


def test_parts_and_the_logit_lens(llama: Any, oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights come over by name, and all at once for what reads the modules."""
    made = torch.nn.Module.to_empty

    def full_of_leftovers(module: torch.nn.Module, **where: Any) -> torch.nn.Module:
        made(module, **where)
        for parameter in module.parameters():
            parameter.fill_(3e38)  # as memory that something else was in
        return module

    monkeypatch.setattr(torch.nn.Module, "to_empty", full_of_leftovers)
    assert torch.equal(llama.blocks[1].attn.W_O, oracle.blocks[1].attn.W_O)
    for name in oracle.weight_names:
        assert torch.equal(llama.components.weights[name].read(), oracle.weight(name)), name
    found, wanted = (one.logit_lens(TEXTS[0], top_k=None).values for one in (llama, oracle))
    assert near(found, wanted)
    terms = []
    for one in (llama, oracle):
        _, cache = one.run_with_cache(TEXTS[0])
        terms.append(cache.logit_attrs(cache.decompose_resid(), " Paris"))
    assert near(*terms)


def test_what_cannot_be_done_is_refused(llama: Any) -> None:
    text = TEXTS[0]
    with pytest.raises(UnsupportedError, match="use an intervention"):
        llama.run_with_hooks(text, fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: x)])
    with pytest.raises(UnsupportedError, match="computes no gradients"):
        llama.run_with_cache(text, "z", incl_bwd=True, return_type="loss")
    with pytest.raises(UnsupportedError, match="start_at_layer"):
        llama(torch.randn(1, 3, 128), start_at_layer=1)
    with pytest.raises(UnsupportedError, match="values of other examples"):
        llama.run_with_interventions(TEXTS, Resample(("z", 0)))
    with pytest.raises(UnsupportedError, match="one by one"):
        llama.run_with_interventions(TEXTS, Noise(("z", 0), 1.0))
    with pytest.raises(EditError, match="hook_logits can be read but not edited"):
        llama.run_with_interventions(text, Zero("hook_logits"))
    with pytest.raises(InputError, match="2 entries, and there are 3 rows"):
        llama.run_with_cache(TEXTS, "z", interventions=[None, None])
    with pytest.raises(InputError, match="out of range"):
        llama.run_with_interventions(text, Zero(("z", 0), positions=50))
    with pytest.raises(ContextLengthError, match="128 positions"):
        llama(torch.ones(1, 128, dtype=torch.long))
    with pytest.raises(UnsupportedError, match="return_cache"):
        llama.generate(text, return_cache=True)
    with pytest.raises(UnsupportedError, match="piece by piece"):
        llama.stream(text)
    assert near(llama(text), llama(text))  # the engine lives


def test_settings_are_checked(folder: Callable[[str], Path], llama: Any) -> None:
    with pytest.raises(InputError, match=r"takes a vllm.LLM, not str"):
        lensbridge.load_vllm("gpt2")
    with pytest.raises(LoadError, match="device_map"):
        lensbridge.load(folder("Llama"), engine="vllm", device_map="auto")
    with pytest.raises(InputError, match="There is no engine 'vlm'"):
        lensbridge.load("demo", engine="vlm")
    for version in ("0.31.0", "0.33.1", "1.0.0+cpu"):
        with pytest.raises(UnsupportedError, match=r"from 0\.32 up to"):
            check_version(version)
    check_version("0.32.4+cpu")
    config = llama.llm.llm_engine.vllm_config
    kept, config.parallel_config.pipeline_parallel_size = 1, 2
    try:
        with pytest.raises(UnsupportedError, match="pipeline_parallel_size"):
            lensbridge.load_vllm(llama.llm)
    finally:
        config.parallel_config.pipeline_parallel_size = kept


def test_nothing_stays_on_the_model(llama: Any) -> None:
    """Without a run of ours no hook is on the model, and other requests are as they were."""
    from vllm import SamplingParams

    greedy = SamplingParams(max_tokens=4, temperature=0.0)
    before = llama.llm.generate(TEXTS, greedy, use_tqdm=False)
    llama.run_with_interventions(TEXTS, steering())
    after = llama.llm.generate(TEXTS, greedy, use_tqdm=False)
    assert [one.outputs[0].token_ids for one in after] == [
        one.outputs[0].token_ids for one in before
    ]
    worker = llama.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    core = worker.model_runner.get_model()
    assert not [one for one in core.modules() if one._forward_hooks or one._forward_pre_hooks]
    assert not worker._lensbridge_session.passes.records


def test_an_edit_that_fails_in_a_worker(llama: Any) -> None:
    """The engine goes on, and whoever asked is told."""
    session = llama.llm.llm_engine.engine_core.engine_core
    worker = session.model_executor.driver_worker.worker
    answer = worker.lensbridge_answer(json.dumps({"do": "weight", "name": "nothing"}))
    assert "There is no weight 'nothing'" in json.loads(answer[0])["error"][1]
    wrong = Replace(("resid_post", 0), torch.randn(1, 77))
    with pytest.raises(InputError):
        llama.run_with_interventions(TEXTS[0], wrong)
    assert torch.isfinite(llama(TEXTS[0])).all()


# The last test: vLLM forgets the `LLM` of this module when another one in the process ends.


def test_prompts_that_are_cut_and_shared(folder: Callable[[str], Path], oracle: Any) -> None:
    """Chunked prefill cuts prompts into pieces; prefix caching would skip what others computed."""
    lens = opened(
        folder("Llama"),
        enable_prefix_caching=True,
        max_num_batched_tokens=8,
        max_num_seqs=2,
        block_size=32,
    )
    text = " ".join(TEXTS * 2)
    edits: list[Any] = [(), steering(), Zero(("z", 0), positions=[3, 20, -1])]
    for _ in range(2):  # the second time, blocks of the first would be found
        for edit in edits:
            found, cache = lens.run_with_cache(text, "resid_post", interventions=edit)
            with oracle.intervene(edit) if edit else torch.no_grad():
                wanted, other = oracle.run_with_cache(text, "resid_post")
            assert near(found, wanted)
            assert near(cache["resid_post", 1], other["resid_post", 1])
