"""Sweeps of activation patches, beside TransformerLens's one forward pass for each cell.

Its passes are alike, so some of its cells, spread over the sweep, are timed, and their time counts
once for each cell that they stand for. So do those of nnsight, which runs them as one batch.
lensbridge always runs the whole sweep.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks import invocations, rival
from benchmarks.checks import require_close
from benchmarks.report import Row
from benchmarks.specimens import Specimen
from benchmarks.timing import Effort, Spread, Work, interleave
from lensbridge import patching

SAMPLE = 24
"""Cells that stand for all of a sweep that is run one by one."""


SHORT = 32
"""Tokens up to which a pass of few rows wastes most of the processor."""

LONG_BUDGET = 0.2
"""For longer prompts, where only what need not be computed can be saved."""


@dataclass(frozen=True)
class Kind:
    """One of the field's sweeps.

    Args:
        work: for the table.
        function: that runs it.
        activation: what it patches.
        setter: how.
        axes: what it goes over.
        budget: lensbridge's time as a multiple of the other's, for short prompts.
    """

    work: str
    function: str
    activation: str
    setter: str
    axes: tuple[str, ...]
    budget: float


STREAM = Kind(
    "patch resid_pre, layer x pos",
    "get_act_patch_resid_pre",
    "resid_pre",
    "layer_pos_patch_setter",
    ("layer", "pos"),
    0.1,
)
HEADS = Kind(
    "patch head outputs, layer x pos x head",
    "get_act_patch_attn_head_out_by_pos",
    "z",
    "layer_pos_head_vector_patch_setter",
    ("layer", "pos", "head"),
    0.2,
)
PATTERNS = Kind(
    "patch patterns, layer x head x dest",
    "get_act_patch_attn_head_pattern_by_pos",
    "pattern",
    "layer_head_pos_pattern_patch_setter",
    ("layer", "head", "dest_pos"),
    0.2,
)
WHOLE_HEADS = Kind(
    "patch head outputs, layer x head",
    "get_act_patch_attn_head_out_all_pos",
    "z",
    "layer_head_vector_patch_setter",
    ("layer", "head"),
    0.2,
)


def rows(one: Specimen, kinds: tuple[Kind, ...], effort: Effort) -> Iterator[Row]:
    """Measure some sweeps on one model."""
    for kind in kinds:
        yield from _Sweep(one, kind).rows(effort)


@dataclass
class _Sweep:
    """One sweep on one model."""

    one: Specimen
    kind: Kind

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        vocab = self.one.lens.cfg.d_vocab
        self.clean = torch.randint(vocab, self.one.ids.shape, generator=generator)
        self.answers = torch.randint(vocab, (2,), generator=generator)
        _, self.cache = self.one.lens.run_with_cache(self.clean, self.kind.activation)

    def metric(self, logits: Tensor) -> Tensor:
        """The difference of two logits behind the last position."""
        right, wrong = self.answers
        return (logits[:, -1, right] - logits[:, -1, wrong]).mean()

    def ours(self) -> Tensor:
        """The whole sweep."""
        run = getattr(patching, self.kind.function)
        values: Tensor = run(self.one.lens, self.one.ids, self.cache, self.metric)
        return values

    def rows(self, effort: Effort) -> Iterator[Row]:
        """lensbridge as a multiple of each other way."""
        found = self.ours()
        cells = _spread_over(tuple(found.shape))
        share = len(cells) / found.numel()
        ways: dict[str, Work] = {"one run for each cell": lambda: self._single(cells)}
        if rival.installed():
            ways[rival.NAME] = self._rival(cells)
        if invocations.installed() and self.kind is STREAM:
            ways[invocations.NAME] = partial(self._invoked, invocations.Batched(self.one), cells)
        for name, way in ways.items():
            wanted = torch.stack([found[cell] for cell in cells])
            require_close(way(), wanted, f"{self.kind.work} by {name}")
        samples = interleave({"lensbridge": self.ours, **ways}, effort)
        length = self.one.ids.shape[1]
        others = [invocations.NAME] if self.kind is STREAM else []
        for name in ("one run for each cell", rival.NAME, *others):
            work = f"{self.kind.work}, {length} tokens"
            if name not in ways:
                yield Row(work, self.one.name, name, None, missing="not installed")
                continue
            ratio = samples.ratio("lensbridge", name)
            scaled = Spread(*(part * share for part in (ratio.low, ratio.middle, ratio.high)))
            goal = self.kind.budget if length <= SHORT else max(self.kind.budget, LONG_BUDGET)
            budget = goal if name == rival.NAME else None
            yield Row(work, self.one.name, name, scaled, budget)

    def _single(self, cells: list[tuple[int, ...]]) -> Tensor:
        setter = getattr(patching, self.kind.setter)
        done = patching.generic_activation_patch(
            self.one.lens,
            self.one.ids,
            self.cache,
            self.metric,
            setter,
            self.kind.activation,
            index_df=_frame(self.kind.axes, cells),
            exact=True,
        )
        return torch.as_tensor(done)

    def _invoked(self, peer: invocations.Batched, cells: list[tuple[int, ...]]) -> Tensor:
        clean = [self.cache[name] for name in self.cache]
        logits = peer.run([(layer, pos) for layer, pos in cells], clean)
        right, wrong = self.answers
        return (logits[..., right] - logits[..., wrong]).mean(-1)

    def _rival(self, cells: list[tuple[int, ...]]) -> Any:
        theirs, bridge = import_module("transformer_lens.patching"), self.one.bridge
        _, cache = bridge.run_with_cache(self.clean)
        setter, frame = getattr(theirs, self.kind.setter), _frame(self.kind.axes, cells)
        return lambda: theirs.generic_activation_patch(
            bridge,
            self.one.ids,
            cache,
            self.metric,
            setter,
            self.kind.activation,
            index_df=frame,
        )


def _spread_over(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Cells from everywhere in a grid, every layer and every position alike."""
    count = torch.Size(shape).numel()
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:SAMPLE].sort()[0]
    places = torch.unravel_index(chosen, shape)
    return list(zip(*(place.tolist() for place in places), strict=True))


def _frame(axes: tuple[str, ...], cells: list[tuple[int, ...]]) -> Any:
    import pandas

    return pandas.DataFrame(cells, columns=list(axes))
