"""A model on a second device, or on two, gives what it gives on the CPU, bit for bit.

Values that are patched in come from the CPU or from the other device, and move by themselves: the
device refuses an operation on tensors of two devices, as a GPU does.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from described import of_class
from saes import Plain
from second_device.device import FIRST, SECOND, Elsewhere
from tiny_models import FAMILIES, Shape, build, tokens
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import lensbridge
from lensbridge import Experiment, LensModel, patching
from lensbridge.causal import attribution_patch
from lensbridge.errors import InputError
from lensbridge.experiments import KL, ExperimentResult, LogitDiff, Loss, Rank
from lensbridge.interventions import (
    Add,
    Apply,
    GatedSteer,
    NormPreservingSteer,
    Project,
    Replace,
    Steer,
    Swap,
    Zero,
    steering_vector,
)
from lensbridge.patching import Cell
from lensbridge.points.names import layer_of

IDS = tokens(2, 6)
OTHERS = tokens(2, 6, seed=8)
TOP = {"llama": "model", "mistral": "model", "qwen2": "model", "gpt2": "transformer"}
LAYERS = {"gpt2": "h"}


def total(logits: Tensor) -> Tensor:
    return logits.float()[:, -1, 3].mean()


def per_device(hf: Any, family: str, first: str, last: str) -> Any:
    """A model whose second layer and all behind it are on another device."""
    top = TOP.get(family, "gpt_neox")
    layers = f"{top}.{LAYERS.get(family, 'layers')}"
    names = {name for name, _ in hf.named_children()} - {top}
    names |= {f"{top}.{name}" for name, _ in getattr(hf, top).named_children()} - {layers}
    tied = hf.config.tie_word_embeddings  # accelerate keeps tied weights together
    behind = [name for name in names if name.rpartition(".")[2] in BEHIND[: 3 if tied else None]]
    places = {**dict.fromkeys(names, first), **dict.fromkeys(behind, last)}
    return dispatch_model(hf, {**places, f"{layers}.0": first, f"{layers}.1": last})


BEHIND = ("norm", "ln_f", "final_layer_norm", "lm_head", "embed_out")


@pytest.fixture(params=["one", "two", "with the CPU"])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["one", "with the CPU"])
def with_gradients(request: pytest.FixtureRequest) -> tuple[LensModel, LensModel]:
    """The same, where autograd works."""
    return lensbridge.load(small("llama")), elsewhere("llama", request.param)


@pytest.fixture(params=["gpt2", "llama"])
def pair(request: pytest.FixtureRequest, where: str) -> tuple[LensModel, LensModel]:
    """The same model on the CPU and elsewhere."""
    return lensbridge.load(small(request.param)), elsewhere(request.param, where)


def small(family: str) -> Any:
    return build(Shape(family, kernel="eager"))


def elsewhere(family: str, where: str) -> LensModel:
    if where == "one":
        return lensbridge.load(small(family).to(FIRST))
    last = SECOND if where == "two" else "cpu"
    return lensbridge.load(per_device(small(family), family, FIRST, last))


def same(found: Any, wanted: Any, what: str = "", rounds: bool = False) -> None:
    """Equal bit for bit, wherever they are.

    Args:
        found: from the model elsewhere.
        wanted: from the model on the CPU.
        what: for the message.
        rounds: whether it is an einsum, whose order of sums depends on the class of the tensors.
    """
    if rounds:
        torch.testing.assert_close(found.cpu(), wanted.cpu(), rtol=1e-5, atol=1e-6, msg=what)
    else:
        assert torch.equal(found.cpu(), wanted.cpu()), what


def places(model: LensModel) -> set[str]:
    """Where the weights lie; accelerate keeps those of the CPU on no device."""
    return {str(one.device) for one in model.parameters()} - {"meta"}


def test_the_device_refuses_what_a_gpu_refuses() -> None:
    here, there, far = torch.ones(2), torch.ones(2, device=FIRST), torch.ones(2, device=SECOND)
    assert isinstance(there, Elsewhere)
    assert (there + 1).device == torch.device(FIRST)
    for other in (here, far):
        with pytest.raises(RuntimeError, match="on two devices"):
            there * other
    there.copy_(here * 3)
    assert there.tolist() == [3, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_reads_the_same_bits_where_it_was_computed(family: str) -> None:
    here, away = lensbridge.load(small(family)), elsewhere(family, "two")
    assert places(away) == {FIRST, SECOND}
    with torch.no_grad():
        logits, wanted = here.run_with_cache(IDS, here.hook_names)
        found, cache = away.run_with_cache(IDS, here.hook_names)
        moved = away.run_with_cache(IDS, here.hook_names, device="cpu")[1]
    same(found, logits)
    for name in here.hook_names:
        same(cache[name], wanted[name], name, rounds=here.explain(name).derived)
        assert torch.equal(moved[name], cache[name].cpu()), name
        layer = layer_of(name)
        if layer is not None and name != "blocks.1.hook_resid_pre":  # which the first layer made
            assert str(cache[name].device) == (FIRST, SECOND)[layer], name


def test_the_fused_kernel_reads_the_same_bits() -> None:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        here, away = (lensbridge.load(build(Shape("llama")).to(one)) for one in ("cpu", FIRST))
        _, wanted = here.run_with_cache(IDS)
        _, cache = away.run_with_cache(IDS)
    for name in wanted:
        torch.testing.assert_close(cache[name].cpu(), wanted[name], msg=name)


def test_values_from_another_device_are_patched_in(pair: tuple[LensModel, LensModel]) -> None:
    here, away = pair
    with torch.no_grad():
        _, source = here.run_with_cache(OTHERS, here.hook_names)
        for name in here.hook_names:
            editable = here.explain(name).editable and source[name].is_floating_point()
            if layer_of(name) != 1 or not editable:
                continue

            def given(value: Tensor, hook: Any) -> Tensor:
                return source[hook.name]  # on the CPU

            def in_part(value: Tensor, hook: Any) -> None:
                value[:, 1:3] = source[hook.name][:, 1:3]

            for hook in (given, in_part):
                hooks = [(name, hook)]
                wanted = here.run_with_hooks(IDS, fwd_hooks=hooks)
                found = away.run_with_hooks(IDS, fwd_hooks=hooks)
                same(found, wanted, name, rounds=here.explain(name).derived)


def test_gradients_are_the_same(with_gradients: tuple[LensModel, LensModel]) -> None:
    pair = with_gradients
    how: dict[str, Any] = {"incl_bwd": True, "return_type": "loss"}
    asked = ["resid_pre", "pattern", "z", "mlp_out"]
    wanted, found = (model.run_with_cache(IDS, asked, **how)[1] for model in pair)
    assert len(found) == len(wanted)
    for name in wanted:
        torch.testing.assert_close(found[name].cpu(), wanted[name], rtol=1e-5, atol=1e-6, msg=name)
        assert found[name].device == found[name.removesuffix("_grad")].device
    assert all(one.grad is None for one in pair[1].parameters())


def test_interventions_bring_their_values_along(pair: tuple[LensModel, LensModel]) -> None:
    here, away = pair
    width = here.cfg.d_model
    vector = torch.randn(width, generator=torch.Generator().manual_seed(3))
    _, cache = here.run_with_cache(OTHERS, ("resid_post", 1))
    edits = [
        Steer(("resid_post", 0), vector=vector, strength=2.0, unit="norm"),
        Add(("mlp_out", 1), value=vector, positions=-1),
        Project(("resid_post", 1), subspace=vector),
        Replace(("resid_post", 1), value=cache["resid_post", 1][:, 2:3], positions=2),
    ]
    with torch.no_grad():
        for edit in edits:
            same(
                away.run_with_interventions(IDS, edit),
                here.run_with_interventions(IDS, edit),
                type(edit).__name__,
            )


def test_steering_vectors_of_the_cpu_steer(pair: tuple[LensModel, LensModel]) -> None:
    here, away = pair
    for layer in (0, 1):
        wanted = steering_vector(here, IDS, OTHERS, ("resid_post", layer))
        found = steering_vector(away, IDS, OTHERS, ("resid_post", layer))
        same(found.vector, wanted.vector)
        same(
            away.run_with_interventions(IDS, wanted),  # made from activations on the CPU
            here.run_with_interventions(IDS, wanted),
        )


def test_interchange_between_caches(pair: tuple[LensModel, LensModel]) -> None:
    wanted, found = (model.interchange(IDS, OTHERS, ("resid_post", 0), 2, 4) for model in pair)
    same(found, wanted)


def test_saes_stay_where_they_are(pair: tuple[LensModel, LensModel]) -> None:
    here, away = pair
    saes: Any = {f"blocks.{i}.hook_resid_post": Plain(here.cfg.d_model) for i in range(2)}
    asked = ["*hook_sae_acts_post", "resid_post"]
    with torch.no_grad(), here.saes(saes), away.saes(saes):
        logits, wanted = here.run_with_cache(IDS, asked)
        found, cache = away.run_with_cache(IDS, asked)
    same(found, logits)
    for name in wanted:
        same(cache[name], wanted[name], name)


PATCHES: dict[str, Callable[..., Any]] = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "head z": patching.get_act_patch_attn_head_out_all_pos,
    "pattern": patching.get_act_patch_attn_head_pattern_all_pos,
}


@pytest.mark.parametrize("point", PATCHES)
def test_sweeps_with_a_cache_of_the_cpu(pair: tuple[LensModel, LensModel], point: str) -> None:
    _, clean = pair[0].run_with_cache(OTHERS)
    wanted, found = (PATCHES[point](model, IDS, clean, total) for model in pair)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=1e-6)


def test_sweeps_of_cells(pair: tuple[LensModel, LensModel]) -> None:
    value = torch.randn(pair[0].cfg.d_model, generator=torch.Generator().manual_seed(1))
    every = slice(None)
    cells = [Cell(("resid_pre", layer), (every, at), value) for layer in (0, 1) for at in range(6)]
    wanted, found = (model.sweep(IDS, cells, total) for model in pair)
    torch.testing.assert_close(found.values.cpu(), wanted.values, rtol=1e-5, atol=1e-6)


def test_rows_functions_and_masks(pair: tuple[LensModel, LensModel]) -> None:
    mask = torch.zeros(2, 6).bool()
    mask[0, 1] = mask[1, 4] = True
    site, vector = ("resid_post", 0), torch.linspace(-1, 1, pair[0].cfg.d_model)
    several = [
        Zero(("z", 1), examples=[1]),
        Swap(site, examples=[1], partners=[0], positions=2, source_positions=3),
        Swap(site, partners=[1, 1]),
        Zero(site, positions=mask),
        Apply(site, torch.tanh, positions=mask),
        NormPreservingSteer(site, vector, 2.0),
        GatedSteer(site, vector, gate=vector),
        Replace(site, vector, examples=0, positions=[[1]]),
    ]
    for one in several:
        wanted, found = (model.run_with_interventions(IDS, one) for model in pair)
        same(found, wanted, repr(one), rounds=True)
    for positions in (mask, [[1, 2], [3, 4]], "last"):
        wanted, found = (model.states_at(IDS, "resid_post", positions) for model in pair)
        same(found, wanted, repr(positions))


def test_sweeps_of_several_edits(pair: tuple[LensModel, LensModel]) -> None:
    cells: list[Any] = [
        [Zero(("mlp_out", 0), positions=i), Zero(("z", 1), heads=0)] for i in range(6)
    ]
    cells.append([Apply(("mlp_out", 0), torch.tanh), Apply(("resid_post", 1), torch.tanh)])
    wanted, found = (model.sweep(IDS, cells, total) for model in pair)
    same(found.values, wanted.values, rounds=True)


def test_attribution_patching(with_gradients: tuple[LensModel, LensModel]) -> None:
    wanted, found = (attribution_patch(model, IDS, OTHERS, total) for model in with_gradients)
    assert found.node_scores.keys() == wanted.node_scores.keys()
    for node, score in wanted.node_scores.items():
        assert float(found.node_scores[node]) == pytest.approx(float(score), rel=1e-5, abs=1e-7)


def test_experiments_and_their_metrics(pair: tuple[LensModel, LensModel]) -> None:
    here, there = pair
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    given = {"input_ids": IDS, "attention_mask": mask}
    clean = here(given).detach()
    metrics = {
        "difference": LogitDiff([3, 4], 5),
        "rank": Rank(3, position=[-1, 0]),
        "kl": KL(),
        "all": KL(clean, position=None),
        "loss": Loss(),
    }
    asked = Experiment(
        given,
        points=["resid_post"],
        interventions=[Steer(("resid_post", 0), torch.ones(here.cfg.d_model))],
        metric={name: one.reduced("none") for name, one in metrics.items()},
        sweep=[Zero(("z", 0), heads=0), [Zero(("z", 1)), Zero(("mlp_out", 0))]],
        pos_slice=-1,
    )
    wanted, found = here.run(asked), there.run(asked)
    for name, value in wanted.metrics.items():
        same(found.metrics[name], value, name, rounds=True)
    assert wanted.sweep is not None
    assert found.sweep is not None
    assert wanted.cache is not None
    assert found.cache is not None
    same(found.sweep.values, wanted.sweep.values, rounds=True)
    for name in wanted.cache:
        same(found.cache[name], wanted.cache[name], name)
    read = ExperimentResult.from_bytes(found.to_bytes())
    assert read.logits is not None
    same(read.logits, wanted.logits)


def test_scores_of_answers(pair: tuple[LensModel, LensModel]) -> None:
    answers = [[3, 4, 5], [6]]
    wanted, found = (one.answer_logprobs(IDS, answers) for one in pair)
    same(found, wanted, rounds=True)


def test_integrated_gradients(with_gradients: tuple[LensModel, LensModel]) -> None:
    wanted, found = (
        one.integrated_gradients(IDS, LogitDiff(3, 4), baseline=OTHERS, steps=2)
        for one in with_gradients
    )
    same(found.values, wanted.values, rounds=True)
    both = [one.gradients(IDS, ["resid_pre"], [LogitDiff(3, 4), "loss"]) for one in with_gradients]
    for left, right in zip(*both, strict=True):
        same(right.gradients["resid_pre", 0], left.gradients["resid_pre", 0], rounds=True)


def test_the_lens_reads_every_layer(pair: tuple[LensModel, LensModel]) -> None:
    wanted, found = (model.logit_lens(IDS) for model in pair)
    torch.testing.assert_close(found.values.cpu(), wanted.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_cache_of_two_devices_is_stacked(family: str) -> None:
    models = lensbridge.load(small(family)), elsewhere(family, "two")
    caches = [model.run_with_cache(IDS)[1] for model in models]
    wanted, found = (cache.accumulated_resid(layer=-1, apply_ln=True) for cache in caches)
    torch.testing.assert_close(found.cpu(), wanted)
    wanted, found = (cache.stack_head_results(layer=2) for cache in caches)
    torch.testing.assert_close(found.cpu(), wanted)


# --- plans --------------------------------------------------------------------------------------


def test_a_plan_tells_the_devices_apart(pair: tuple[LensModel, LensModel]) -> None:
    _, away = pair
    _, cache = away.run_with_cache(IDS, ["resid_post", "q"])
    plan = away.plan(IDS, ["resid_post", "q"])
    wanted: dict[str, int] = {}
    for name, tensor in cache.items():
        place = str(tensor.device)
        assert plan.values[name].device == place
        wanted[place] = wanted.get(place, 0) + tensor.nbytes
    assert plan.by_device == wanted
    assert set(plan.peak) >= places(away)
    assert set(plan.weights) >= places(away)


def test_a_limit_suggests_the_host() -> None:
    model = elsewhere("gpt2", "two")
    with pytest.raises(InputError, match="It fits with device='cpu'"):
        model.run_with_cache(IDS, "resid_post", max_bytes=100)
    _, cache = model.run_with_cache(IDS, "resid_post", max_bytes=100, device="cpu")
    assert {str(one.device) for one in cache.values()} == {"cpu"}


@pytest.mark.parametrize("name", ["MixtralForCausalLM", "T5ForConditionalGeneration"])
def test_experts_and_decoders_run_there(name: str) -> None:
    here = of_class(name)
    away = lensbridge.load(type(here.hf_model)(here.hf_model.config))
    away.hf_model.load_state_dict(here.hf_model.state_dict())
    away.hf_model.eval().to(FIRST)
    more = {"decoder_input_ids": OTHERS} if here.native.is_encoder_decoder else {}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        _, wanted = here.run_with_cache(IDS, **more)
        _, found = away.run_with_cache(IDS, **more)
    for point in wanted:
        torch.testing.assert_close(found[point].cpu(), wanted[point], msg=point)
