"""Sweeps: cells run in batches give what they give one by one, and bare models the same."""

from typing import Any

import pytest
import torch
from described import of_class
from raw_patching import run_changing
from tiny_models import Layer, Shape, build, left_padded, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge import LensModel
from lensbridge import patching as P
from lensbridge.errors import InputError, UnknownPointError
from lensbridge.inputs.random import inputs_for
from lensbridge.patching import Cell

pytestmark = pytest.mark.usefixtures("one_thread")
family = of_class


def metric(logits: Tensor) -> Tensor:
    """Reads every position and is not linear."""
    return logits.pow(2).mean((1, 2))


ALL = slice(None)


def cells_of(model: LensModel, generator: torch.Generator) -> list[Cell]:
    """Cells at points of every kind and layer: zeros, numbers and random values."""
    prefix = model.native.main.prefix
    found: list[Cell] = []
    for layer in reversed(range(len(model.native.blocks))):
        d_model = model.cfg.d_model
        value = torch.randn(d_model, generator=generator)
        found.append(Cell(f"{prefix}.{layer}.hook_resid_pre", (ALL, 2), value))
        for point, index in (
            ("hook_attn_out", (ALL, 1)),
            ("hook_mixer_out", (ALL, 3)),
            ("hook_mlp_out", (0, -1)),
            ("attn.hook_z", (ALL, ALL, 1)),
            ("attn.hook_pattern", (ALL, 2, 3)),
            ("attn.hook_result", (ALL, -1, 0)),
            ("hook_resid_post", (ALL, 0)),
        ):
            if f"{prefix}.{layer}.{point}" in model.vocabulary.index:
                found.append(Cell(f"{prefix}.{layer}.{point}", index, 0.25))
    return found


BATCHED = [
    "GPT2LMHeadModel",
    "Gemma2ForCausalLM",
    "GraniteForCausalLM",
    "MixtralForCausalLM",
    "GptOssForCausalLM",
    "DeepseekV3ForCausalLM",
    "BertForMaskedLM",
    "BloomForCausalLM",
    "JambaForCausalLM",
    "FalconH1ForCausalLM",
    "Qwen3NextForCausalLM",
    "MambaForCausalLM",
]
SINGLE = {
    "T5ForConditionalGeneration": "an encoder-decoder cannot start at a layer",
    "AlbertForMaskedLM": "its layers share modules",
    "Gemma4ForCausalLM": "starting at layer",
}


@pytest.mark.parametrize("name", [*BATCHED, *SINGLE])
def test_batches_give_what_runs_one_by_one_give(name: str) -> None:
    model = family(name)
    given: Any = inputs_for(model.hf_model, batch=2, length=6)
    given = given if len(given) > 1 else given["input_ids"]
    cells = cells_of(model, torch.Generator().manual_seed(0))
    one, many = (
        model.sweep(given, cells, metric, reduce="none", baseline=True, exact=exact)
        for exact in (True, None)
    )
    assert one.engine == "one by one: asked for"
    assert many.engine.startswith(f"one by one: {SINGLE[name]}" if name in SINGLE else "batched")
    assert many.values.shape == (len(cells), 2)
    torch.testing.assert_close(many.values, one.values, rtol=5e-6, atol=1e-6)
    assert (one.effect().abs().amax(-1) > 1e-5).float().mean() > 0.9
    if name in SINGLE:
        with pytest.raises(InputError, match="Pass exact=True"):
            model.sweep(given, cells, metric, reduce="none", exact=False)


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_sweeps_of_padded_batches_against_the_bare_model(name: str) -> None:
    shape = Shape(name, layers=3, dtype=torch.float64)
    model, bare = lensbridge.load(build(shape)), build(shape)
    ids, mask = left_padded(3, 6)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    places = [(layer, pos) for layer in range(3) for pos in range(6)]
    cells = [Cell(("mlp_out", layer), (ALL, pos), 0.5) for layer, pos in places]
    given = {"input_ids": ids, "attention_mask": mask}
    found = model.sweep(given, cells, lambda x: x[:, -1].sum(-1), reduce="none", exact=False)
    assert found.engine == "batched"
    for i, (layer, pos) in enumerate(places):

        def half(whole: Tensor, pos: int = pos) -> Tensor:
            changed = whole.clone()
            changed[:, pos] = 0.5
            return changed

        change = (Layer(bare, name, layer).mlp, "output", half)
        extra = {"position_ids": positions} if name == "gpt2" else {}
        logits = run_changing(bare, [change], ids, attention_mask=mask, **extra)
        torch.testing.assert_close(found[i], logits[:, -1].sum(-1), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("max_batch_tokens", [8, 15, 16, 40, 4096, None])
def test_the_size_of_batches_changes_nothing(max_batch_tokens: int | None) -> None:
    model = lensbridge.load(build(Shape("llama", dtype=torch.float64)))
    ids, seen = tokens(2, 4), []
    cells = [Cell(("z", layer), (ALL, pos), 0.0) for layer in range(2) for pos in range(4)]
    handle = model.hf_model.lm_head.register_forward_hook(  # type: ignore[union-attr]
        lambda _, args, out: seen.append(out.shape[0] * out.shape[1])
    )
    found = model.sweep(ids, cells, metric, reduce="none", max_batch_tokens=max_batch_tokens)
    handle.remove()
    wanted = model.sweep(ids, cells, metric, reduce="none", exact=True)
    torch.testing.assert_close(found.values, wanted.values)
    assert max(seen) <= (max_batch_tokens or 4096)


def test_cells_of_a_late_layer_cost_no_early_ones() -> None:
    model = lensbridge.load(build(Shape("gpt2", layers=3)))
    seen = [0, 0, 0]

    def count(i: int) -> Any:
        def hook(_: nn.Module, args: Any, out: Tensor) -> None:
            seen[i] += out.shape[0] * out.shape[1]

        return hook

    for i, block in enumerate(model.hf_model.transformer.h):  # type: ignore[union-attr,arg-type]
        block.mlp.register_forward_hook(count(i))
    cells = [Cell(("attn_out", 2), (ALL, pos), 0.0) for pos in range(5)]
    model.sweep(tokens(1, 5), cells, metric, reduce="mean")
    assert seen[0] <= 3 * 5  # one by one it would be 6 * 5


def test_cells_come_out_in_the_order_in_which_they_were_given() -> None:
    model = lensbridge.load(build(Shape("gpt2", layers=3, dtype=torch.float64)))
    ids = tokens(1, 5)
    cells = [Cell(("resid_pre", layer), (ALL, 1), float(layer)) for layer in (2, 0, 1, 2, 0)]
    found = model.sweep(ids, cells, {"a": metric, "b": lambda x: x.amax((1, 2))}, reduce="none")
    assert found.values.shape == (2, 5, 1)
    assert torch.equal(found["a"][0], found["a"][3])
    for i, cell in enumerate(cells):
        alone = model.sweep(ids, [cell], metric, reduce="none", exact=True)
        torch.testing.assert_close(found["a"][i], alone[0])


def test_setters_see_their_own_rows() -> None:
    model = lensbridge.load(build(Shape("gpt2", dtype=torch.float64)))
    ids = tokens(3, 4)
    _, cache_ = model.run_with_cache(ids)

    def swap(activation: Tensor, index: int, value: Tensor) -> Tensor:
        assert activation.shape == value.shape  # the batch of the input, not that of the sweep
        torch.testing.assert_close(activation, value)
        return activation.roll(index, 0)

    cells = [Cell(("attn_out", 1), i, cache_["attn_out", 1], swap) for i in (0, 1, 2)]
    found = model.sweep(ids, cells, metric, reduce="none", baseline=True)
    assert found.engine == "batched"
    torch.testing.assert_close(found[0], found.baseline)
    assert (found.effect()[1:].abs() > 1e-6).all()


def test_hooks_that_are_on_act_in_every_cell() -> None:
    model = lensbridge.load(build(Shape("gpt2", dtype=torch.float64)))
    ids = tokens(1, 4)
    cells = [Cell(("mlp_out", 1), (ALL, pos), 0.0) for pos in range(4)]
    with model.hooks([("blocks.0.hook_mlp_out", lambda x, hook: x * 2)]):
        found = model.sweep(ids, cells, metric, reduce="mean")
    assert found.engine.startswith("one by one: other hooks are on the model")
    both = [("blocks.0.hook_mlp_out", lambda x, hook: x * 2)]
    for i, cell in enumerate(cells):
        logits = model.run_with_hooks(
            ids, [*both, ("blocks.1.hook_mlp_out", lambda x, hook, c=cell: c.apply(x))]
        )
        torch.testing.assert_close(found[i], metric(logits).mean())


def test_a_model_that_is_not_the_same_in_batches_is_found_out() -> None:
    native = build(Shape("gpt2", dtype=torch.float64))
    native.transformer.h[1].mlp.c_proj.register_forward_hook(lambda _, args, out: out * len(out))
    model = lensbridge.load(native)
    ids = tokens(1, 4)
    cells = [Cell(("mlp_out", layer), (ALL, 1), 0.0) for layer in (0, 1)]
    found = model.sweep(ids, cells, metric, reduce="mean")
    assert "gives other logits" in found.engine
    exact = model.sweep(ids, cells, metric, reduce="mean", exact=True)
    torch.testing.assert_close(found.values, exact.values)


def test_refusals() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    ids = tokens(2, 4)

    def run(*cells: Cell) -> Any:
        return model.sweep(ids, cells, lambda x: x.mean())

    with pytest.raises(InputError, match="cells is empty"):
        run()
    with pytest.raises(InputError, match="a list of cells, not a int"):
        model.sweep(ids, 3, lambda x: x.mean())  # type: ignore[call-overload]
    with pytest.raises(UnknownPointError, match="hook_attn_out"):
        run(Cell("blocks.0.hook_atn_out", (ALL, 0), 0.0))
    with pytest.raises(InputError, match=r"axes b p m\), and the index"):
        run(Cell(("attn_out", 0), (ALL, 9), 0.0))
    with pytest.raises(InputError, match=r"A value of shape \(3,\) does not fit"):
        run(Cell(("attn_out", 0), (ALL, 1), torch.zeros(3)))
    with pytest.raises(InputError, match="reduce='mean'"):
        model.sweep(ids, [Cell(("attn_out", 0), (ALL, 1), 0.0)], metric)
    assert model.engine.is_idle


def test_a_grid_of_other_axes() -> None:
    """Neurons of an MLP, with a setter of one's own."""
    model = lensbridge.load(build(Shape("gpt2", d_mlp=7, dtype=torch.float64)))
    clean, corrupted = tokens(2, 4), tokens(2, 4, seed=1)
    _, cache_ = model.run_with_cache(clean)

    def neuron(corrupted: Tensor, index: list[int], clean: Tensor) -> None:
        corrupted[:, :, index[1]] = clean[:, :, index[1]]

    found = P.generic_activation_patch(
        model,
        corrupted,
        cache_,
        lambda x: metric(x).mean(),
        neuron,
        "post",
        ("layer", "neuron"),
    )
    assert found.shape == (2, 7)
    bare = build(Shape("gpt2", d_mlp=7, dtype=torch.float64))
    down = bare.transformer.h[1].mlp.c_proj

    def third(whole: Tensor) -> Tensor:
        changed = whole.clone()
        changed[..., 3] = cache_["post", 1][..., 3]
        return changed

    logits = run_changing(bare, [(down, "input", third)], corrupted)
    torch.testing.assert_close(found[1, 3], metric(logits).mean())
