"""Models whose weights lie on disk, or under an adapter, read and act like the plain model."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, Shape, build, tokens
from torch import Tensor

import lensbridge
from lensbridge import patching
from lensbridge.causal import attribution_patch
from lensbridge.errors import WeightError
from lensbridge.interventions import Add

IDS = tokens(2, 5)
WEIGHTS = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "b_Q", "b_K", "b_V", "b_O", "b_in", "b_out")

LLAMA = ("model.norm", "model.layers", "model.embed_tokens", "model.rotary_emb", "lm_head")
GPT2 = (*(f"transformer.{name}" for name in ("ln_f", "h", "wte", "wpe", "drop")), "lm_head")
PARTS = ("final_layer_norm", "layers", "embed_in", "rotary_emb", "emb_dropout")
NEOX = (*(f"gpt_neox.{name}" for name in PARTS), "lm_head")
TOP = {"gpt2": GPT2, "neox": NEOX, "neox_sequential": NEOX}


@dataclass(frozen=True)
class Pair:
    """One saved model, in memory and with its last layer and norm on disk."""

    here: lensbridge.LensModel
    away: lensbridge.LensModel

    def on_disk(self) -> list[str]:
        return [name for name, p in self.away.hf_model.named_parameters() if p.is_meta]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    build(Shape(family)).save_pretrained(folder / "model")
    norm, layers, *others = TOP.get(family, LLAMA)
    places: dict[str, Any] = dict.fromkeys([*others, f"{layers}.0"], "cpu")
    places |= {f"{layers}.1": "disk", norm: "disk"}
    away = lensbridge.load(
        folder / "model", device_map=places, offload_folder=str(folder / "offload")
    )
    found = Pair(lensbridge.load(folder / "model"), away)
    parts = [found.away.native.blocks[1].module, found.away.native.ln_final.module]
    assert len(found.on_disk()) == sum(len([*part.parameters()]) for part in parts)
    return found


@pytest.fixture(autouse=True)
def stays_on_disk(request: pytest.FixtureRequest) -> Any:
    """Whatever a test does, what was on disk is there again afterwards."""
    if "pair" not in request.fixturenames:
        yield
        return
    pair = request.getfixturevalue("pair")
    before = pair.on_disk()
    yield
    assert pair.on_disk() == before


def test_every_point_reads_the_same_bits(pair: Pair) -> None:
    names = pair.here.hook_names
    assert pair.away.hook_names == names
    with torch.no_grad():
        logits, here = pair.here.run_with_cache(IDS, names_filter=names)
        found, away = pair.away.run_with_cache(IDS, names_filter=names)
        assert torch.equal(found, logits)
        assert torch.equal(pair.away.hf_model(IDS).logits, logits)
    for name in names:
        assert torch.equal(away[name], here[name]), name


def test_gradients_are_the_same(pair: Pair) -> None:
    calls = {"names_filter": ["resid_pre", "pattern", "mlp_out"], "incl_bwd": True}
    _, here = pair.here.run_with_cache(IDS, return_type="loss", **calls)
    _, away = pair.away.run_with_cache(IDS, return_type="loss", **calls)
    assert len(here) == len(away)
    for name in here:
        torch.testing.assert_close(away[name], here[name], rtol=1e-5, atol=1e-6, msg=name)


def test_edits_at_every_point_act_the_same(pair: Pair) -> None:
    def half(value: Tensor, hook: Any) -> Tensor:
        return value * 0.5

    with torch.no_grad():
        plain = pair.here(IDS)
        for name in (one for one in pair.here.hook_names if not one.startswith("blocks.0")):
            wanted = pair.here.run_with_hooks(IDS, fwd_hooks=[(name, half)])
            found = pair.away.run_with_hooks(IDS, fwd_hooks=[(name, half)])
            assert torch.equal(found, wanted), name
            assert not torch.equal(found, plain), name
            assert pair.on_disk(), name
        assert torch.equal(pair.away(IDS), plain)


@pytest.mark.parametrize("point", ["resid_pre", "z", "result", "q_input", "pattern"])
def test_patches_act_the_same(pair: Pair, point: str) -> None:
    with torch.no_grad():
        _, other = pair.here.run_with_cache(tokens(2, 5, seed=8), names_filter=point)
        for layer in range(2):

            def patch(value: Tensor, hook: Any) -> None:
                value[:, 2] = other[hook.name][:, 2]

            hooks = [((point, layer), patch)]
            wanted = pair.here.run_with_hooks(IDS, fwd_hooks=hooks)
            assert torch.equal(pair.away.run_with_hooks(IDS, fwd_hooks=hooks), wanted)


def test_weights_are_fetched(pair: Pair) -> None:
    gated = pair.here.cfg.gated_mlp
    for name in (*WEIGHTS, "W_K_expanded", *(["W_gate", "b_gate"] if gated else [])):
        assert torch.equal(getattr(pair.away, name), getattr(pair.here, name)), name
        assert torch.equal(getattr(pair.away, name)[1], getattr(pair.here, name)[1]), name
    for name in pair.here.weight_names:
        assert torch.equal(pair.away.weight(name), pair.here.weight(name)), name
    assert pair.away.weight_state("blocks.1.attn.W_Q") == "offloaded"
    assert pair.away.weight_state("ln_final.w") == "offloaded"
    assert pair.away.weight_state("blocks.0.attn.W_Q") == "plain"


def test_writing_to_a_fetched_weight_is_refused(pair: Pair) -> None:
    for index in (1, (1, 0)):
        with pytest.raises(WeightError, match="is a copy"):
            pair.away.W_Q[index] = 0.0
    before = pair.away.W_Q[0].clone()
    pair.away.W_Q[0] = before + 1
    assert torch.equal(pair.away.W_Q[0], before + 1)
    pair.away.W_Q[0] = before


def test_late_starts_and_early_stops_leave_weights_where_they_are(pair: Pair) -> None:
    with torch.no_grad():
        _, cache = pair.here.run_with_cache(IDS)
        before = pair.on_disk()
        for start in (None, 1, 2):
            given = IDS if start is None else cache["resid_post", start - 1]
            for stop in (None, *range((start or 0) + 1, 3)):
                span = {"start_at_layer": start, "stop_at_layer": stop}
                assert torch.equal(pair.away(given, **span), pair.here(given, **span)), span
                assert pair.on_disk() == before, span
        assert torch.equal(pair.away.blocks[1](given), pair.here.blocks[1](given))


def test_an_exception_in_a_hook_leaves_weights_where_they_are(pair: Pair) -> None:
    def fail(value: Tensor, hook: Any) -> None:
        raise RuntimeError("on purpose")

    before, wanted = pair.on_disk(), pair.here(IDS)
    for name in (one for one in pair.away.hook_names if not one.startswith("blocks.0")):
        with pytest.raises(RuntimeError, match="on purpose"):
            pair.away.run_with_hooks(IDS, fwd_hooks=[(name, fail)])
        assert pair.on_disk() == before, name
    assert torch.equal(pair.away(IDS), wanted)


def test_generation_is_the_same(pair: Pair) -> None:
    calls = {"max_new_tokens": 4, "do_sample": False, "verbose": False}
    assert torch.equal(pair.away.generate(IDS, **calls), pair.here.generate(IDS, **calls))
    hooks = [(("z", 1), lambda value, hook: value * -1)]
    with pair.here.hooks(hooks), pair.away.hooks(hooks):
        assert torch.equal(pair.away.generate(IDS, **calls), pair.here.generate(IDS, **calls))


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_puts_what_does_not_fit_on_disk(family: str, tmp_path: Path) -> None:
    hf = build(Shape(family, layers=3))
    hf.save_pretrained(tmp_path / "model")
    size = sum(p.nbytes for p in hf.parameters())
    here = lensbridge.load(tmp_path / "model", device_map="auto")
    away = lensbridge.load(
        tmp_path / "model",
        device_map="auto",
        max_memory={"cpu": int(size * 0.75)},
        offload_folder=str(tmp_path / "offload"),
    )
    assert not any(p.is_meta for p in here.parameters())
    assert away.native.ln_final.module.weight.is_meta
    with torch.no_grad():
        logits, cache = away.run_with_cache(IDS, names_filter=away.hook_names)
        _, wanted = here.run_with_cache(IDS, names_filter=here.hook_names)
    assert torch.equal(logits, hf(IDS).logits)
    assert all(torch.equal(cache[name], wanted[name]) for name in here.hook_names)
    assert torch.equal(away.W_U, here.W_U)
    assert torch.equal(away.ln_final.w, here.ln_final.w)
    assert away.native.ln_final.module.weight.is_meta


# --- random maps -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """A model in memory, and the same one with each part in memory or on disk."""

    here: lensbridge.LensModel
    away: lensbridge.LensModel
    places: dict[str, str]

    def left(self) -> dict[str, Any]:
        """What must be the same whatever was done."""
        hf = self.away.hf_model
        held = [*hf.named_parameters(), *hf.named_buffers()]
        return {
            "on disk": [name for name, one in held if one.is_meta],
            "weights": {name: (one.is_meta or id(one), one.device, one.grad) for name, one in held},
            "hooks": [id(one.__dict__.get("_hf_hook")) for one in hf.modules()],
            "attributes": [sorted(vars(one)) for one in hf.modules()],
        }


MAPPED = ("gpt2", "llama", "tied llama", "mistral", "neox")


def whole(family: str) -> Any:
    """A small model; the embeddings of gpt2 are tied, those of llama if that is said."""
    hf = build(Shape(family.removeprefix("tied "), layers=3))
    if family.startswith("tied"):
        hf.lm_head.weight = hf.model.embed_tokens.weight
        hf.config.tie_word_embeddings = True
    return hf


@st.composite
def maps(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    """A family, and a place for each of its parts."""
    family = draw(st.sampled_from(MAPPED))
    hf = whole(family)
    top = TOP.get(family.removeprefix("tied "), LLAMA)
    layers = top[1]
    parts = [*(name for name in top if name != layers), *(f"{layers}.{i}" for i in range(3))]
    parts = [name for name in parts if has(hf, name)]
    places = {name: draw(st.sampled_from(["cpu", "disk"])) for name in parts}
    places[f"{layers}.{draw(st.integers(0, 2))}"] = "disk"
    return family, places


def placed(family: str, places: dict[str, str], folder: Path) -> Placed:
    """The model in memory, and dispatched."""
    offload = mkdtemp(dir=folder)
    away = dispatch_model(whole(family), places, main_device="cpu", offload_dir=offload)
    with torch.no_grad():
        away(IDS)  # accelerate puts a tied weight on disk only after the first run
    return Placed(lensbridge.load(whole(family)), lensbridge.load(away), places)


def has(hf: Any, name: str) -> bool:
    return any(name == path for path, _ in hf.named_modules())


def total(logits: Tensor) -> Tensor:
    return logits[:, -1, 3].mean()


def everything(model: lensbridge.LensModel) -> dict[str, Any]:
    """What a model gives to everything that runs it, as tensors by name."""
    ids, other = IDS, tokens(2, 5, seed=8)
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids, model.hook_names)
    how: dict[str, Any] = {"incl_bwd": True, "return_type": "loss"}
    _, grads = model.run_with_cache(ids, ["resid_pre", "pattern", "z", "mlp_out"], **how)
    _, clean = model.run_with_cache(other)
    swept = patching.get_act_patch_resid_pre(model, ids, clean, total)
    _, found = model.gradients(ids, ["resid_post"], total)
    scores = attribution_patch(model, ids, other, total).node_scores
    lens = model.logit_lens(ids).values
    steered = model.run_with_interventions(ids, Add(("resid_post", 1), value=clean["z", 0].sum()))
    return {
        "logits": logits,
        **cache,
        **{name: grads[name] for name in grads if name.endswith("_grad")},
        "sweep": swept,
        **{f"gradient of {name}": found[name] for name in found},
        **{f"score of {node}": score for node, score in scores.items()},
        "lens": lens,
        "steered": steered,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offload")


@settings(max_examples=2)
@given(drawn=maps())
def test_random_maps_change_no_bit_and_leave_weights_where_they_are(
    drawn: Any, folder: Path
) -> None:
    both = placed(*drawn, folder)
    before = both.left()
    assert before["on disk"]
    wanted, found = everything(both.here), everything(both.away)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        one, other = torch.as_tensor(found[name]), torch.as_tensor(value)
        assert torch.equal(one, other), (name, both.places)
    assert both.left() == before


@settings(max_examples=1)
@given(drawn=maps())
def test_a_plan_of_an_offloaded_model_is_that_of_the_model(drawn: Any, folder: Path) -> None:
    both = placed(*drawn, folder)
    before = both.left()
    for how in ({}, {"incl_bwd": True, "return_type": "loss"}):
        wanted, found = (one.plan((2, 5), **how) for one in (both.here, both.away))
        assert found.bytes == wanted.bytes
        assert found.by_device == wanted.by_device
        _, cache = both.away.run_with_cache(IDS, **how)
        assert found.total == cache.nbytes
    assert found.weights["offloaded"] > 0
    assert found.runs_on == {"cpu"}
    assert both.left() == before


# --- adapters ----------------------------------------------------------------------------------

TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "v_proj", "o_proj", "down_proj"],
    "neox": ["query_key_value", "dense", "dense_h_to_4h"],
}
each_adapted = pytest.mark.parametrize("family", TARGETS)


def adapted(family: str, dropout: float = 0.1) -> Any:
    """A LoRA-wrapped model whose adapter does something."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=3,
        lora_alpha=6,
        lora_dropout=dropout,
        target_modules=TARGETS[family],
        fan_in_fan_out=family == "gpt2",
    )
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # peft reads a name that transformers retires
        model = get_peft_model(build(Shape(family)), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3)
    return model.eval()


@each_adapted
def test_an_adapted_model_reads_the_same_bits_as_bare(family: str) -> None:
    peft = adapted(family)
    model = lensbridge.load(peft)
    assert model.hf_model is peft
    with torch.no_grad():
        wanted = peft(IDS).logits
        logits, cache = model.run_with_cache(IDS, names_filter=model.hook_names)
        assert torch.equal(logits, wanted)
        assert torch.equal(model(IDS), wanted)
        assert not torch.equal(lensbridge.load(build(Shape(family)))(IDS), wanted)
        merged = lensbridge.load(adapted(family).merge_and_unload())
        _, plain = merged.run_with_cache(IDS, names_filter=merged.hook_names)
    for name in model.hook_names:
        torch.testing.assert_close(cache[name], plain[name], rtol=1e-4, atol=1e-5, msg=name)


@each_adapted
def test_weights_are_effective(family: str) -> None:
    model = lensbridge.load(adapted(family))
    merged = lensbridge.load(adapted(family).merge_and_unload())
    base = lensbridge.load(build(Shape(family)))
    for mode in (model.hf_model.eval, model.hf_model.train):
        mode()
        for name in WEIGHTS:
            found, wanted = getattr(model, name).full(), getattr(merged, name).full()
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=name)
    assert not torch.allclose(model.W_Q.full(), base.W_Q.full(), atol=1e-2)
    assert {model.weight_state(f"blocks.0.attn.W_{role}") for role in "QV"} == {"adapted"}
    with pytest.raises(WeightError, match="is a copy"):
        model.W_Q[0] = 0.0
    with model.hf_model.disable_adapter():
        torch.testing.assert_close(model.W_Q.full(), base.W_Q.full(), rtol=1e-5, atol=1e-5)


@each_adapted
@pytest.mark.parametrize(
    "point", ["attn.hook_z", "attn.hook_result", "hook_q_input", "ln1.hook_scale"]
)
def test_edits_on_an_adapted_model_act_as_on_the_merged_one(family: str, point: str) -> None:
    model = lensbridge.load(adapted(family))
    merged = lensbridge.load(adapted(family).merge_and_unload())
    hooks = [(f"blocks.1.{point}", lambda x, hook: x.cumsum(-1) / 2)]
    with torch.no_grad():
        found = model.run_with_hooks(IDS, fwd_hooks=hooks)
        wanted = merged.run_with_hooks(IDS, fwd_hooks=hooks)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, model(IDS), atol=1e-3)


@each_adapted
def test_the_adapter_keeps_training(family: str) -> None:
    peft = adapted(family, dropout=0.0).train()
    model = lensbridge.load(peft)
    torch.manual_seed(5)
    peft(input_ids=IDS, labels=IDS).loss.backward()
    trained = {n: p.grad for n, p in peft.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    peft.zero_grad()
    torch.manual_seed(5)
    model(IDS, return_type="loss").backward()
    for name, parameter in peft.named_parameters():
        if name in trained:
            torch.testing.assert_close(parameter.grad, trained[name], rtol=1e-4, atol=1e-6)
            assert parameter.grad.abs().sum() > 0
        else:
            assert parameter.grad is None
    peft.zero_grad()
    peft.eval()
    hooks = [(("z", 0), lambda value, hook: value * 0.5)]
    model.run_with_hooks(IDS, fwd_hooks=hooks, return_type="loss").backward()
    assert all(p.grad is not None for p in peft.parameters() if p.requires_grad)


@each_adapted
def test_an_adapted_model_generates(family: str) -> None:
    peft = adapted(family)
    model = lensbridge.load(peft)
    calls = {"max_new_tokens": 4, "do_sample": False}
    wanted = peft.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **calls)
    assert torch.equal(model.generate(IDS, verbose=False, **calls), wanted)


@each_adapted
def test_hooks_know_their_step_and_positions_on_an_adapted_model(family: str) -> None:
    model, steps, positions = lensbridge.load(adapted(family)), [], []

    def look(value: Tensor, hook: Any) -> None:
        steps.append((hook.step, hook.phase))
        positions.append(hook.positions[0].tolist())

    with model.hooks([(("resid_pre", 0), look)]):
        model.generate(IDS, max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False)
    assert steps == [(0, "prefill"), (1, "decode"), (2, "decode")]
    assert positions == [[0, 1, 2, 3, 4], [5], [6]]


@each_adapted
def test_an_adapter_folder_loads_with_its_base(family: str, tmp_path: Path) -> None:
    build(Shape(family)).save_pretrained(tmp_path / "base")
    peft = adapted(family)
    peft.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    peft.save_pretrained(tmp_path / "adapter")
    model = lensbridge.load(tmp_path / "adapter")
    assert model.weight_state("blocks.0.attn.W_Q") == "adapted"
    assert torch.equal(model(IDS), peft(IDS).logits)
