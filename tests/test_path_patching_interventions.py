"""Path patching from every head inside `model.intervene`: in batches, as one by one.

The oracle is the bare model that has the intervention as a plain PyTorch hook, whose streams are
added up by hand, and `exact=True`, which makes the runs of `path_patch` one by one.
"""

from typing import Any

import pytest
import torch
from raw_paths import ByHand
from test_path_patching_senders import FAMILIES, HEADS, LAYERS, close, last, metric
from test_sweep_interventions import DECLARED, Sly, vector
from tiny_models import Shape, build, left_padded, tokens
from torch import Tensor

import lensbridge
from lensbridge import patching as P
from lensbridge.interventions import Add, Mean, Scale, Zero
from lensbridge.patching.paths import path_patch

pytestmark = pytest.mark.usefixtures("one_thread")
ASKED = (tokens(1, 6), tokens(1, 6, seed=1), ["a2.h1<k>", "m2", "logits"])
"""A clean and a corrupted input, and receivers."""


def shape_of(family: str) -> Shape:
    return Shape(family, layers=LAYERS, dtype=torch.float64)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> lensbridge.LensModel:
    return lensbridge.load(build(shape_of(request.param)))


@pytest.mark.parametrize(
    "receivers", [["logits"], ["a2.h3<q>", "a2.h1<v>"], ["m2", "logits"]], ids=str
)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_bare_model_with_the_edit_agrees(family: str, receivers: list[str]) -> None:
    shape = shape_of(family)
    model = lensbridge.load(build(shape))
    bare, steering = ByHand(shape, tokens(2, 4), tokens(2, 4, seed=1)), vector(shape.d_model)
    bare.layer(1).mlp.register_forward_hook(lambda _, args, out: out + steering)
    given = (model, bare.clean, bare.corrupted, receivers, metric)
    with model.intervene([Add(("mlp_out", 1), steering)]):
        found = P.sweep_senders(*given, reduce="none", baseline=True, exact=False)
    assert found.engine == "batched"
    close(found.baseline, metric(bare.runs[1].logits))
    ran = 0
    for layer in range(LAYERS):
        for head in range(HEADS):
            if not found[layer, head].isnan().any():
                close(found[layer, head], metric(bare.path([f"a{layer}.h{head}"], receivers)))
                ran += 1
    assert ran >= HEADS


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_of_the_stream_on_the_way_acts_on_what_the_sender_adds(family: str) -> None:
    shape = shape_of(family)
    model, bare = (
        lensbridge.load(build(shape)),
        ByHand(shape, tokens(2, 4), tokens(2, 4, seed=1)),
    )

    def half(_: Any, args: Any, kwargs: Any) -> Any:
        return ((args[0] / 2, *args[1:]), kwargs) if args else (args, _halved(kwargs))

    bare.layer(2).block.register_forward_pre_hook(half, with_kwargs=True)
    given = (model, bare.clean, bare.corrupted, "logits", metric)
    with model.intervene([Scale(("resid_pre", 2), 0.5)]):
        found = P.sweep_senders(*given, reduce="none", exact=False)
    final = bare.layer(LAYERS - 1).block
    for layer in range(LAYERS):
        for head in range(HEADS):
            delta = bare.delta(f"a{layer}.h{head}") * (0.5 if layer < 2 else 1.0)
            close(found[layer, head], metric(_with(bare, final, delta)))


def _halved(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "hidden_states": kwargs["hidden_states"] / 2}


def _with(bare: ByHand, module: Any, delta: Tensor) -> Tensor:
    """Logits of the corrupted run with something added to what a module gives."""

    def add(_: Any, args: Any, out: Any) -> Any:
        return (out[0] + delta, *out[1:]) if isinstance(out, tuple) else out + delta

    handle = module.register_forward_hook(add)
    try:
        return bare.model(input_ids=bare.corrupted).logits
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def unedited(model: lensbridge.LensModel) -> Any:
    return P.sweep_senders(model, *ASKED, last, reduce="none", baseline=True)


@pytest.mark.parametrize("through", ["nothing", "mlps", "everything"])
@pytest.mark.parametrize("name", DECLARED)
def test_declared_interventions_act_in_batches(
    model: lensbridge.LensModel, unedited: Any, name: str, through: Any
) -> None:
    given = (model, *ASKED)
    options: Any = {"through": through, "reduce": "none", "baseline": True}
    with model.intervene(DECLARED[name](model)):
        found = P.sweep_senders(*given, last, **options, exact=False)
        exact = P.sweep_senders(*given, last, **options, exact=True)
        head = path_patch(*given[:2], given[2], "a0.h1", given[3], last, through=through)
    assert found.engine == "batched"
    close(found.values, exact.values)
    close(found[0, 1], head)
    assert not torch.allclose(unedited.baseline, found.baseline)


def test_padded_rows() -> None:
    model = lensbridge.load(build(shape_of("llama")))
    ids, mask = left_padded(3, 6)
    clean = {"input_ids": ids.roll(1, 0), "attention_mask": mask}
    given = (model, clean, {"input_ids": ids, "attention_mask": mask}, "a2.h1<v>", last)
    with model.intervene([Add(("resid_pre", 1), vector(model.cfg.d_model), positions="last")]):
        found = P.sweep_senders(*given, reduce="none", exact=False)
        exact = P.sweep_senders(*given, reduce="none", exact=True)
    close(found.values, exact.values)


def test_what_looks_at_other_rows_is_run_one_by_one() -> None:
    model = lensbridge.load(build(shape_of("gpt2")))
    given = (model, tokens(2, 4), tokens(2, 4, seed=1), "m2", last)
    hooked = model.hooks([("z", lambda z, hook: z * 2)])
    for context in (model.intervene([Mean(("resid_pre", 1))]), hooked):
        with context:
            found = P.sweep_senders(*given, reduce="none")
            exact = P.sweep_senders(*given, reduce="none", exact=True)
        assert found.engine.startswith("one by one: other hooks are on the model")
        close(found.values, exact.values)
    with model.intervene([Sly(("mlp_out", 2), 0.0)]):
        found = P.sweep_senders(*given, reduce="none", through="everything")
        exact = P.sweep_senders(*given, reduce="none", through="everything", exact=True)
    assert "gives other logits" in found.engine
    close(found.values, exact.values)
    assert model.engine.is_idle


def test_direct_paths_to_every_later_head() -> None:
    model = lensbridge.load(build(shape_of("gpt2")))
    clean, corrupted = tokens(1, 5), tokens(1, 5, seed=1)
    with model.intervene(
        [Zero(("z", 1), heads=[0]), Add(("resid_pre", 2), vector(model.cfg.d_model))]
    ):
        caches = [model.run_with_cache(ids)[1] for ids in (clean, corrupted)]
        given = (model, corrupted, *caches, lambda logits: last(logits).sum(), 0, 1)
        found = P.get_act_patch_direct_path(*given, exact=False)
        exact = P.get_act_patch_direct_path(*given, exact=True)
    close(found, exact)
