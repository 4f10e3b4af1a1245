"""The two inputs of an attribution: checks that they correspond, and their runs."""

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
from lensbridge.inputs.position_labels import PositionLabels
from lensbridge.inputs.prepare import Prepared
from lensbridge.sweeps.alignment import check_fit
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.metric import MetricFunction, Metrics, Reduce

Direction = Literal["denoise", "noise"]
"""denoise: the corrupted input is run and patched with clean values. noise: the reverse."""


@dataclass(frozen=True)
class Pair:
    """An input that is run, and another whose values it is patched with.

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
        """A pair, after the checks that need no run.

        Args:
            model: the model.
            clean: an input.
            corrupt: another.
            metric: one, or several by name.
            reduce: as in `lensbridge.patching`.
            direction: which of the two is run.
            single: whether only one metric is allowed, because parts are ranked or removed by it.

        Raises:
            InputError: inputs whose positions do not correspond, several metrics where one is
                allowed, or an unknown direction.
        """
        if direction not in ("denoise", "noise"):
            raise InputError(f"direction is 'denoise' or 'noise', not {direction!r}.")
        if single and isinstance(metric, Mapping):
            raise InputError(
                f"{len(metric)} metrics were given ({', '.join(metric)}), and this takes one. Only "
                "attribution_patch and faithfulness take several."
            )
        check_aligned(model, clean, corrupt)
        base, other = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
        return cls(model, base, other, Metrics.of(metric, reduce, model, base))

    @property
    def of_embeddings(self) -> bool:
        """Whether one of the inputs is embeddings rather than tokens."""
        prepare = self.model.prepare
        return any(prepare(one).embeds is not None for one in (self.base, self.other))

    @property
    def positions(self) -> PositionLabels | None:
        """The tokens of the base input as labels of positions."""
        if self.model.native.is_encoder_decoder:
            return None
        prepared = self.model.prepare(self.base)
        return PositionLabels.of(self.model.tokens, prepared.tokens, prepared.mask)

    def run_other(self, points: Iterable[str]) -> BaseRun:
        """Run the other input and check the shape of its metric.

        Raises:
            InputError: the model is in training mode, or the metric has a wrong shape.
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
        """The first metric, `[]` or `[batch]`."""
        return self.metrics.measure(logits)[0]


def check_aligned(model: HookedModel, clean: Any, corrupt: Any) -> None:
    """Refuse two inputs whose positions do not correspond.

    Raises:
        InputError: different lengths (with the positions that could be aligned), different padding,
            or different numbers of examples.
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
                "one: the shapes must be equal."
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
            f"There are {len(rows[0])} clean and {len(rows[1])} corrupted examples: pass as many "
            "of one as of the other."
        )


def _check_padding(here: Prepared, there: Prepared) -> None:
    one, other = padding_of(here), padding_of(there)
    if one is None or other is None or torch.equal(one, other):
        return
    row = int((one != other).any(-1).nonzero()[0])
    counts = int(one[row].sum()), int(other[row].sum())
    raise InputError(
        f"Example {row} has {counts[0]} positions in the clean input and {counts[1]} in the "
        "corrupted one, with different padding, so its positions do not correspond. Use prompts of "
        "equal length for each example."
    )


def padding_of(given: Prepared) -> Tensor | None:
    """Where an input has tokens rather than padding; None where its mask is of another kind.

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
