"""Head detection: scores by hand from the bare model's own attention, and heads that are known."""

from functools import cache
from typing import Any

import pytest
import torch
from described import of_class
from tiny_models import Shape, build, left_padded, tokens
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.analysis import (
    compute_head_attention_similarity_score,
    detect_head,
    get_duplicate_token_head_detection_pattern,
    get_induction_head_detection_pattern,
    get_previous_token_head_detection_pattern,
    get_supported_heads,
)
from lensbridge.errors import InputError, LensbridgeError
from lensbridge.evals import repeated_tokens
from lensbridge.inputs.random import inputs_for

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("previous_token_head", "duplicate_token_head", "induction_head")


@cache
def demo() -> LensModel:
    return lensbridge.load("demo")


def attention_of(hf: Any, **call: Tensor) -> list[Tensor]:
    """The bare model's own patterns `[batch, head, query, key]`, layer by layer."""
    with torch.no_grad():
        return list(hf(**call, output_attentions=True).attentions)


def wanted_attention(kind: str, ids: list[int]) -> list[list[float]]:
    """What a kind of head attends to, by its definition."""
    size = len(ids)
    found = [[0.0] * size for _ in range(size)]
    for q in range(size):
        for k in range(q):
            if kind == "previous_token_head":
                found[q][k] = float(k == q - 1)
            elif kind == "duplicate_token_head":
                found[q][k] = float(ids[k] == ids[q])
    if kind == "induction_head":
        for q in range(size):
            for k in range(1, q + 1):
                found[q][k] = float(ids[k - 1] == ids[q] and k - 1 < q)
    return found


def score_by_hand(
    pattern: Tensor, wanted: list[list[float]], bos: bool, current: bool, measure: str
) -> float:
    """The definition, a pair of positions at a time."""
    hit = total = off = 0.0
    size = len(wanted)
    for q in range(size):
        for k in range(size):
            if (bos and k == 0) or (current and k == q):
                continue
            weight = float(pattern[q, k])
            hit += weight * wanted[q][k]
            total += weight
            off += abs(weight - wanted[q][k])
    return hit / total if measure == "mul" else 1 - off / size


IDS = torch.tensor([[5, 9, 5, 9, 7, 5, 9]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_patterns_by_their_definitions(kind: str) -> None:
    by_name = {
        "previous_token_head": get_previous_token_head_detection_pattern,
        "duplicate_token_head": get_duplicate_token_head_detection_pattern,
        "induction_head": get_induction_head_detection_pattern,
    }
    for ids in (IDS[0], tokens(1, 9)[0]):
        assert by_name[kind](ids).tolist() == wanted_attention(kind, ids.tolist())
    both = torch.cat([IDS, IDS.flip(1)])
    assert torch.equal(by_name[kind](both)[1], by_name[kind](both[1]))
    assert get_supported_heads() == KINDS


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("measure", ["mul", "abs"])
def test_scores_by_hand(family: str, kind: Any, measure: Any) -> None:
    hf = build(Shape(family, kernel="eager"))
    model = lensbridge.load(hf)
    attentions = attention_of(hf, input_ids=IDS)
    wanted = wanted_attention(kind, IDS[0].tolist())
    for bos, current in ((False, False), (True, False), (True, True)):
        found = detect_head(
            model, IDS, kind, exclude_bos=bos, exclude_current_token=current, error_measure=measure
        )
        by_hand = [
            [score_by_hand(head, wanted, bos, current, measure) for head in layer[0]]
            for layer in attentions
        ]
        torch.testing.assert_close(found, torch.tensor(by_hand))


def test_padding_and_several_rows() -> None:
    model = lensbridge.load(build(Shape("llama")))
    ids, mask = left_padded()
    rows = [row[real.bool()] for row, real in zip(ids, mask, strict=True)]
    for kind in KINDS:
        alone = torch.stack([detect_head(model, row, kind) for row in rows])
        together = detect_head(model, ids, kind, attention_mask=mask)
        torch.testing.assert_close(together, alone.mean(0))
        behind = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        right = torch.arange(7) < torch.tensor([[len(row)] for row in rows])
        moved = detect_head(model, behind, kind, attention_mask=right.long())
        torch.testing.assert_close(moved, alone.mean(0))


def test_the_known_heads_of_the_demo_model() -> None:
    ids = repeated_tokens(demo(), batch_size=4, subseq_len=20, seed=0)
    scores = {kind: detect_head(demo(), ids, kind) for kind in KINDS}
    layer, head = divmod(int(scores["induction_head"].argmax()), 4)
    assert (layer, head) == (2, 2)
    assert float(scores["induction_head"][layer, head]) > 0.3
    assert float(scores["induction_head"][0].max()) < 0.15
    layer, head = divmod(int(scores["previous_token_head"].argmax()), 4)
    assert (layer, head) == (1, 1)


def test_a_pattern_of_ones_own() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    _, cache = model.run_with_cache(IDS)
    own = cache["pattern", 1][0, 2]
    found = detect_head(model, IDS, own, error_measure="abs")
    assert float(found[1, 2]) == pytest.approx(1.0, abs=1e-6)
    assert bool((found <= 1.0 + 1e-6).all())
    assert found.argmax() == 6
    again = detect_head(model, IDS, own, cache=cache, error_measure="abs")
    assert torch.equal(again, found)
    without = cache.remove_batch_dim()
    assert torch.equal(detect_head(model, IDS, own, cache=without, error_measure="abs"), found)
    two = torch.cat([IDS, IDS.flip(1)])
    _, both = model.run_with_cache(two)
    patterns = both["pattern", 0][:, 3]
    assert float(detect_head(model, two, patterns, error_measure="abs")[0, 3]) > 1 - 1e-6


def test_only_the_heads_that_are_asked_for() -> None:
    model = lensbridge.load(build(Shape("gpt2", layers=3)))
    everything = detect_head(model, IDS, "induction_head")
    for heads in ([(0, 1), (2, 3)], {0: [1], 2: [3]}):
        found = detect_head(model, IDS, "induction_head", heads=heads)
        assert found[0, 1] == everything[0, 1]
        assert found[2, 3] == everything[2, 3]
        assert int((found == -1).sum()) == 10
    computed = []
    with model.hooks([(lambda name: name.endswith("pattern"), lambda p, hook: computed.append(1))]):
        detect_head(model, IDS, "induction_head", heads=[(1, 0)])
    assert len(computed) == 3  # what listens besides hears every layer


def test_text() -> None:
    text = "The Eiffel Tower is in the city of"
    by_text = detect_head(demo(), text, "previous_token_head")
    by_ids = detect_head(demo(), demo().to_tokens(text), "previous_token_head")
    assert torch.equal(by_text, by_ids)
    several = detect_head(demo(), [text, "The Galata Tower can be found in"], "induction_head")
    assert several.shape == (4, 4)


def test_hybrids_and_sinks() -> None:
    jamba = of_class("JambaForCausalLM")
    ids = inputs_for(jamba.hf_model)["input_ids"]
    there = [block.attn is not None for block in jamba.native.blocks]
    scores = detect_head(jamba, ids, "previous_token_head")
    assert [bool((row != -1).any()) for row in scores] == there
    assert not all(there)
    oss = of_class("GptOssForCausalLM")  # whose patterns sum to less than 1
    scores = detect_head(oss, inputs_for(oss.hf_model)["input_ids"], "previous_token_head")
    assert bool(((scores >= 0) & (scores <= 1)).all())
    bert = of_class("BertForMaskedLM")
    given = inputs_for(bert.hf_model)["input_ids"]
    ahead = torch.ones(len(given[0]) - 1).diag(1)  # which only an encoder can show
    assert bool((detect_head(bert, given, ahead) > 0).all())
    mamba = of_class("MambaForCausalLM")
    with pytest.raises(LensbridgeError, match="no attention"):
        detect_head(mamba, given, "induction_head")
    with pytest.raises(LensbridgeError, match="two stacks"):
        detect_head(of_class("T5ForConditionalGeneration"), given, "induction_head")


def test_no_attention_left_scores_nothing() -> None:
    to_bos = torch.zeros(2, 3, 3)
    to_bos[:, :, 0] = 1.0
    how: Any = {"exclude_bos": True, "exclude_current_token": False, "error_measure": "mul"}
    before = get_previous_token_head_detection_pattern(torch.arange(3))
    assert compute_head_attention_similarity_score(to_bos, before, **how).tolist() == [0.0, 0.0]
    assert isinstance(compute_head_attention_similarity_score(to_bos[0], before, **how), float)
    assert bool((to_bos[:, :, 0] == 1).all())  # what was passed stays as it is


def test_refusals() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"detection_pattern": "induction"}, "'induction' is not a kind of head"),
        ({"detection_pattern": torch.zeros(3, 3)}, "there are 7 tokens"),
        ({"detection_pattern": torch.ones(7, 7)}, "later tokens"),
        ({"error_measure": "l2"}, "'mul' or 'abs'"),
        ({"heads": [(2, 0)]}, "Layer 2 has no head 0"),
        ({"heads": []}, "heads is empty"),
        ({"seq": IDS[:, :1]}, "detection needs two"),
    ]
    for arguments, message in wrong:
        call: dict[str, Any] = {"seq": IDS, "detection_pattern": "induction_head", **arguments}
        with pytest.raises(InputError, match=message):
            detect_head(model, **call)
    _, cache = model.run_with_cache(IDS)
    with pytest.raises(InputError, match="other tokens"):
        detect_head(model, IDS + 1, "induction_head", cache=cache)
    _, cache = model.run_with_cache(IDS, pos_slice=-1)
    with pytest.raises(InputError, match="run without pos_slice"):
        detect_head(model, IDS, "induction_head", cache=cache)
