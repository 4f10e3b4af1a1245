"""MLPs: neurons are independent of each other, and linear in what is linear."""

from collections.abc import Iterator
from itertools import count, islice

import torch
from torch import Tensor

from lensbridge.conformance.attention_edits import hold_only_within
from lensbridge.conformance.passes import Block
from lensbridge.conformance.subject import Subject
from lensbridge.hooks.callbacks import Hook
from lensbridge.native.parts import BlockPart, MLPPart


def dense(subject: Subject, *needs: str, every: bool = False) -> Iterator[tuple[Block, str]]:
    """The MLPs of one block of each kind, or of every block, that have all of these points.

    These are its MLP, the shared one, and one expert that has tokens, or every such expert.
    """
    for block in subject.clean.blocks.values() if every else subject.samples():
        for sub in ("mlp", "mlp.shared", *islice(_busy(block), None if every else 1)):
            if all(f"{sub}.hook_{need}" in block for need in needs):
                yield block, sub


def _busy(block: Block) -> Iterator[str]:
    for e in count():
        given = f"mlp.experts.{e}.hook_in"
        if given not in block:
            return
        if len(block[given]):
            yield f"mlp.experts.{e}"


def check_neurons_are_elementwise(subject: Subject) -> None:
    """If all pre-activations are shifted by one neuron, the neurons are shifted by one."""
    for block, sub in dense(subject, "pre", "post"):
        names = [n for n in (f"{sub}.hook_pre", f"{sub}.hook_pre_linear") if n in block]
        post = block.name(f"{sub}.hook_post")

        def roll(value: Tensor, hook: Hook) -> Tensor:
            return value.roll(1, -1)

        after = subject.read([post], [(block.name(n), roll) for n in names])[post]
        subject.expect.close(
            f"{post}, when pre-activations are shifted by one,",
            after,
            block[f"{sub}.hook_post"].roll(1, -1),
            "shifted too",
        )


def sparsity_of(subject: Subject, block: Block, sub: str) -> float:
    """The share of an MLP's gate that is cut off before the activation."""
    mlp = subject.parts[block.at].mlp
    return mlp.sparsity if isinstance(mlp, MLPPart) and sub == "mlp" else 0.0


def check_editing_a_neuron_moves_it(subject: Subject) -> None:
    """An edit of one neuron's pre-activation at one position changes that neuron there."""
    for block, sub in dense(subject, "pre", "post"):
        for last in ("pre", "pre_linear"):
            cuts = last == "pre" and sparsity_of(subject, block, sub)  # by what all of them are
            if f"{sub}.hook_{last}" in block and not cuts:
                _nudge_neuron(subject, block, sub, last)


def _nudge_neuron(subject: Subject, block: Block, sub: str, last: str) -> None:
    post, before = block.name(f"{sub}.hook_post"), block[f"{sub}.hook_post"]
    row = (0,) * (before.ndim - 1)
    where = (*row, int(before[row].abs().argmax()))  # a neuron that is not zero

    def nudge(value: Tensor, hook: Hook) -> None:
        value[where] = 2.5

    name = block.name(f"{sub}.hook_{last}")
    after = subject.read([post], [(name, nudge)])[post]
    region = torch.zeros_like(after, dtype=torch.bool)
    region[where] = True
    hold_only_within(subject, post, after, before, region, f"an edit of {name}{list(where)}")


def check_linear_branch_is_linear(subject: Subject) -> None:
    """The neurons are linear in `pre_linear` and not in `pre`."""
    for block, sub in dense(subject, "pre_linear", "post"):
        bent = {last: _bend(subject, block, sub, last) for last in ("pre_linear", "pre")}
        words = f"the second difference of {block.name(sub)}.hook_post along"
        flat = torch.zeros_like(bent["pre"])
        subject.expect.close(f"{words} hook_pre_linear", bent["pre_linear"], flat, "zero")
        subject.expect.differ(f"{words} hook_pre", bent["pre"], flat, "the activation")


def _bend(subject: Subject, block: Block, sub: str, last: str) -> Tensor:
    post, name = block.name(f"{sub}.hook_post"), block.name(f"{sub}.hook_{last}")
    value = block[f"{sub}.hook_{last}"]
    step = torch.linspace(-1.0, 1.0, value.shape[-1]).to(value)
    runs = []
    for times in (-1.0, 0.0, 1.0):

        def move(value: Tensor, hook: Hook, times: float = times) -> Tensor:
            return value + times * step

        runs.append(subject.read([post], [(name, move)])[post])
    return runs[0] - 2 * runs[1] + runs[2]


def mlp_input(block: Block, part: BlockPart) -> str:
    """The point that the MLP's projections read."""
    if part.residual != "post_norm" and "ln2.hook_out" in block:
        return "ln2.hook_out"
    if part.residual is None:
        return "hook_mlp_in"
    if part.residual == "parallel":
        return "ln1.hook_out" if "ln1.hook_out" in block else "hook_resid_pre"
    for point in ("hook_resid_mid_cross", "hook_resid_mid"):
        if point in block:
            return point
    return "hook_resid_pre"
