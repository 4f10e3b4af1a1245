"""What each view shows, against the bare model under plain PyTorch hooks."""

from base64 import b64decode
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from serve.site import EIFFEL, GALATA, Site, whole
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lensbridge.demo import FOLDER
from lensbridge.model import LensModel
from lensbridge.viz.labels import label_of


@pytest.fixture(scope="module")
def bare() -> Any:
    """The demo model without lensbridge."""
    return AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def ids(model: LensModel) -> Callable[[str], Tensor]:
    return lambda text: torch.tensor([model.tokenizer(f"<|endoftext|>{text}")["input_ids"]])


@torch.no_grad()
def run(bare: Any, ids: Tensor, *hooks: tuple[nn.Module, Any, bool]) -> Tensor:
    """Logits with hooks: `(module, fn, whether before it)`."""
    with ExitStack() as stack:
        for module, fn, before in hooks:
            add = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(add(fn).remove)
        return bare(ids).logits[0]


def near(found: Any, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return torch.allclose(torch.tensor(found), wanted.float(), atol=tolerance, rtol=1e-4)


def without_head(head: int, size: int = 32) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        value = args[0].clone()
        value[..., head * size : (head + 1) * size] = 0
        return (value,)

    return hook


def as_zero(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return torch.zeros_like(out)


@pytest.mark.parametrize("position", [None, 0, 5])
def test_predictions(site: Site, bare: Any, ids: Any, position: int | None) -> None:
    found = site.ask("predictions", prompt=EIFFEL, position=position, k=9)
    logits = run(bare, ids(EIFFEL))[-1 if position is None else position]
    top = logits.softmax(-1).topk(9)
    assert [row["id"] for row in found["rows"]] == top.indices.tolist()
    assert near([row["probability"] for row in found["rows"]], top.values)
    assert near([row["logit"] for row in found["rows"]], logits[top.indices])
    chances = logits.double().softmax(-1)
    assert found["entropy"] == pytest.approx(float(-(chances * chances.log()).sum()), abs=1e-4)


def test_how_expected_each_token_was(site: Site, bare: Any, ids: Any) -> None:
    found = site.ask("predictions", prompt=EIFFEL)
    chances = run(bare, ids(EIFFEL)).softmax(-1)
    wanted = [chances[i, one] for i, one in enumerate(ids(EIFFEL)[0, 1:])]
    assert near(found["expected"], torch.stack(wanted))


def test_tokens_are_told_as_text_with_their_spaces(site: Site) -> None:
    found = site.ask("predictions", prompt=EIFFEL)
    assert found["tokens"][:4] == ["<|endoftext|>", "The", "·Eiffel", "·Tower"]
    assert found["rows"][0]["label"] == "·Paris"


def test_the_logit_lens(site: Site, bare: Any, ids: Any) -> None:
    found = site.ask("lens", prompt=EIFFEL, k=4)
    with torch.no_grad():
        streams = bare(ids(EIFFEL), output_hidden_states=True).hidden_states[:-1]
        rows = [bare.lm_head(bare.transformer.ln_f(stream))[0] for stream in streams]
    rows.append(run(bare, ids(EIFFEL)))
    chances = torch.stack(rows).softmax(-1)
    top = chances.topk(4)
    assert torch.equal(torch.tensor(found["ids"]), top.indices)
    assert near(found["probabilities"], top.values)
    assert near(found["entropy"], torch.special.entr(chances.double()).sum(-1), 1e-3)
    assert found["rows"] == [*(f"before layer {i}" for i in range(4)), "output"]
    assert found["names"][str(found["ids"][-1][-1][0])] == "·Paris"


def test_the_lens_between_attention_and_mlp(site: Site, bare: Any, ids: Any) -> None:
    found = site.ask("lens", prompt=EIFFEL, middle=True)
    kept = []
    keep = (bare.transformer.h[2].ln_2, lambda module, args: kept.append(args[0]), True)
    run(bare, ids(EIFFEL), keep)
    wanted = bare.lm_head(bare.transformer.ln_f(kept[0]))[0].softmax(-1).max(-1).values
    row = found["rows"].index("within layer 2")
    assert near([cell[0] for cell in found["probabilities"][row]], wanted.detach())


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (2, 3), (3, 1)])
def test_attention(site: Site, bare: Any, ids: Any, layer: int, head: int) -> None:
    found = site.ask("attention", prompt=EIFFEL, layer=layer, head=head)
    with torch.no_grad():
        patterns = bare(ids(EIFFEL), output_attentions=True).attentions[layer][0]
    assert near(found["pattern"], patterns[head], 1e-5)
    small = torch.tensor([list(b64decode(one)) for one in found["strip"]]) / 255
    assert near(small.tolist(), patterns.flatten(1), 1 / 500)
    assert found["heads"] == len(patterns) == 4


def test_neurons(site: Site, bare: Any, ids: Any) -> None:
    kept = []
    keep = (bare.transformer.h[1].mlp.act, lambda module, args, out: kept.append(out[0]), False)
    run(bare, ids(EIFFEL), keep)
    found = site.ask("neurons", prompt=EIFFEL, layer=1, neuron=37, position=3, k=5)
    assert near(found["activations"], kept[0][:, 37], 1e-5)
    top = kept[0][3].abs().topk(5).indices
    assert [row["neuron"] for row in found["top"]] == top.tolist()
    assert near([row["activation"] for row in found["top"]], kept[0][3, top], 1e-5)
    assert site.ask("neurons", prompt=EIFFEL, layer=1, position=3)["neuron"] == int(top[0])


def test_attribution(site: Site, bare: Any, ids: Any) -> None:
    """The final LayerNorm is linear once its scale is held, so each part's share is a product."""
    written: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            value = out[0] if isinstance(out, tuple) else out
            written[name] = value.reshape(-1, 128)[-1].double()

        return hook

    core = bare.transformer
    parts = {"token embedding": core.wte, "position embedding": core.wpe}
    for i, block in enumerate(core.h):
        parts |= {f"attention {i}": block.attn, f"MLP {i}": block.mlp}
    hooks = [(module, keep(name), False) for name, module in parts.items()]
    logits = run(bare, ids(EIFFEL), *hooks)[-1]
    stream = sum(written.values())
    scale = (stream.var(unbiased=False) + core.ln_f.eps).sqrt()
    found = site.ask("attribution", prompt=EIFFEL, target=" Rome")
    rome = found["target"]["id"]
    direction = core.ln_f.weight.double() * bare.lm_head.weight[rome].double()
    wanted = [
        float(((one - one.mean()) / scale * direction).sum().detach()) for one in written.values()
    ]
    assert [row["label"] for row in found["rows"]] == list(written)
    assert [row["value"] for row in found["rows"]] == pytest.approx(wanted, abs=1e-3)
    assert found["logit"] == pytest.approx(float(logits[rome]), abs=1e-3)


@pytest.mark.parametrize("unit", ["component", "head", "layer"])
def test_attributions_sum_to_the_difference(site: Site, bare: Any, ids: Any, unit: str) -> None:
    found = site.ask("attribution", prompt=EIFFEL, target=" Paris", against=" Rome", unit=unit)
    logits = run(bare, ids(EIFFEL))[-1]
    wanted = float(logits[found["target"]["id"]] - logits[found["against"]["id"]])
    total = sum(row["value"] for row in found["rows"]) + found["bias"]
    assert total == pytest.approx(wanted, abs=1e-3)


def compare(found: dict[str, Any], before: Tensor, after: Tensor) -> None:
    told = [row["id"] for row in found["rows"]]
    assert set(told) >= {*before.topk(5).indices.tolist(), *after.topk(5).indices.tolist()}
    for i, logits in enumerate((before, after)):
        assert near([row["logit"][i] for row in found["rows"]], logits[told])
        assert near([row["probability"][i] for row in found["rows"]], logits.softmax(-1)[told])


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
    events = site.events("steering", prompt=GALATA, new_tokens=4, **question)
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

    start, texts = events[0], {e["side"]: e["labels"] for e in events if e["type"] == "text"}
    compare(start, run(bare, ids(GALATA))[-1], run(bare, ids(GALATA), (block, steer, False))[-1])
    assert start["norm"] == pytest.approx(float(vector.norm()), abs=1e-3)
    for side, hooks in (("plain", []), ("steered", [(block, steer, False)])):
        made = continued(bare, ids(GALATA), 4, *hooks)
        assert texts[side] == [label_of(model.to_single_str_token(one)) for one in made]


def continued(bare: Any, ids: Tensor, count: int, *hooks: Any) -> list[int]:
    """The likeliest tokens one after the other, up to the end of the text."""
    made: list[int] = []
    while len(made) < count and bare.config.eos_token_id not in made:
        row = torch.cat([ids, torch.tensor([made], dtype=torch.long)], -1)
        made.append(int(run(bare, row, *hooks)[-1].argmax()))
    return made
