"""Batches of cells: a sweep leaves out only what cannot differ, and what it runs is exact."""

from threading import Thread
from typing import Any

import pytest
import torch
from described import of_class
from tiny_models import Shape, build, left_padded, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import InputError
from lensbridge.patching import Cell
from lensbridge.sweeps import batch
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.metric import Metrics
from lensbridge.sweeps.packing import packed
from lensbridge.sweeps.prefix import Prefix, prefix_of
from lensbridge.sweeps.reads import positions_read
from lensbridge.sweeps.setters import (
    layer_head_pattern_patch_setter,
    layer_head_pos_pattern_patch_setter,
    layer_pos_head_vector_patch_setter,
)

named = of_class

ALL = slice(None)


def cells_of(model: LensModel, length: int) -> list[Cell]:
    """At every position of the stream, of heads, keys and patterns."""
    cells = []
    for layer in range(model.cfg.n_layers):
        for pos in range(length):
            for point, index in (
                ("resid_pre", (ALL, pos)),
                ("z", (ALL, pos, 1)),
                ("k", (ALL, slice(pos, pos + 2), 0)),
                ("rot_k", (ALL, pos, 0)),
                ("pattern", (ALL, 1, pos)),
                ("mlp_out", (0, pos)),
            ):
                if has(model, point):
                    cells.append(Cell((point, layer), index, 0.3 + layer))
    return cells


def has(model: LensModel, point: str) -> bool:
    attn = model.native.blocks[0].attn
    if point == "k" and attn is not None and attn.latent is not None:
        return False  # all heads share a part of the key, so it is no place for an edit
    return point != "rot_k" or f"blocks.0.attn.hook_{point}" in model.vocabulary.index


METRICS = {
    "last": lambda logits: logits[:, -1, :5].sum(-1),
    "third": lambda logits: logits[:, 2].amax(-1),
    "several": lambda logits: logits[:, 1, 3] * logits[:, -2, 4],
    "rank": lambda logits: (logits[:, 4].argsort(-1) == 7).float().argmax(-1),
    "all": lambda logits: logits.log_softmax(-1).mean((1, 2)),
}


ASKED: Any = {"reduce": "none", "baseline": True}


@pytest.fixture(scope="module", params=["gpt2", "llama", "neox"])
def singly(request: pytest.FixtureRequest) -> tuple[LensModel, list[Cell], Any]:
    """A model, cells, and what they give in runs of their own, for every metric."""
    model = lensbridge.load(build(Shape(request.param, dtype=torch.float64)))
    cells = cells_of(model, 6)
    return model, cells, model.sweep(tokens(2, 6), cells, METRICS, exact=True, **ASKED)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_gives_what_single_runs_give(
    singly: tuple[LensModel, list[Cell], Any], metric: str
) -> None:
    model, cells, exact = singly
    many = model.sweep(tokens(2, 6), cells, METRICS[metric], max_batch_tokens=300, **ASKED)
    one = exact.values[exact.metric_names.index(metric)]
    assert many.engine == "batched"
    assert exact.engine == "one by one: asked for"
    torch.testing.assert_close(many.values.to(one), one, rtol=1e-9, atol=1e-9)
    assert not torch.equal(one[0], one[-1])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("MistralForCausalLM", {"sliding_window": 3}),
        ("Gemma2ForCausalLM", {"sliding_window": 3}),
        ("GptOssForCausalLM", {"sliding_window": 3}),
        ("DeepseekV3ForCausalLM", {}),
        ("MixtralForCausalLM", {}),
        ("BloomForCausalLM", {}),
        ("FalconForCausalLM", {}),
    ],
)
def test_prefixes_of_windows_latents_and_biases(name: str, fields: dict[str, Any]) -> None:
    model = named(name, dtype=torch.float64, **fields)  # some routers compute in float32
    ids = tokens(1, 9)
    cells = cells_of(model, 9)
    read = METRICS["last"]
    many = model.sweep(ids, cells, read, reduce="none")
    assert many.engine == "batched"
    one = model.sweep(ids, cells, read, reduce="none", exact=True)
    torch.testing.assert_close(many.values, one.values, rtol=1e-6, atol=1e-6)


def test_prefixes_of_padded_rows() -> None:
    ids, mask = left_padded(3, 7)
    for family in ("gpt2", "llama"):
        model = lensbridge.load(build(Shape(family, dtype=torch.float64)))
        given = {"input_ids": ids, "attention_mask": mask}
        cells = cells_of(model, 7)
        many = model.sweep(given, cells, METRICS["last"], reduce="none")
        one = model.sweep(given, cells, METRICS["last"], reduce="none", exact=True)
        assert many.engine == "batched"
        torch.testing.assert_close(many.values, one.values, rtol=1e-9, atol=1e-9)


class Counted:
    """How many positions go through each layer's MLP, and through the head."""

    def __init__(self, model: LensModel) -> None:
        native: Any = model.hf_model
        self.layers = [0] * len(native.transformer.h)
        self.head = 0
        for i, block in enumerate(native.transformer.h):
            block.mlp.register_forward_hook(self._of(i))
        native.lm_head.register_forward_hook(self._of(None))

    def _of(self, i: int | None) -> Any:
        def hook(_: nn.Module, args: Any, out: Tensor) -> None:
            if i is None:
                self.head += out.shape[0] * out.shape[1]
            else:
                self.layers[i] += out.shape[0] * out.shape[1]

        return hook


def test_a_sweep_computes_what_can_differ() -> None:
    model = lensbridge.load(build(Shape("gpt2", layers=3)))
    length = 8
    cells = [Cell(("resid_pre", i), (ALL, p), 1.0) for i in range(3) for p in range(length)]
    model.sweep(tokens(1, length), cells, METRICS["last"], reduce="none")  # knows the layers now
    seen = Counted(model)
    model.sweep(tokens(1, length), cells, METRICS["last"], reduce="none")
    unpatched = length + (length - 1)  # the base run, and the one for keys and values
    each = sum(range(1, length + 1))  # a row begins at each position
    controls = 8 + 7 + 4 + 1
    assert seen.layers[0] == unpatched + controls + each
    assert seen.layers[1] == unpatched + controls + 2 * each
    assert seen.layers[2] == unpatched + 4 + len(cells)  # one position of each
    assert seen.head == unpatched + 4 + len(cells)


@pytest.mark.parametrize("enough", [1, 30, 10**6])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_batches_of_every_size_give_the_same(
    family: str, enough: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batch.ENOUGH_TOKENS, "cpu", enough)
    model = lensbridge.load(build(Shape(family, dtype=torch.float64)))
    ids, cells = tokens(2, 6), cells_of(model, 6)
    for name in ("last", "several"):
        many = model.sweep(ids, cells, METRICS[name], reduce="none", max_batch_tokens=400)
        one = model.sweep(ids, cells, METRICS[name], reduce="none", exact=True)
        assert many.engine == "batched"
        torch.testing.assert_close(many.values, one.values, rtol=1e-9, atol=1e-9)


def test_a_control_row_tells_where_tokens_are_not_treated_alone() -> None:
    class Shifting(nn.Module):
        """An MLP that also sees the token before, as no other part of the model does."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.c_fc, self.c_proj = inner, inner.c_fc, inner.c_proj
            self.act = inner.act

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + nn.functional.pad(x, (0, 0, 1, -1))

    native = build(Shape("gpt2", dtype=torch.float64))
    native.transformer.h[1].mlp = Shifting(native.transformer.h[1].mlp).eval()
    model = lensbridge.load(native, derive=False)  # or the description is checked first
    ids = tokens(1, 6)
    cells = [Cell(("resid_pre", layer), (ALL, p), 1.0) for layer in (0, 1) for p in range(6)]
    many = model.sweep(ids, cells, METRICS["last"], reduce="none")
    one = model.sweep(ids, cells, METRICS["last"], reduce="none", exact=True)
    torch.testing.assert_close(many.values, one.values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_half_precision_runs_in_batches_too(family: str, dtype: torch.dtype) -> None:
    """Cells at patterns bring another attention kernel, with other roundings, to all rows."""
    model = lensbridge.load(build(Shape(family, layers=3, dtype=dtype)))
    ids, cells = tokens(2, 6), cells_of(model, 6)
    many = model.sweep(ids, cells, METRICS["last"], reduce="none", baseline=True)
    one = model.sweep(ids, cells, METRICS["last"], reduce="none", exact=True)
    assert many.engine == "batched"
    assert many.baseline is not None
    effect = (one.values - many.baseline).abs().max()
    assert (many.values - one.values).abs().max() < 0.05 * effect


@pytest.mark.parametrize("point", ["resid_mid", "mlp_in", "mlp_out", "pre", "post", "resid_post"])
@pytest.mark.parametrize("family", ["GPT2LMHeadModel", "LlamaForCausalLM", "OpenAIGPTLMHeadModel"])
def test_points_on_the_mlp_see_every_token(family: str, point: str) -> None:
    small = (
        lensbridge.load(build(Shape(family, dtype=torch.float64))) if family[0] in "gl" else None
    )
    model = small or named(family, dtype=torch.float64)
    cells = [Cell((point, i), (ALL, p), 0.7) for i in (0, 1) for p in range(7)]
    many = model.sweep(tokens(1, 7), cells, METRICS["last"], reduce="none")
    one = model.sweep(tokens(1, 7), cells, METRICS["last"], reduce="none", exact=True)
    assert many.engine == "batched"
    torch.testing.assert_close(many.values, one.values, rtol=1e-9, atol=1e-9)
    assert not torch.equal(one.values[6], one.values[13])


def test_packing_shows_a_module_some_tokens_and_leaves_nothing_attached() -> None:
    kept = torch.tensor([[False, True, True], [False, False, True]])
    linear, x = nn.Linear(2, 3), torch.randn(2, 3, 2)
    whole = linear(x)
    with packed(linear, kept):
        some = linear(x)
        other = linear(x[:1])  # no such tokens
        elsewhere: list[Tensor] = []
        thread = Thread(target=lambda: elsewhere.append(linear(x)))
        thread.start()
        thread.join()
    torch.testing.assert_close(some[kept], whole[kept])
    assert not some[~kept].any()
    assert torch.equal(other, linear(x[:1]))
    assert torch.equal(elsewhere[0], whole)
    assert not linear._forward_hooks
    assert not linear._forward_pre_hooks


def test_cells_that_cannot_matter_are_not_run() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    ids = tokens(1, 6)
    _, cache = model.run_with_cache(ids)
    same = [Cell(("resid_pre", 1), (ALL, p), cache["resid_pre", 1][:, p]) for p in range(6)]
    late = [Cell(("resid_pre", 1), (ALL, p), 5.0) for p in (3, 4, 5)]
    seen = Counted(model)
    found = model.sweep(ids, [*same, *late], METRICS["third"], reduce="none", baseline=True)
    assert seen.head <= 2 * 6
    assert torch.equal(found.values, found.baseline.expand_as(found.values))  # type: ignore[union-attr]


# --- what is read, where a cell begins, whose prefix can be kept -------------------------------


def test_the_positions_that_metrics_read() -> None:
    logits = torch.randn(2, 5, 7)

    def read(reduce: Any = "none", **functions: Any) -> list[int]:
        return positions_read(Metrics.of(functions, reduce), logits)

    ends = torch.tensor([1, 3])
    assert read(last=METRICS["last"]) == [4]
    assert read(third=METRICS["third"]) == [2]
    assert read(each=lambda x: x[torch.arange(2), ends, 0]) == [1, 3]
    assert read(last=METRICS["last"], third=METRICS["third"]) == [2, 4]
    assert read(all=METRICS["all"]) == [0, 1, 2, 3, 4]
    assert read(count=lambda x: (x[:, 1] > 0).sum(-1)) == [0, 1, 2, 3, 4]  # no gradient to ask
    assert read(top=lambda x: x[:, -1].argmax(-1)) == [4]
    assert read("scalar", mean=lambda x: x[:, 1:3].mean()) == [1, 2]


def test_where_a_cell_begins() -> None:
    stream, heads, pattern = ["b", "p", "m"], ["b", "p", "h", "d"], ["b", "h", "q", "k"]
    assert Cell("x", (ALL, 4), 0.0).first_position(stream) == 4
    assert Cell("x", (ALL, [5, 2]), 0.0).first_position(stream) == 2
    assert Cell("x", (ALL, slice(3, None), 1), 0.0).first_position(heads) == 3
    assert Cell("x", (0, 1, 6, 2), 0.0).first_position(pattern) == 6
    assert Cell("x", [1, 3, 2], 0.0, layer_pos_head_vector_patch_setter).first_position(heads) == 3
    assert (
        Cell("x", [1, 0, 5], 0.0, layer_head_pos_pattern_patch_setter).first_position(pattern) == 5
    )
    for unknown in (
        Cell("x", (ALL, -1), 0.0),
        Cell("x", (..., 3), 0.0),
        Cell("x", (ALL, torch.tensor([3, 4])), 0.0),
        Cell("x", 0, 0.0),
        Cell("x", (ALL, 4), 0.0, lambda activation, index, value: activation),
        Cell("x", [1, 0], 0.0, layer_head_pattern_patch_setter),
    ):
        assert unknown.first_position(pattern if unknown.index == [1, 0] else stream) == 0


def test_whose_prefix_can_be_kept() -> None:
    def found(name: str) -> Prefix | str:
        model = named(name)
        base = BaseRun.run(model, tokens(2, 6), ["resid_pre"])
        with torch.no_grad():
            return prefix_of(base)

    llama = found("LlamaForCausalLM")
    assert isinstance(llama, Prefix)
    assert llama.layers[0][0].shape[2] == 5
    assert isinstance(found("BertForMaskedLM"), str)
    assert isinstance(found("MambaForCausalLM"), str)
    assert isinstance(found("JambaForCausalLM"), str)


def test_a_sweep_that_does_not_fit_is_refused_before_it_begins() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    with pytest.raises(InputError, match="max_batch_tokens=0"):
        model.sweep(tokens(), [Cell(("z", 0), (ALL, 0), 0.0)], len, max_batch_tokens=0)


def test_a_model_that_looks_ahead_keeps_no_prefix() -> None:
    native = build(Shape("gpt2", dtype=torch.float64))
    native.transformer.h[0].mlp.register_forward_hook(lambda _, args, out: out + out.mean(1, True))
    model = lensbridge.load(native)
    ids = tokens(1, 5)
    base = BaseRun.run(model, ids, ["resid_pre"])
    with torch.no_grad():
        assert prefix_of(base) == "earlier positions see later ones"
    cells = [Cell(("resid_pre", layer), (ALL, 3), 1.0) for layer in (0, 1)]
    found = model.sweep(ids, cells, METRICS["third"], reduce="none")
    exact = model.sweep(ids, cells, METRICS["third"], reduce="none", exact=True)
    assert found.engine == "batched"
    torch.testing.assert_close(found.values, exact.values)
