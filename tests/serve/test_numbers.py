"""What views read, against the bare model under plain PyTorch hooks."""

from base64 import b64decode
from typing import Any

import pytest
import torch
from serve.bare import near, run
from serve.site import EIFFEL, Site
from torch import Tensor, nn


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
