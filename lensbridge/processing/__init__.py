"""Rewrites of weights that make them easier to read while the model computes the same function.

`Rewriting` decides on all steps before it writes anything. It applies them to the native parameters
and can restore every byte. It uses roles (which matrix reads which norm, what writes to the
stream), and nothing that is special to a family of models.
"""

from dataclasses import dataclass, field

import torch

from lensbridge.native.parts import ResolvedModel
from lensbridge.processing.center import plan_center_unembed, plan_center_writing
from lensbridge.processing.factor import plan_refactor
from lensbridge.processing.fold import plan_fold_ln
from lensbridge.processing.plan import (
    OnImpossible,
    Plan,
    Processing,
    ProcessingOptions,
    Skipped,
    Step,
    Wanted,
)
from lensbridge.processing.probe import Probe
from lensbridge.processing.undo_log import UndoLog
from lensbridge.processing.values import plan_fold_value_biases

__all__ = [
    "OnImpossible",
    "Plan",
    "Processing",
    "ProcessingOptions",
    "Rewriting",
    "Skipped",
    "Step",
    "Wanted",
]


@dataclass
class Rewriting:
    """The requested steps for one model; `over` once they can be undone."""

    native: ResolvedModel
    plans: list[Plan]
    undo_log: UndoLog = field(default_factory=UndoLog)
    over: bool = False

    @classmethod
    def of(cls, native: ResolvedModel, options: ProcessingOptions) -> "Rewriting":
        """Decide on every step; nothing is written.

        Raises:
            ProcessingError: a step that has to be complete cannot be.
        """
        plans = [_plan(native, step, options) for step in options.steps]
        for plan in plans:
            if options.must(plan.step):
                plan.require_all()
        return cls(native, plans)

    def apply(self, probe_on: torch.device | None) -> Processing:
        """Rewrite the parameters.

        Args:
            probe_on: the device on which to check each step with a small random input; None for
                no check.

        Raises:
            ProcessingError: a step changed what the model computes; everything was restored.
        """
        rewriting = any(plan.rewrites for plan in self.plans)
        probe = Probe.of(self.native, probe_on) if probe_on is not None and rewriting else None
        centered = False
        try:
            for plan in self.plans:
                for rewrite in plan.rewrites:
                    rewrite(self.undo_log)
                centered = centered or (plan.step == "center_unembed" and bool(plan.rewrites))
                if probe is not None and plan.rewrites:
                    probe.require_same(plan.step, centered)
        except BaseException:
            self.undo_log.undo()
            raise
        return Processing.of(self.plans)

    def undo(self) -> None:
        """Restore everything, bit for bit."""
        self.undo_log.undo()


def _plan(native: ResolvedModel, step: Step, options: ProcessingOptions) -> Plan:
    if step == "fold_value_biases":
        return plan_fold_value_biases(native, "fold_ln" in options.steps)
    return {
        "fold_ln": plan_fold_ln,
        "center_writing_weights": plan_center_writing,
        "center_unembed": plan_center_unembed,
        "refactor_factored_attn_matrices": plan_refactor,
    }[step](native)
