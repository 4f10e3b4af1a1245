"""Causal tracing against the naive loop: a bare run with plain hooks for each cell and sample."""

from typing import Any

import pytest
import torch
from described import of_class
from test_interventions import editing, hooks_on
from tiny_models import VOCAB, Layer, Shape, build, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge.errors import InputError
from lensbridge.interventions import Add, causal_trace

SUBJECT = [1, 2]


def naive(
    hf: nn.Module,
    ids: Tensor,
    module: Any,
    noise: Tensor,
    width: int,
    target: int,
    layers: int,
) -> tuple[Tensor, Tensor, float]:
    """Restored `[layer, pos, sample]`, corrupted `[sample]` and clean probability.

    `module` gives the module of a layer whose output is restored.
    """
    embed = hf.get_input_embeddings()
    clean: dict[int, Tensor] = {}
    handles = [
        module(i).register_forward_hook(
            lambda _, __, out, i=i: clean.__setitem__(i, out[0] if isinstance(out, tuple) else out)
        )
        for i in range(layers)
    ]
    top = float(hf(ids).logits[0, -1].softmax(-1)[target])
    for handle in handles:
        handle.remove()

    def probability(sample: int, restored: list[int], pos: int) -> float:
        def corrupt(x: Tensor) -> Tensor:
            x[:, SUBJECT] += noise[sample]
            return x

        def restore(layer: int) -> Any:
            def edit(x: Tensor) -> Tensor:
                x[:, pos] = clean[layer][:, pos]
                return x

            return editing(module(layer), "output", edit)

        with editing(embed, "output", corrupt):
            contexts = [restore(layer) for layer in restored]
            for one in contexts:
                one.__enter__()
            value = float(hf(ids).logits[0, -1].softmax(-1)[target])
            for one in reversed(contexts):
                one.__exit__(None, None, None)
        return value

    samples, count = len(noise), ids.shape[1]
    floor = torch.tensor([probability(s, [], 0) for s in range(samples)])
    found = torch.empty(layers, count, samples)
    for layer in range(layers):
        start, stop = max(0, layer - width // 2), min(layers, layer - (-width // 2))
        for pos in range(count):
            for s in range(samples):
                found[layer, pos, s] = probability(s, list(range(start, stop)), pos)
    return found, floor, top


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_a_trace_is_the_naive_loop_with_raw_hooks(family: str) -> None:
    hf = build(Shape(family, layers=3))
    model, ids = lensbridge.load(hf), tokens(1, 5)
    trace = causal_trace(
        model, ids, SUBJECT, noise=2.0, samples=3, window=2, seed=4, max_batch_tokens=40
    )
    table = hf.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(4)
    noise = 2.0 * table.std() * torch.randn(3, 2, table.shape[1], generator=generator)
    target = int(hf(ids).logits[0, -1].argmax())
    assert trace.answer == target
    modules = {
        "resid_post": (lambda i: Layer(hf, family, i).block, 1),
        "mlp_out": (lambda i: Layer(hf, family, i).mlp, 2),
        "attn_out": (lambda i: Layer(hf, family, i).attn, 2),
    }
    assert set(trace.effects) == set(modules)
    for site, (module, width) in modules.items():
        found, floor, top = naive(hf, ids, module, noise, width, target, 3)
        torch.testing.assert_close(trace.samples[site], found, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(trace.corrupted, floor, rtol=1e-3, atol=1e-5)
        assert abs(trace.clean - top) < 1e-5
        torch.testing.assert_close(trace[site], (found - floor).mean(-1), rtol=1e-3, atol=1e-5)
    assert hooks_on(hf) == 0


def test_layers_before_the_restored_one_do_not_run() -> None:
    hf = build(Shape("llama", layers=3))
    model, ids, ran = lensbridge.load(hf), tokens(1, 5), [0, 0, 0]
    for i, layer in enumerate(hf.model.layers):
        layer.mlp.register_forward_hook(lambda *_, i=i: ran.__setitem__(i, ran[i] + 1))
    started = causal_trace(model, ids, SUBJECT, samples=2, sites=["resid_post"])
    # clean and corrupted, a batch for each layer, and a check for each entrance
    assert ran == [2 + 1, 2 + 2 + 1, 2 + 3 + 2]
    with model.hooks([(("resid_pre", 0), lambda value, hook: None)]):
        whole = causal_trace(model, ids, SUBJECT, samples=2, sites=["resid_post"])
    torch.testing.assert_close(started.samples["resid_post"], whole.samples["resid_post"])


def test_a_trace_says_why_its_runs_start_at_the_first_layer() -> None:
    hf = build(Shape("gpt2", layers=3))
    model, ids = lensbridge.load(hf), tokens(1, 5)
    whole = causal_trace(model, ids, SUBJECT, samples=2, sites="resid_post")
    assert whole.engine == "from the restored layer"

    ran = [0]

    def watch(layer: int) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            if layer and ran[-1] != layer - 1:
                raise RuntimeError("a layer was left out")
            ran.append(layer)

        return hf.transformer.h[layer].mlp.register_forward_pre_hook(hook)

    handles = [watch(layer) for layer in range(3)]
    found = causal_trace(model, ids, SUBJECT, samples=2, sites="resid_post")
    for handle in handles:
        handle.remove()
    assert "starting at layer 2 raised RuntimeError: a layer was left out" in found.engine
    torch.testing.assert_close(found.samples["resid_post"], whole.samples["resid_post"])
    with model.hooks([(("resid_pre", 0), lambda value, hook: None)]):
        hooked = causal_trace(model, ids, SUBJECT, samples=2, sites="resid_post")
    assert "other hooks are on the model" in hooked.engine


def test_a_trace_that_is_interrupted_gives_what_it_has() -> None:
    hf = build(Shape("gpt2", layers=3))
    model, ids = lensbridge.load(hf), tokens(1, 5)
    whole = causal_trace(model, ids, SUBJECT, samples=2)
    left = [5]  # the clean run, the corrupted one, a layer, another with its check, and no more

    def stopping(module: nn.Module, args: Any, output: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    handle = hf.lm_head.register_forward_hook(stopping)
    found = causal_trace(model, ids, SUBJECT, samples=2)
    handle.remove()
    assert (found.partial, whole.partial) == (True, False)
    ran = ~found.samples["resid_post"].isnan()
    assert ran.flatten(1).all(1).tolist() == [True, True, False]
    assert torch.equal(found.samples["resid_post"][ran], whole.samples["resid_post"][ran])
    assert found.samples["mlp_out"].isnan().all()
    assert model.engine.is_idle


def test_the_demo_model_keeps_a_landmark_at_its_name() -> None:
    model = lensbridge.load("demo")
    trace = causal_trace(model, "The Eiffel Tower is in the city of", "Eiffel Tower", " Paris")
    assert trace.subject == (2, 3)
    assert trace.total_effect > 0.5
    resid = trace["resid_post"]
    assert float(resid[0, 2]) > 0.5 * trace.total_effect
    assert float(resid[-1, -1]) == pytest.approx(trace.total_effect, abs=1e-3)
    assert trace.stderr("resid_post").shape == resid.shape
    picture = trace.plot("mlp_out").svg()
    assert "Restoring mlp_out" in picture
    assert "Eiffel*" in picture


def test_embeddings_of_another_width_and_layers_that_are_shared() -> None:
    """ALBERT; and of Gemma 4, whose layers read the ids too, every run is a whole one."""
    for name in ("AlbertForMaskedLM", "Gemma4ForCausalLM"):
        model, ids = of_class(name), tokens(1, 5)
        trace = causal_trace(model, ids, [1], samples=2, sites="resid_post", position=3)
        assert trace.samples["resid_post"].shape == (model.cfg.n_layers, 5, 2)
        last = trace.samples["resid_post"][-1, 3]  # where the answer is read, at the end
        torch.testing.assert_close(last, torch.full((2,), trace.clean), rtol=1e-4, atol=1e-6)


def test_layers_without_the_point_are_left_out() -> None:
    """A hybrid: attention in one of its layers."""
    from test_core_set import built_in

    from lensbridge.testing import tiny_model

    hf = tiny_model(built_in("JambaForCausalLM"), "JambaForCausalLM")
    model, ids = lensbridge.load(hf), torch.randint(3, 20, (1, 5))
    trace = causal_trace(model, ids, [1], samples=2, sites=["attn_out", "resid_post"])
    has = [f"blocks.{i}.hook_attn_out" in model.hook_names for i in range(model.cfg.n_layers)]
    assert not all(has)
    assert any(has)
    assert (~trace["attn_out"].isnan().any(-1)).tolist() == has
    assert not trace["resid_post"].isnan().any()
    assert trace.plot("attn_out").svg()


def test_what_cannot_be_traced_is_refused() -> None:
    model = lensbridge.load("demo")
    text = "The Eiffel Tower is in the city of"
    for subject, message in (("Big Ben", "0 times"), ("e", "times in")):
        with pytest.raises(InputError, match=message):
            causal_trace(model, text, subject)
    with pytest.raises(InputError, match="position 40 is out of range"):
        causal_trace(model, text, [40])
    for wrong, message in (
        ({"position": 40}, "position 40 is out of range; there are 9"),
        ({"answer": 9999}, "is no token"),
        ({"sites": []}, "no sites to restore"),
        ({"noise": -1.0}, "0 or more"),
    ):
        with pytest.raises(InputError, match=message):
            causal_trace(model, text, "Eiffel", **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="subject is empty"):
        causal_trace(model, text, [])
    with pytest.raises(InputError, match="one prompt"):
        causal_trace(model, tokens(2, 5) % VOCAB, [1])
    with pytest.raises(InputError, match="at least 1"):
        causal_trace(model, text, [1], samples=0)
    assert hooks_on(model.hf_model) == 0


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("point", ["resid_pre", "mlp_out"])
def test_a_trace_inside_declared_interventions_starts_at_the_restored_layer(
    family: str, point: str
) -> None:
    hf = build(Shape(family, layers=3))
    model, ids = lensbridge.load(hf), tokens(1, 5)
    width = hf.get_input_embeddings().weight.shape[1]
    vector = torch.randn(width, generator=torch.Generator().manual_seed(8))
    modules = {
        "resid_post": (lambda i: Layer(hf, family, i).block, 1),
        "mlp_out": (lambda i: Layer(hf, family, i).mlp, 2),
        "attn_out": (lambda i: Layer(hf, family, i).attn, 2),
    }
    with model.intervene([Add((point, 1), vector, positions=[1, 4])]):
        trace = causal_trace(model, ids, SUBJECT, noise=2.0, samples=3, window=2, std=0.5)
    assert trace.engine == "from the restored layer"
    noise = 2.0 * 0.5 * torch.randn(3, 2, width, generator=torch.Generator().manual_seed(0))

    def steer(x: Tensor) -> Tensor:
        x[:, [1, 4]] += vector
        return x

    place = (Layer(hf, family, 1).block, "input")
    place = place if point == "resid_pre" else (Layer(hf, family, 1).mlp, "output")
    with editing(*place, steer):  # before the hooks of the naive loop, as the context's is
        for site, (module, width) in modules.items():
            found, floor, top = naive(hf, ids, module, noise, width, trace.answer, 3)
            torch.testing.assert_close(trace.samples[site], found, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(trace.corrupted, floor, rtol=1e-3, atol=1e-5)
            assert abs(trace.clean - top) < 1e-5


@torch.no_grad()
def test_hooks_written_for_one_row_act_on_each_run_of_a_trace() -> None:
    hf = build(Shape("gpt2", layers=3))
    model, ids = lensbridge.load(hf), tokens(1, 5)
    width = hf.get_input_embeddings().weight.shape[1]

    def first_row(value: Tensor, hook: Any = None) -> Tensor:
        value[0, 3] = 0.25
        return value

    with model.hooks([(("mlp_out", 1), first_row)]):
        trace = causal_trace(model, ids, SUBJECT, noise=2.0, samples=3, sites="resid_post", std=0.5)
    noise = 2.0 * 0.5 * torch.randn(3, 2, width, generator=torch.Generator().manual_seed(0))
    with editing(Layer(hf, "gpt2", 1).mlp, "output", first_row):
        module = lambda i: Layer(hf, "gpt2", i).block  # noqa: E731
        found, floor, _ = naive(hf, ids, module, noise, 1, trace.answer, 3)
    torch.testing.assert_close(trace.samples["resid_post"], found, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(trace.corrupted, floor, rtol=1e-3, atol=1e-5)
