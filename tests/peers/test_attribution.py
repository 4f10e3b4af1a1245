"""Attribution and faithfulness beside TransformerLens 4.3's, on the same weights."""

import copy
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

import lensbridge
from lensbridge.causal import AttributionConfig, Node, attribution_patch, faithfulness

theirs = pytest.importorskip("transformer_lens.tools.analysis.attribution_patching")
builder = pytest.importorskip("transformer_lens.model_bridge.sources._bridge_builder")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        int(version("transformer-lens").partition(".")[0]) < 4,
        reason="before 4.0 TransformerLens declares attribution and does not implement it",
    ),
]

CLEAN = torch.tensor([[9, 23, 41, 17, 60, 33, 12]])
CORRUPT = torch.tensor([[9, 23, 5, 17, 60, 33, 12]])
OURS = {"embed": "input", "attn_head_out": "head", "mlp_out": "mlp", "mlp_in": "mlp"}


def metric(logits: Tensor) -> Tensor:
    return logits[0, -1, 7] - logits[0, -1, 9]


def models(name: str) -> tuple[lensbridge.LensModel, Any]:
    """The same random weights here and there."""
    hf: nn.Module
    if name == "gpt2":
        hf = GPT2LMHeadModel(
            GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=4, n_positions=40)
        )
    else:
        hf = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=61,
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=48,
                max_position_embeddings=40,
            )
        )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.eval().parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.4 if parameter.ndim > 1 else parameter + noise * 0.2)
    bridge = builder.build_bridge_from_module(
        copy.deepcopy(hf), type(hf).__name__, hf_config=hf.config
    )
    return lensbridge.load(hf), bridge.eval()


def ours(node: Any) -> Node:
    """Their node as one of ours."""
    if node.kind in OURS:
        return Node(OURS[node.kind], node.layer, node.head, None, node.position)  # type: ignore[arg-type]
    if node.kind == "logits":
        return Node("logits", position=node.position)
    return Node("head", node.layer, node.head, node.kind[0], node.position)


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_scores_and_faithfulness_are_theirs(name: str) -> None:
    model, bridge = models(name)
    mine = attribution_patch(model, CLEAN, CORRUPT, metric, positions=True).node_scores
    nodes = theirs.attribution_patch(bridge, CLEAN, CORRUPT, metric).node_scores
    assert {ours(node) for node in nodes} == set(mine)
    for node, score in nodes.items():
        assert mine[ours(node)] == pytest.approx(score, abs=1e-5)

    wired = attribution_patch(
        model, CLEAN, CORRUPT, metric, AttributionConfig("edge"), positions=True
    )
    result = theirs.attribution_patch(
        bridge, CLEAN, CORRUPT, metric, theirs.EdgeAttributionConfig("edge")
    )
    assert {(ours(a), ours(b)) for a, b in result.edge_scores} == set(wired.edge_scores)
    for (sender, receiver), score in result.edge_scores.items():
        assert wired.edge_scores[ours(sender), ours(receiver)] == pytest.approx(score, abs=1e-5)

    for k in (10, 200):
        edges = result.top_edges(k)
        there = theirs.faithfulness(bridge, CLEAN, CORRUPT, metric, edges)
        circuit = [(ours(a), ours(b)) for a, b, _ in edges]
        here = faithfulness(model, CLEAN, CORRUPT, metric, circuit)
        assert here.recovered == pytest.approx(there.recovered, abs=1e-4)
        assert here.total == there.total_edges
