"""Path patching from every head to fixed receivers, against streams added up by hand."""

from functools import partial
from typing import Any

import pytest
import torch
from described import of_class
from raw_paths import ByHand
from tiny_models import Shape, build, left_padded, tokens
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge import patching as P
from lensbridge.errors import AbsentPointError, InputError

pytestmark = pytest.mark.usefixtures("one_thread")
family = partial(of_class, dtype=torch.float64)

FAMILIES = ("gpt2", "llama", "neox")
LAYERS, HEADS = 3, 4
Case = tuple[LensModel, ByHand]


def metric(logits: Tensor) -> Tensor:
    """Reads every position and is not linear; one number for each example."""
    return (logits.softmax(-1)[:, :, 7] * torch.arange(1, logits.shape[1] + 1)).sum(1)


def last(logits: Tensor) -> Tensor:
    return logits.softmax(-1)[:, -1, 7]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9, equal_nan=True)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    shape = Shape(request.param, layers=LAYERS, dtype=torch.float64)
    return lensbridge.load(build(shape)), ByHand(shape, tokens(2, 4), tokens(2, 4, seed=1))


@pytest.mark.parametrize("measure", [metric, last])
@pytest.mark.parametrize(
    "receivers",
    [["logits"], ["a2.h3<q>", "a2.h1<v>"], ["a1.h0<k>@2", "m2"], ["m2", "logits"]],
    ids=str,
)
def test_every_head_is_what_matrix_products_give(
    receivers: list[str], measure: Any, case: Case
) -> None:
    model, bare = case
    given = (model, bare.clean, bare.corrupted, receivers, measure)
    result = P.sweep_senders(*given, reduce="none", baseline=True, exact=False)
    assert result.engine == "batched"
    assert result.axis_names == ["layer", "head"]
    assert result.values.shape == (LAYERS, HEADS, 2)
    for layer in range(LAYERS):
        for head in range(HEADS):
            reached = "logits" in receivers or layer + bare.parallel <= 2
            reached = reached and not (receivers[0].startswith("a2") and layer == 2)
            if reached:
                close(result[layer, head], measure(bare.path([f"a{layer}.h{head}"], receivers)))
            assert reached != result[layer, head].isnan().all()
    close(result.baseline, measure(bare.runs[1].logits))


@pytest.mark.parametrize(("unit", "text"), [("mlp", "m{}"), ("attn", "a{}"), ("neuron", "m{}.n5")])
def test_other_senders(unit: Any, text: str, case: Case) -> None:
    model, bare = case
    given = (model, bare.clean, bare.corrupted, ["a2.h1<v>", "logits"])
    found = P.sweep_senders(*given, lambda x: metric(x).mean(), unit=unit)
    assert found.shape == ((LAYERS, bare.shape.d_mlp) if unit == "neuron" else (LAYERS,))
    for layer in range(LAYERS):
        wanted = metric(bare.path([text.format(layer)], ["a2.h1<v>", "logits"])).mean()
        close(found[layer, 5] if unit == "neuron" else found[layer], wanted)


@pytest.mark.parametrize("through", ["nothing", "mlps", "everything"])
@pytest.mark.parametrize("max_batch_tokens", [24, 56, None])
def test_batches_of_any_size_are_the_runs_of_path_patching(
    max_batch_tokens: int | None, through: Any, case: Case
) -> None:
    model, bare = case
    given = (model, bare.clean, bare.corrupted, ["a2.h1<k>", "m1"], metric)
    options: Any = {"through": through, "reduce": "mean"}
    found = P.sweep_senders(*given, **options, max_batch_tokens=max_batch_tokens)
    assert type(found) is Tensor
    for head in (1, 3):
        alone = P.path_patch(*given[:3], f"a0.h{head}", given[3], metric, through=through)
        close(found[0, head], alone.mean())
    close(found, P.sweep_senders(*given, **options, exact=True))


FURTHER = [
    "Gemma2ForCausalLM",
    "GraniteForCausalLM",
    "MixtralForCausalLM",
    "BertForMaskedLM",
    "FalconH1ForCausalLM",
    "Qwen3NextForCausalLM",
]


@pytest.mark.parametrize("name", FURTHER)
def test_norms_multipliers_experts_and_mixers_on_the_way(name: str) -> None:
    model = family(name)
    given = (model, tokens(2, 5), tokens(2, 5, seed=1), "m1", metric)
    options: Any = {"reduce": "none", "baseline": True}
    found = P.sweep_senders(*given, **options, exact=False)
    wanted = P.sweep_senders(*given, **options, exact=True)
    close(found.values, wanted.values)
    assert wanted.effect().abs().nan_to_num().max() > 1e-4


def test_rows_that_are_padded(case: Case) -> None:
    model, _ = case
    ids, mask = left_padded(3, 6)
    clean = {"input_ids": ids.roll(1, 0), "attention_mask": mask}
    given = (model, clean, {"input_ids": ids, "attention_mask": mask}, "a2.h1<v>", last)
    found = P.sweep_senders(*given, reduce="none", exact=False)
    for head in range(HEADS):
        close(found[1, head], P.path_patch(*given[:3], f"a1.h{head}", "a2.h1<v>", last))


def test_layers_in_between_do_not_run() -> None:
    model = lensbridge.load(build(Shape("gpt2", layers=6, dtype=torch.float64)))
    ran: list[int] = []
    for i, block in enumerate(model.hf_model.transformer.h):  # type: ignore[union-attr,arg-type]
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
    P.sweep_senders(model, tokens(1, 4), tokens(1, 4, seed=1), "logits", last, reduce="mean")
    assert len(ran) == 2 * 6 + 6  # both inputs, and each layer once for its heads


def test_encoders_one_by_one() -> None:
    model = family("T5ForConditionalGeneration")
    clean, corrupted = (
        {"input_ids": tokens(2, 6, seed), "decoder_input_ids": tokens(2, 4, seed + 2)}
        for seed in (0, 1)
    )
    given = (model, clean, corrupted, "c1.h2<k>", metric)
    found = P.sweep_senders(*given, stack="encoder", reduce="none", baseline=True)
    assert found.engine == "one by one: an encoder-decoder cannot start at a layer"
    sender = "encoder.a1.h3"
    close(found[1, 3], P.path_patch(*given[:3], sender, "c1.h2<k>", metric))
    cross = P.sweep_senders(*given[:3], "logits", metric, unit="cross_head", reduce="none")
    close(cross[0, 2], P.path_patch(*given[:3], "c0.h2", "logits", metric))
    with pytest.raises(InputError, match="Pass exact=True"):
        P.sweep_senders(*given, stack="encoder", reduce="none", exact=False)
    assert model.engine.is_idle


def test_a_model_that_is_not_the_same_in_batches_is_found_out() -> None:
    native = build(Shape("gpt2", layers=LAYERS, dtype=torch.float64))
    native.transformer.h[1].mlp.c_proj.register_forward_hook(lambda _, args, out: out * len(out))
    model = lensbridge.load(native)
    given = (model, tokens(1, 4), tokens(1, 4, seed=1), "m2", last)
    found = P.sweep_senders(*given, reduce="none", through="everything")
    assert "gives other logits" in found.engine
    wanted = P.sweep_senders(*given, reduce="none", through="everything", exact=True)
    close(found.values, wanted.values)


def test_an_interrupt_leaves_what_ran(case: Case) -> None:
    model, bare = case
    left = [6]

    def stopping(logits: Tensor) -> Tensor:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return metric(logits).mean()

    given = (model, bare.clean, bare.corrupted, "logits")
    found = P.sweep_senders(*given, stopping, exact=True)
    whole = P.sweep_senders(*given, lambda x: metric(x).mean())
    assert found.partial
    ran = ~found.values.isnan()
    assert 1 <= int(ran.sum()) < whole.numel()
    close(found.values[ran], whole[ran])
    assert model.engine.is_idle


def test_a_metric_that_turns_to_other_positions_gets_their_logits(case: Case) -> None:
    model, bare = case
    bar = bare.runs[1].logits[:, -1, 3].sum().item()

    def turning(logits: Tensor) -> Tensor:
        return logits[0, -1, 5] if logits[:, -1, 3].sum().item() <= bar + 1e-9 else logits[0, 1, 5]

    given = (model, bare.clean, bare.corrupted, "logits", turning)
    close(P.sweep_senders(*given), P.sweep_senders(*given, exact=True))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"unit": "input"}, "unit is one of head"),
        ({"unit": "q"}, "unit is one of head"),
        ({"receivers": "a0.h1<q>"}, "There is no path from"),
        ({"receivers": "a2.h1"}, "name one of its inputs"),
        ({"through": "heads"}, "through is one of"),
        ({"stack": "encoder"}, "There is no stack 'encoder'"),
        ({"max_batch_tokens": 7}, "one run alone has 8 positions"),
        ({"metric": metric}, "reduce='mean'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], told: str, case: Case) -> None:
    model, bare = case
    given: dict[str, Any] = {"receivers": "logits", "metric": lambda x: x.mean(), **options}
    with pytest.raises(InputError, match=told):
        P.sweep_senders(model, bare.clean, bare.corrupted, **given)
    with pytest.raises(AbsentPointError):
        P.sweep_senders(model, bare.clean, bare.corrupted, "logits", metric, unit="cross_head")
    assert model.engine.is_idle
