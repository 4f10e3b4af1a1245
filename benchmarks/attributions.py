"""Attribution patching, beside the passes that it needs and beside TransformerLens's."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks import rival
from benchmarks.checks import require_close
from benchmarks.report import Row
from benchmarks.specimens import Specimen
from benchmarks.timing import Effort, Work, interleave
from lensbridge.causal import attribution_patch

PASSES = "two bare forward passes and a backward"
BUDGET = 1.3


def rows(one: Specimen, effort: Effort) -> Iterator[Row]:
    """Nodes and edges of one model."""
    pair = _Pair(one)
    for granularity in ("node", "edge"):
        ways: dict[str, Work] = {PASSES: pair.passes}
        theirs = pair.rival(granularity)
        if theirs is not None:
            ways[rival.NAME] = theirs
        with torch.enable_grad():
            samples = interleave({"lensbridge": lambda g=granularity: pair.ours(g), **ways}, effort)  # type: ignore[misc]
        work = f"attribute to {granularity}s, {one.ids.shape[1]} tokens"
        for name in (PASSES, rival.NAME):
            if name in ways:
                budget = BUDGET if name == PASSES else None
                yield Row(work, one.name, name, samples.ratio("lensbridge", name), budget)
            else:
                why = "refuses this model" if rival.installed() else "not installed"
                yield Row(work, one.name, name, None, missing=why)


class _Pair:
    """A model with a clean and a corrupted prompt."""

    def __init__(self, one: Specimen) -> None:
        self.one = one
        generator = torch.Generator().manual_seed(1)
        self.clean = torch.randint(one.lens.cfg.d_vocab, one.ids.shape, generator=generator)

    def metric(self, logits: Tensor) -> Tensor:
        """The difference of two logits behind the last position."""
        return logits[0, -1, 5] - logits[0, -1, 9]

    def ours(self, granularity: Any) -> Any:
        """Scores of every position of every node, or of every edge."""
        return attribution_patch(
            self.one.lens, self.clean, self.one.ids, self.metric, granularity=granularity
        )

    def passes(self) -> None:
        """What any attribution needs: the clean run, and the corrupted one with its gradient."""
        hf = self.one.hf
        with torch.no_grad():
            hf(self.clean)
        embeds = hf.get_input_embeddings()(self.one.ids).detach().requires_grad_()
        torch.autograd.grad(self.metric(hf(inputs_embeds=embeds).logits), embeds)

    def rival(self, granularity: str) -> Work | None:
        """TransformerLens's, where it runs on this model and gives the same total."""
        if not rival.installed():
            return None
        theirs: Any = import_module("transformer_lens.tools.analysis.attribution_patching")
        config = theirs.EdgeAttributionConfig(granularity)

        def run() -> Any:
            return theirs.attribution_patch(
                self.one.bridge, self.clean, self.one.ids, self.metric, config
            )

        try:
            with torch.enable_grad():
                found = run()
        except (NotImplementedError, ValueError, RuntimeError):
            return None  # edges of grouped heads
        with torch.enable_grad():
            ours = self.ours(granularity)
        scores = found.node_scores if granularity == "node" else found.edge_scores
        mine = ours.node_scores if granularity == "node" else ours.edge_scores
        total = torch.tensor([sum(scores.values())]), torch.tensor([sum(mine.values())])
        require_close(*total, f"attribution to {granularity}s")
        return run
