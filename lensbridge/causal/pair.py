"""Two inputs that are compared: checked against each other, and run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lensbridge.cache import ActivationCache
from lensbridge.causal.differentiable_pass import DifferentiablePass, Edits
from lensbridge.causal.gradient_gates import GradientGates
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prepare import Prepared
from lensbridge.sweeps.alignment import check_fit
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.metric import MetricFunction, Metrics, Reduce

Direction = Literal["denoise", "noise"]
"""denoise: the corrupted input is run, and clean values are put into it. noise: the reverse."""


@dataclass(frozen=True)
class Pair:
    """An input that is run, and another whose values are put into it.

    Args:
        model: the model, in eval mode.
        base: the input that is run and differentiated.
        other: where the values come from.
        metrics: what is measured.
    """

    model: HookedModel
    base: Any
    other: Any
    metrics: Metrics

    @classmethod
    def of(
        cls,
        model: HookedModel,
        clean: Any,
        corrupt: Any,
        metric: MetricFunction | Mapping[str, MetricFunction],
        reduce: Reduce,
        direction: Direction = "denoise",
        *,
        single: bool = False,
    ) -> "Pair":
        """A pair, checked as far as can be without running anything.

        Args:
            model: the model.
            clean: an input.
            corrupt: another.
            metric: one, or several by name.
            reduce: as in `lensbridge.patching`.
            direction: which of the two is run.
            single: whether there has to be one metric, by which parts are ranked or left out.

        Raises:
            InputError: inputs that do not lie over each other, several metrics where there has to
                be one, or an unknown word.
        """
        if direction not in ("denoise", "noise"):
            raise InputError(f"direction is 'denoise' or 'noise', not {direction!r}.")
        if single and isinstance(metric, Mapping):
            raise InputError(
                f"One metric decides here, and {len(metric)} were given: {', '.join(metric)}. "
                "Pass one of them; attribution_patch and faithfulness take several."
            )
        check_aligned(model, clean, corrupt)
        base, other = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
        return cls(model, base, other, Metrics.of(metric, reduce))

    @property
    def of_embeddings(self) -> bool:
        """Whether an input is embeddings, so that no token is embedded."""
        prepare = self.model.prepare
        return any(prepare(one).embeds is not None for one in (self.base, self.other))

    def run_other(self, points: Iterable[str]) -> BaseRun:
        """Run the other input; its metric has to have the right shape.

        Raises:
            InputError: the model is in training mode, or the metric gives another shape.
        """
        base = BaseRun.run(self.model, self.other, points)
        self.metrics.baseline(base.logits)
        return base

    def run_base(
        self,
        at: Iterable[str],
        reads: Iterable[str] = (),
        modules: Iterable[nn.Module] = (),
        edits: Edits = (),
        gates: GradientGates | None = None,
    ) -> DifferentiablePass:
        """Run the base input forward; arguments as in `DifferentiablePass.run`."""
        return DifferentiablePass.run(self.model, self.base, at, reads, modules, edits, gates)

    def measure(self, logits: Tensor) -> Tensor:
        """The metric where there is one, `[]` or `[batch]`."""
        return self.metrics.measure(logits)[0]


def check_aligned(model: HookedModel, clean: Any, corrupt: Any) -> None:
    """Refuse two inputs whose positions do not lie over each other.

    Raises:
        InputError: other lengths, with what could be aligned; padding at other places; or another
            number of examples.
    """
    here, there = (model.prepare(one) for one in (clean, corrupt))
    rows = [one.tokens if one.tokens is not None else one.embeds for one in (here, there)]
    if rows[0] is not None and rows[1] is not None:
        _check_lengths(model, corrupt, [here, there], [row for row in rows if row is not None])
        _check_padding(here, there)
    for name in here.kwargs.keys() & there.kwargs.keys():
        shapes = [_shape(one.kwargs[name]) for one in (here, there)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{name} has shape {shapes[0]} in the clean input and {shapes[1]} in the corrupted "
                "one: they have to be alike, entry for entry."
            )


def _check_lengths(
    model: HookedModel, corrupt: Any, prepared: Sequence[Prepared], rows: Sequence[Tensor]
) -> None:
    point = model.vocabulary.canonical("hook_embed")
    blank = [torch.empty(*row.shape[:2], 0) for row in rows]
    cache = ActivationCache(
        {point: blank[1]}, model.vocabulary, model=model, tokens=prepared[1].tokens
    )
    check_fit(BaseRun(model, corrupt, blank[1], cache), point, blank[0], prepared[0].tokens)
    if len(rows[0]) != len(rows[1]):
        raise InputError(
            f"{len(rows[0])} clean and {len(rows[1])} corrupted examples: they have to be as many."
        )


def _check_padding(here: Prepared, there: Prepared) -> None:
    one, other = padding_of(here), padding_of(there)
    if one is None or other is None or torch.equal(one, other):
        return
    row = int((one != other).any(-1).nonzero()[0])
    counts = int(one[row].sum()), int(other[row].sum())
    raise InputError(
        f"Example {row} has {counts[0]} positions in the clean input and {counts[1]} in the "
        "corrupted one, padded at other places, and which belong together is not something to "
        "guess. Use prompts that are as long as each other, example by example."
    )


def padding_of(given: Prepared) -> Tensor | None:
    """Where an input has tokens; None where its mask says something else.

    Shapes: `[batch, pos]`
    """
    whole = given.tokens if given.tokens is not None else given.embeds
    if whole is None or (given.mask is not None and given.mask.shape != whole.shape[:2]):
        return None
    if given.mask is None:
        return torch.ones(whole.shape[:2], dtype=torch.bool, device=whole.device)
    return given.mask.bool()


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
