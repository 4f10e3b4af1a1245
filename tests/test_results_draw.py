"""Every result draws itself: its pictures have its numbers, under the names of tokens and parts."""

import pickle
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from pictures import marks, texts

import lensbridge
from lensbridge.analysis import (
    direct_logit_attribution,
    logit_lens,
    logit_readout,
    singular_readout,
    test_prompt,
)
from lensbridge.causal import attribution_patch, faithfulness, prune_circuit, screen
from lensbridge.errors import InputError
from lensbridge.evals import IOIDataset, ioi_eval
from lensbridge.inputs.position_labels import PositionLabels
from lensbridge.interventions import causal_trace, steering_vector
from lensbridge.model import LensModel
from lensbridge.patching import (
    get_act_patch_attn_head_pattern_dest_src_pos,
    get_act_patch_attn_out,
    get_act_patch_resid_pre,
)
from lensbridge.viz import Bars, Drawn, Heatmap, Lines, plot

CLEAN = "The Eiffel Tower is in the city of"
CORRUPT = "The Galata Tower is in the city of"
TOKENS = ["The", "·Galata", "·Tower", "·is", "·in", "·the", "·city", "·of"]
PARTS = ["a2.h1", "a2.h2", "m0", "m3"]


@pytest.fixture(scope="module")
def model() -> LensModel:
    return lensbridge.load("demo")


@pytest.fixture(scope="module")
def metric(model: LensModel) -> Callable[[torch.Tensor], torch.Tensor]:
    paris, istanbul = (model.to_single_token(city) for city in (" Paris", " Istanbul"))
    return lambda logits: logits[0, -1, paris] - logits[0, -1, istanbul]


def tips(picture: Any) -> list[str]:
    return [mark.tip for mark in marks(picture.svg())]


# --- positions are named by their tokens -----------------------------------------------------


def test_a_sweep_over_positions_has_tokens_on_its_axis(model: LensModel, metric: Any) -> None:
    _, cache = model.run_with_cache(CLEAN)
    result = get_act_patch_resid_pre(model, CORRUPT, cache, metric, baseline=True)
    assert result.axis_labels["pos"] == model.to_str_tokens(CORRUPT)
    picture = result.plot()
    for layer in range(4):
        for position, token in enumerate(TOKENS, 1):
            value = float(result.values[layer, position])
            assert f"layer {layer}, pos {token}: {value:.4g} metric" in tips(picture)
    assert set(TOKENS) < set(texts(picture.svg()))
    one = result.plot(pos=2)
    assert (
        one.values == [result.values[:, 2].tolist()]
        or [row[0] for row in one.values] == result.values[:, 2].tolist()
    )
    kept = pickle.loads(pickle.dumps(result))
    assert kept.axis_labels == result.axis_labels


def test_both_axes_of_attention_have_tokens(model: LensModel, metric: Any) -> None:
    _, cache = model.run_with_cache("A cat")
    short = model.to_tokens("A cat")
    result = get_act_patch_attn_head_pattern_dest_src_pos(
        model, short, cache, lambda logits: logits[0, -1, 5], baseline=True
    )
    tokens = model.to_str_tokens(short)
    assert result.axis_labels["dest_pos"] == result.axis_labels["src_pos"] == tokens
    assert result.plot(layer=0, head_index=1).columns == tokens


def test_a_bare_tensor_is_drawn_with_labels(model: LensModel, metric: Any) -> None:
    _, cache = model.run_with_cache(CLEAN)
    values = get_act_patch_attn_out(model, CORRUPT, cache, metric)
    assert isinstance(values, torch.Tensor)
    picture = plot(values, x=model.to_str_tokens(CORRUPT), axes=("layer", "position"))
    assert f"layer 2, position ·of: {float(values[2, -1]):.4g}" in tips(picture)


def test_where_examples_differ_a_label_has_both_tokens(model: LensModel) -> None:
    ids = model.to_tokens([CLEAN, CORRUPT])
    labels = PositionLabels.of(model.tokens, ids, None)
    assert labels is not None
    assert labels.texts[1:4] == ("The", " Eiffel/Galata", " Tower")
    third = torch.cat([ids, ids[:1].flip(1)])
    many = PositionLabels.of(model.tokens, third, None)
    assert many is not None
    assert many.texts[2] == " Eiffel/…"
    assert many.along([2, 99]) == [" Eiffel/…", "99"]


def test_padded_examples_have_numbers(model: LensModel) -> None:
    ids = model.to_tokens([CLEAN, CORRUPT])
    mask = torch.ones_like(ids)
    assert PositionLabels.of(model.tokens, ids, mask) is not None
    mask[1, -1] = 0
    assert PositionLabels.of(model.tokens, ids, mask) is None
    assert PositionLabels.of(model.tokens, None, None) is None


def test_without_a_tokenizer_positions_are_numbers(model: LensModel) -> None:
    bare = LensModel(model.hf_model, lambda: None)
    labels = PositionLabels.of(bare.tokens, torch.tensor([[5, 6]]), None)
    assert labels is not None
    assert labels.texts == ("0", "1")


def test_attribution_by_position_has_tokens(model: LensModel, metric: Any) -> None:
    result = attribution_patch(model, CLEAN, CORRUPT, metric, units=["mlp"], positions=True)
    picture = result.plot()
    assert isinstance(picture, Heatmap)
    assert [str(one) for one in picture.columns] == model.to_str_tokens(CORRUPT)
    scores = result["mlp"]
    assert f"layer 3, position ·of: {float(scores[3, -1]):.4g}" in tips(picture)
    heads = attribution_patch(model, CLEAN, CORRUPT, metric, units=["head"], positions=True)
    assert heads.plot("head").rows[:5] == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]


# --- the logit lens --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"return_type": "log_probs"}, {"return_type": "probs"}])
def test_the_lens_has_the_likeliest_token_in_each_cell(model: LensModel, options: Any) -> None:
    result = logit_lens(model, CLEAN, positions=None, **options)
    picture = result.plot()
    assert isinstance(picture, Heatmap)
    assert picture.columns == model.to_str_tokens(CLEAN)
    probs = logit_lens(model, CLEAN, positions=None).values[:, 0].softmax(-1)
    for i, row in enumerate(result.labels):
        for j in range(9):
            best = int(probs[i, j].argmax())
            assert picture.texts is not None
            assert picture.tips is not None
            assert picture.texts[i][j] == model.to_single_str_token(best)
            assert picture.values[i][j] == pytest.approx(float(probs[i, j, best]), abs=1e-5)
            assert picture.tips[i][j].startswith(row)
            assert picture.tips[i][j].count("\n") == 5
    with torch.no_grad():
        own = model.hf_model(model.to_tokens(CLEAN)).logits[0].softmax(-1)
    assert picture.values[-1] == pytest.approx(own.max(-1).values.tolist(), abs=1e-5)


def test_the_lens_at_one_position_has_ranks_as_columns(model: LensModel) -> None:
    picture = logit_lens(model, CLEAN, positions=-1, top_k=3, return_type="probs").plot()
    assert isinstance(picture, Heatmap)
    assert picture.texts is not None
    assert picture.texts[-1][0] == " Paris"
    assert picture.columns == ["0", "1", "2"]
    assert picture.title.endswith("after “·of”")


def test_targets_of_the_lens_are_lines_or_a_heatmap(model: LensModel) -> None:
    result = logit_lens(model, CLEAN, positions=-1, targets=[" Paris", " Rome"])
    lines = result.plot()
    assert isinstance(lines, Lines)
    assert list(lines.series) == ["·Paris", "·Rome"]
    assert lines.series["·Rome"] == pytest.approx(result.values[:, 0, 1].tolist())
    whole = logit_lens(model, CLEAN, positions=None, targets=" Paris")
    picture = whole.plot()
    assert isinstance(picture, Heatmap)
    assert picture.values[2] == pytest.approx(whole.values[2, 0, :, 0].tolist())
    with pytest.raises(InputError, match="not one of the targets"):
        whole.plot(target=" Rome")


def test_the_lens_leaves_padding_out_and_draws_each_example(model: LensModel) -> None:
    result = logit_lens(model, [CLEAN, "The Colosseum"], positions=None)
    short = result.plot(example=1)
    assert isinstance(short, Heatmap)
    real = len(model.to_str_tokens("The Colosseum"))
    assert all(value is None for row in short.values for value in row[real:])
    assert short.columns[:real] == model.to_str_tokens("The Colosseum")
    assert result.plot(example=-1).title == short.title
    with pytest.raises(InputError, match="no example 2: there are 2"):
        result.plot(example=2)
    with pytest.raises(InputError, match="Only a part of the vocabulary"):
        logit_lens(model, CLEAN, vocab=[3, 4]).plot()


# --- bars ------------------------------------------------------------------------------------


def test_direct_attribution_has_bars_that_sum_to_the_logit(model: LensModel) -> None:
    for unit in ("component", "head", "neuron"):
        result = direct_logit_attribution(model, CLEAN, answer_tokens=" Paris", unit=unit)  # type: ignore[arg-type]
        picture = result.plot(k=12)
        *parts, total = picture.values
        with torch.no_grad():
            own = model.hf_model(model.to_tokens(CLEAN)).logits
        paris = model.to_single_token(" Paris")
        assert total == pytest.approx(float(own[0, -1, paris]), abs=1e-3)
        assert sum(parts) == pytest.approx(total, abs=1e-4)
        assert len(parts) <= 14
    assert picture.labels[-3:-1] == (f"the other {len(result.labels) - 12} neurons", "bias")
    with pytest.raises(InputError, match="no example 1: there are 1"):
        result.plot(example=1)


def test_a_prompt_has_its_answer_marked(model: LensModel) -> None:
    result = test_prompt(CLEAN, ["Rome", "Paris"], model, print_details=False, top_k=3)
    picture = result.plot()
    with torch.no_grad():
        own = model.hf_model(model.to_tokens(CLEAN)).logits[0, -1].softmax(-1)
    for label, value in zip(picture.labels, picture.values, strict=True):
        assert value == pytest.approx(float(own[model.to_single_token(label)]), abs=1e-6)
    assert picture.labels[0] == " Paris"
    assert len(picture.labels) == 4  # the three likeliest, and Rome
    remarks = dict(zip(picture.labels, picture.remarks or (), strict=True))
    assert remarks[" Paris"] == "answer, rank 0"
    assert remarks[" Rome"].startswith("answer, rank ")
    assert sum(map(bool, remarks.values())) == 2
    with pytest.raises(InputError, match="The answer has no token 1"):
        result.plot(place=1)


def test_circuits_draw_their_metrics(model: LensModel, metric: Any) -> None:
    circuit = faithfulness(model, CLEAN, CORRUPT, metric, PARTS)
    picture = circuit.plot()
    wanted = (circuit.full, circuit.kept, circuit.removed, circuit.empty, circuit.corrupt)
    assert picture.values == pytest.approx([float(one) for one in wanted])
    with torch.no_grad():
        own = metric(model.hf_model(model.to_tokens(CLEAN)).logits)
    assert picture.values[0] == pytest.approx(float(own), abs=1e-4)

    found = screen(model, CLEAN, CORRUPT, metric, 4)
    assert list(found.plot().labels) == found.labels
    assert list(found.plot().values) == pytest.approx(found.exact.tolist())

    pruned = prune_circuit(model, CLEAN, CORRUPT, metric, 0.5, candidates=PARTS)
    line = pruned.plot().series["metric"]
    assert len(line) == len(pruned.trials) == 4
    assert line[-1] == pytest.approx(pruned.metric, abs=1e-4)


def test_weights_draw_themselves(model: LensModel) -> None:
    scores = model.all_composition_scores("Q")
    picture = scores.plot()
    assert picture.rows == scores.head_labels
    there = [value for row in picture.values for value in row if value is not None]
    later = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    assert len(there) == len(later) * 16
    assert picture.values[1][2 * 4 + 3] == pytest.approx(float(scores.scores[0, 1, 2, 3]))
    assert scores._repr_html_() == picture._repr_html_()
    assert type(scores[0]) is torch.Tensor

    direction = singular_readout(model, "OV", 2, 1, k=3)[0]
    assert (
        dict(direction.top).items()
        <= dict(zip(direction.plot().labels, direction.plot().values, strict=True)).items()
    )


def test_a_trace_has_the_tokens_of_the_prompt(model: LensModel) -> None:
    trace = causal_trace(model, CLEAN, "Eiffel Tower", samples=2)
    assert list(trace.plot().columns)[2:4] == [" Eiffel*", " Tower*"]
    assert "of 10 layers" in trace.plot("mlp_out").title


def test_numbers_by_name_are_bars(model: LensModel) -> None:
    scores = ioi_eval(model, num_samples=4, seed=0)
    picture = plot(scores)
    assert isinstance(picture, Bars)
    assert dict(zip(picture.labels, picture.values, strict=True)) == scores


def test_every_result_shows_itself_in_a_notebook(model: LensModel, metric: Any) -> None:
    _, cache = model.run_with_cache(CLEAN)
    results: list[Drawn] = [
        get_act_patch_resid_pre(model, CORRUPT, cache, metric, baseline=True),
        attribution_patch(model, CLEAN, CORRUPT, metric),
        logit_lens(model, CLEAN),
        direct_logit_attribution(model, CLEAN, answer_tokens=" Paris"),
        test_prompt(CLEAN, "Paris", model, print_details=False),
        faithfulness(model, CLEAN, CORRUPT, metric, PARTS),
        screen(model, CLEAN, CORRUPT, metric, 2),
        prune_circuit(model, CLEAN, CORRUPT, metric, 0.5, candidates=PARTS),
        causal_trace(model, CLEAN, "Eiffel Tower", samples=1),
        *singular_readout(model, "OV", 2, 1, num_vectors=1),
    ]
    for result in results:
        html = result._repr_html_()
        ElementTree.fromstring(html)
        assert "<svg" in html
        assert len(repr(result)) < 600


# --- points ----------------------------------------------------------------------------------


def test_a_point_explains_itself_in_a_few_lines(model: LensModel) -> None:
    point = model.explain("blocks.1.attn.hook_z")
    assert repr(point) == str(point)
    assert len(repr(point).splitlines()) == 5
    html = ElementTree.fromstring(point._repr_html_())
    words = "".join(html.itertext())
    assert point.where in words
    assert point.meaning in words
    assert max(len(repr(one)) for one in model.hook_points()) < 600


# --- steering --------------------------------------------------------------------------------


def test_a_text_is_continued_with_and_without_a_steering_vector(model: LensModel) -> None:
    steer = steering_vector(model, [CLEAN], [CORRUPT], ("resid_post", 2))
    found = model.generate_with_and_without(CORRUPT, steer, max_new_tokens=1, top_k=3)
    assert (found.without, found.steered) == (f"{CORRUPT} Istanbul", f"{CORRUPT} Paris")
    ids = model.to_tokens(CORRUPT)
    block = model.hf_model.transformer.h[2]
    with torch.no_grad():
        plain = model.hf_model(ids).logits[0, -1].softmax(-1)

        def add(module: Any, args: Any, output: Any) -> Any:
            streams = output[0] if isinstance(output, tuple) else output
            moved = streams + steer.vector
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        handle = block.register_forward_hook(add)
        steered = model.hf_model(ids).logits[0, -1].softmax(-1)
        handle.remove()
    places = [model.to_single_token(token) for token in found.tokens]
    torch.testing.assert_close(found.probabilities, torch.stack([plain, steered])[:, places])
    assert set(plain.topk(3).indices.tolist()) | set(steered.topk(3).indices.tolist()) == set(
        places
    )
    picture = found.plot()
    assert picture.rows == ("without", "with")
    html = "".join(ElementTree.fromstring(found._repr_html_()).itertext())
    assert f"{CORRUPT} Paris" in html
    with pytest.raises(InputError, match="One text is continued twice, not list"):
        model.generate_with_and_without([CORRUPT], steer)  # type: ignore[arg-type]


def test_large_objects_have_short_descriptions(model: LensModel) -> None:
    assert repr(model.vocabulary) == f"PointNames({len(model.hook_names)} names; 4 blocks)"
    assert repr(IOIDataset(model.tokenizer, num_samples=3)).startswith("IOIDataset(3 sentences, ")
    readout = logit_readout(model, model.W_U[:, 5], top_k=2)
    assert repr(readout) == "LogitReadout(logits [2] of top_k)"
