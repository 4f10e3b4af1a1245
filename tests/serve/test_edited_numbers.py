"""What edits, patches and steering give, against the bare model under plain PyTorch hooks."""

from typing import Any

import pytest
import torch
from serve.bare import as_zero, compare, continued, run, without_head
from serve.site import EIFFEL, GALATA, Site, whole, written
from torch import Tensor, nn

from lensbridge.model import LensModel
from lensbridge.viz.labels import label_of


def test_edits_of_heads_and_mlps(site: Site, bare: Any, ids: Any) -> None:
    edits = [
        {"part": "head", "layer": 2, "index": 2},
        {"part": "mlp", "layer": 1, "action": "scale", "factor": -0.5, "position": 4},
    ]
    found = site.ask("edits", prompt=EIFFEL, edits=edits)
    blocks = bare.transformer.h

    def halved(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[:, 4] *= -0.5
        return out

    after = run(
        bare,
        ids(EIFFEL),
        (blocks[2].attn.c_proj, without_head(2), True),
        (blocks[1].mlp, halved, False),
    )
    compare(found, run(bare, ids(EIFFEL))[-1], after[-1])


def test_a_neuron_and_a_mean(site: Site, bare: Any, ids: Any) -> None:
    edits = [
        {"part": "neuron", "layer": 3, "index": 497, "position": 8},
        {"part": "attn", "layer": 0, "action": "mean"},
    ]
    found = site.ask("edits", prompt=EIFFEL, edits=edits)
    blocks = bare.transformer.h

    def silent(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[:, 8, 497] = 0
        return out

    def averaged(module: nn.Module, args: Any, out: Any) -> Any:
        mean = out[0][:, 1:].mean(1, keepdim=True)  # without BOS
        return (mean.expand_as(out[0]), *out[1:])

    hooks = [(blocks[3].mlp.act, silent, False), (blocks[0].attn, averaged, False)]
    compare(found, run(bare, ids(EIFFEL))[-1], run(bare, ids(EIFFEL), *hooks)[-1])


@pytest.mark.parametrize("position", [2, None])
def test_a_patch(site: Site, bare: Any, ids: Any, position: int | None) -> None:
    edit = {"part": "stream", "layer": 1, "action": "patch", "source": GALATA}
    found = site.ask("edits", prompt=EIFFEL, edits=[{**edit, "position": position}])
    block = bare.transformer.h[1]
    kept: list[Tensor] = []
    run(bare, ids(GALATA), (block, lambda module, args: kept.append(args[0]), True))

    def patch(module: nn.Module, args: Any) -> Any:
        where = slice(None) if position is None else position
        value = args[0].clone()
        value[:, where] = kept[0][:, where]
        return (value, *args[1:])

    after = run(bare, ids(EIFFEL), (block, patch, True))
    compare(found, run(bare, ids(EIFFEL))[-1], after[-1])


def test_ablations_of_every_head_and_mlp(site: Site, bare: Any, ids: Any) -> None:
    events = site.events("ablation", prompt=EIFFEL, target=" Paris")
    start, paris = events[0], events[0]["target"]["id"]
    base, wanted = float(run(bare, ids(EIFFEL))[-1, paris]), []
    for layer, column in start["cells"]:
        block, label = bare.transformer.h[layer], start["columns"][column]["label"]
        hook = (
            (block.mlp, as_zero, False)
            if label == "MLP"
            else (block.attn.c_proj, without_head(int(label.removeprefix("head "))), True)
        )
        wanted.append(float(run(bare, ids(EIFFEL), hook)[-1, paris]) - base)
    assert start["logit"] == pytest.approx(base, abs=1e-4)
    assert len(wanted) == 20
    assert whole(events) == pytest.approx(wanted, abs=2e-3)


def test_comparison_of_streams(site: Site, bare: Any, ids: Any) -> None:
    events = site.events("comparison", clean=EIFFEL, corrupted=GALATA)
    start = events[0]
    answer, wrong = start["answer"]["id"], start["wrong"]["id"]

    def difference(logits: Tensor) -> float:
        return float(logits[-1, answer] - logits[-1, wrong])

    clean, corrupted = (difference(run(bare, ids(text))) for text in (EIFFEL, GALATA))
    assert [start["clean"], start["corrupted"]] == pytest.approx([clean, corrupted], abs=1e-3)
    with torch.no_grad():
        streams = bare(ids(EIFFEL), output_hidden_states=True).hidden_states
    wanted = []
    for layer, position in start["cells"]:

        def patch(module: nn.Module, args: Any, layer: int = layer, at: int = position) -> Any:
            value = args[0].clone()
            value[:, at] = streams[layer][:, at]
            return (value, *args[1:])

        hook = (bare.transformer.h[layer], patch, True)
        patched = difference(run(bare, ids(GALATA), hook))
        wanted.append((patched - corrupted) / (clean - corrupted))
    assert len(wanted) == 36
    assert whole(events) == pytest.approx(wanted, abs=1e-3)


def test_comparison_of_heads(site: Site, bare: Any, ids: Any) -> None:
    events = site.events("comparison", clean=EIFFEL, corrupted=GALATA, what="z")
    start, values = events[0], whole(events)
    at = start["cells"].index([2, 2])
    kept: list[Tensor] = []
    proj = bare.transformer.h[2].attn.c_proj
    run(bare, ids(EIFFEL), (proj, lambda module, args: kept.append(args[0]), True))

    def patch(module: nn.Module, args: Any) -> Any:
        value = args[0].clone()
        value[..., 64:96] = kept[0][..., 64:96]
        return (value,)

    logits = run(bare, ids(GALATA), (proj, patch, True))[-1]
    patched = float(logits[start["answer"]["id"]] - logits[start["wrong"]["id"]])
    wanted = (patched - start["corrupted"]) / (start["clean"] - start["corrupted"])
    assert values[at] == pytest.approx(wanted, abs=1e-3)


def test_steering(site: Site, model: LensModel, bare: Any, ids: Any) -> None:
    question = {"positive": EIFFEL, "negative": GALATA, "layer": 2, "strength": 1.5}
    events = site.events("steering", prompt=GALATA, new_tokens=7, **question)
    kept: dict[str, Tensor] = {}
    block = bare.transformer.h[2]

    def value(out: Any) -> Tensor:
        return out[0] if isinstance(out, tuple) else out

    for text in (EIFFEL, GALATA):

        def keep(module: nn.Module, args: Any, out: Any, text: str = text) -> None:
            kept[text] = value(out)[0, -1]

        run(bare, ids(text), (block, keep, False))
    vector = kept[EIFFEL] - kept[GALATA]

    def steer(module: nn.Module, args: Any, out: Any) -> Any:
        moved = value(out) + 1.5 * vector
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    start, texts = events[0], written(events)
    compare(start, run(bare, ids(GALATA))[-1], run(bare, ids(GALATA), (block, steer, False))[-1])
    assert start["norm"] == pytest.approx(float(vector.norm()), abs=1e-3)
    for side, hooks in (("plain", []), ("steered", [(block, steer, False)])):
        made = continued(bare, ids(GALATA), 7, *hooks)
        assert texts[side] == [label_of(model.to_single_str_token(one)) for one in made]
