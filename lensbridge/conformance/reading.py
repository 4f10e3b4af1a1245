"""Reading: it changes nothing, passes each point once, and leaves nothing on the model."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.fingerprint import Fingerprint
from lensbridge.conformance.passes import kind_of, prefix_of
from lensbridge.conformance.subject import Subject
from lensbridge.hooks.callbacks import Hook
from lensbridge.native.settings import OWN_KERNEL, kernel_of
from lensbridge.native.wrappers import core_of


def check_reading_changes_nothing(subject: Subject) -> None:
    """While every point is read, the output is the bare model's."""
    subject.expect.same(
        "the output while every point is read",
        subject.clean.output,
        subject.bare(),
        "the bare model's",
    )
    subject.expect.holds("the model", bool(subject.clean.values), "it has no points to read")


def check_every_point_fires_once(subject: Subject) -> None:
    """One pass goes through each point once."""
    fired: Counter[str] = Counter()

    def count(value: Tensor, hook: Hook) -> None:
        fired[hook.name] += 1

    subject.run([(name, count) for name in subject.names])
    for name in subject.names:
        subject.expect.holds(name, fired[name] == 1, f"it fired {fired[name]} times in one pass")


def check_shapes_are_as_declared(subject: Subject) -> None:
    """Each letter of the axes has one size in a block, and in the stack where it should."""
    sizes: dict[tuple[str, str], tuple[int, str]] = {}
    for name, value in subject.clean.values.items():
        axes = subject.axes(name).split()
        if name == "projector.hook_out" and value.ndim == 2 and len(axes) == 3:
            axes = axes[1:]  # all images in one row
        subject.expect.holds(
            name,
            value.ndim == len(axes),
            f"its axes are {' '.join(axes)}, and its shape is {tuple(value.shape)}",
        )
        for letter, size in zip(axes, value.shape, strict=True):
            scope = _scope(letter, name)
            if scope is not None:
                known, where = sizes.setdefault((letter, scope), (size, name))
                subject.expect.holds(
                    name, size == known, f"axis {letter} is {size} here and {known} in {where}"
                )
    _expect_rows_first(subject)


def _expect_rows_first(subject: Subject) -> None:
    """Where there are as many positions as rows, a run of one row tells which axis has the rows."""
    values = subject.clean.values.items()
    square = [n for n, v in values if v.ndim == 3 and v.shape[0] == v.shape[1]]
    square = [name for name in square if subject.axes(name) == "b p m"]
    if square and set(subject.inputs) == {"input_ids"}:
        one = subject.read(square, inputs={"input_ids": subject.inputs["input_ids"][:1]})
        for name in square:
            rows = one[name].shape[0]
            subject.expect.holds(name, rows == 1, f"axis b is {rows} in a run of one row")


def _scope(letter: str, name: str) -> str | None:
    """The part of the model in which an axis has one size; None if it may have any size."""
    stack = kind_of(prefix_of(name)) or name.partition(".")[0]
    if letter in "vm":
        return stack if prefix_of(name) else None
    if letter in "hgq":
        return name.rpartition(".")[0].replace("hook_", "")
    if letter == "b":  # a tower may have all images in one row
        return "vision" if name.startswith("vision.") else ""
    return None


def check_values_are_finite(subject: Subject) -> None:
    """Values are finite, except -inf in scores where a position is masked."""
    for name, value in subject.clean.values.items():
        if name.endswith("hook_attn_scores"):
            bad = value.isnan() | (value == torch.inf)
        else:
            bad = ~torch.isfinite(value)
        subject.expect.holds(name, not bool(bad.any()), f"{int(bad.sum())} values are not finite")


def check_writing_back_changes_nothing(subject: Subject) -> None:
    """Returning what was read does not change the output, bit for bit."""
    kinds: dict[str, list[str]] = {}
    for name, point in subject.points.items():
        if point.editable:
            kinds.setdefault(kind_of(name), []).append(name)
    for kind, names in {**kinds, "every point": [n for k in kinds.values() for n in k]}.items():
        output = subject.run([(name, _same) for name in names])
        subject.expect.same(
            f"the output after writing back the value of {kind}",
            output,
            subject.clean.output,
            "the bare model's",
        )


def _same(value: Tensor, hook: Hook) -> Tensor:
    return value.clone()


def check_nothing_is_left(subject: Subject) -> None:
    """Modules, hooks, replaced methods, state and config are as before the lens was made."""
    subject.run([(name, _same) for name in subject.names[:1]])
    after = Fingerprint.of(subject.hf_model)
    for what in ("modules", "hooks", "shadows", "state", "config"):
        same = vars(after)[what] == vars(subject.before)[what]
        subject.expect.holds(f"the model's {what}", same, "the lens changed it")


def check_logits_are_the_output(subject: Subject) -> None:
    """`hook_logits` is what the model returns as logits, or at one position of each row
    (classifiers that score all positions and return the last), or on average (late pooling).
    """
    logits, output = subject.clean["hook_logits"], subject.clean.output
    if logits.ndim == output.ndim + 1:
        logits = _as_returned(subject, logits, output)
    if output.dtype != logits.dtype or subject.model.dtype == torch.float64:
        logits = logits.float()  # some models always return float32
        output = output.float()
    subject.expect.same("hook_logits", logits, output, "the model's logits")


def _as_returned(subject: Subject, logits: Tensor, output: Tensor) -> Tensor:
    """One row of logits for each example, of those at all its positions."""
    mean = logits.mean(dim=1)
    if subject.expect.are_close(mean, output.to(mean)):
        return output
    nearest = (logits - output.unsqueeze(1)).abs().sum(dim=-1).argmin(dim=1)
    return logits[torch.arange(len(logits), device=logits.device), nearest]


def check_pooler_is_the_output(subject: Subject) -> None:
    """`hook_pooler_out` is what the model returns as its pooled output."""
    with torch.no_grad():
        native: Any = subject.call(subject.inputs)
    pooled = native.get("pooler_output")
    if pooled is None:
        raise NotApplicable("the model returns no pooled output")
    subject.expect.same(
        "hook_pooler_out", subject.clean["hook_pooler_out"], pooled, "the model's pooled output"
    )


def check_eager_agrees(subject: Subject) -> None:
    """Scores, patterns and z are those of the eager kernel."""
    model = subject.hf_model
    chosen = kernel_of(core_of(model))
    if chosen in ("eager", OWN_KERNEL):
        raise NotApplicable("the kernel is already eager, or there is no other")
    names = [n for n in subject.names if n.endswith(("hook_pattern", "hook_attn_scores", "hook_z"))]
    model.set_attn_implementation("eager")  # type: ignore[operator]
    try:
        switched = kernel_of(core_of(model)) == "eager"
        eager = subject.read(names) if switched else None
        bare = subject.bare() if switched else subject.clean.output
    finally:
        model.set_attn_implementation(chosen)  # type: ignore[operator]
    if eager is None:
        raise NotApplicable(f"{subject.label} cannot be switched to eager")
    if not subject.expect.are_close(bare, subject.clean.output):
        raise NotApplicable("the output of the bare model differs with eager attention")
    for name in names:
        subject.expect.close(name, subject.clean[name], eager[name], "that of eager attention")
