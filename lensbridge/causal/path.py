"""Which gradients an attribution averages: of the base run, or between it and the other run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lensbridge.causal.pair import Pair
from lensbridge.errors import InputError
from lensbridge.nodes.units import entrance_of
from lensbridge.sweeps.base_run import BaseRun

Method = Literal["gradient", "ig_inputs", "ig_activations"]
"""gradient: that of the run that is patched. ig_inputs: the average while what enters the stream
(the token embeddings, after their norm) moves from that of that run to that of the other.
ig_activations: for the nodes of each point, the average while the activation there moves from one
to the other."""

Edit = tuple[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Step:
    """One pass: its edits, the points whose scores it contributes to, and its weight there."""

    scored: frozenset[str]
    edits: list[Edit] = field(default_factory=list)
    weight: float = 1.0


def check_method(method: str, steps: int) -> None:
    """Refuse an unknown method.

    Raises:
        InputError: an unknown method, or a number of steps that it does not take.
    """
    if method not in ("gradient", "ig_inputs", "ig_activations"):
        raise InputError(f"method is 'gradient', 'ig_inputs' or 'ig_activations', not {method!r}.")
    if not isinstance(steps, int) or steps < 1 or (method == "gradient" and steps != 1):
        raise InputError(
            f"steps={steps} with method={method!r}: 'gradient' takes one step, the others 1 or "
            "more."
        )


def input_points(pair: Pair) -> list[str]:
    """Where the token embeddings enter each stack: the points of the node "input".

    Raises:
        AbsentPointError: the model embeds no tokens.
    """
    model = pair.model
    native, index = model.native, model.vocabulary.index
    there = [one for one in native.stacks if f"{native.front_of(one)}hook_embed" in index]
    return [entrance_of(model, stack) for stack in there or [native.main]]


def reads_of(pair: Pair, method: Method) -> list[str]:
    """The points that the other run has to keep for a method."""
    return input_points(pair) if method == "ig_inputs" else []


def steps_of(
    pair: Pair, method: Method, steps: int, points: Sequence[str], other: BaseRun
) -> Iterator[Step]:
    """The passes of a method, the base run first.

    Source: ig_inputs and ig_activations are those of Hanna, Pezzelle and Belinkov 2024, Have Faith
    in Faithfulness: `steps` points beginning with the base run, so that one step is the plain
    gradient.
    """
    everything = frozenset(points)
    if method == "gradient":
        yield Step(everything)
    elif method == "ig_inputs":
        ends = {name: other.cache[name] for name in input_points(pair)}
        for k in range(steps):
            edits = [(name, _towards(end, k / steps)) for name, end in ends.items()]
            yield Step(everything, edits if k else [], 1 / steps)
    else:
        yield Step(everything, weight=1 / steps)
        for point in dict.fromkeys(points):
            for k in range(1, steps):
                edits = [(point, _towards(other.cache[point], k / steps))]
                yield Step(frozenset([point]), edits, 1 / steps)


def _towards(end: Tensor, share: float) -> Callable[[Tensor], Tensor]:
    return lambda value: value + share * (end - value)
