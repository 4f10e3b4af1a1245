"""Which gradients an attribution averages: at the base run, or on the way to the other one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lensbridge.causal.pair import Pair
from lensbridge.errors import InputError
from lensbridge.sweeps.base_run import BaseRun

Method = Literal["gradient", "ig_inputs", "ig_activations"]
"""gradient: of the run that values are put into. ig_inputs: averaged while the token embeddings go
from that run's to the other's. ig_activations: for the nodes of each point, averaged while the
activation there goes from one to the other."""

Edit = tuple[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Step:
    """One pass: what is edited in it, whose scores it gives, and what it weighs in them."""

    scored: frozenset[str]
    edits: list[Edit] = field(default_factory=list)
    weight: float = 1.0


def check_method(method: str, steps: int) -> None:
    """Refuse an unknown method.

    Raises:
        InputError: unknown, or a number of steps that does not go with it.
    """
    if method not in ("gradient", "ig_inputs", "ig_activations"):
        raise InputError(f"method is 'gradient', 'ig_inputs' or 'ig_activations', not {method!r}.")
    if not isinstance(steps, int) or steps < 1 or (method == "gradient" and steps != 1):
        raise InputError(
            f"steps={steps} with method={method!r}: 'gradient' is one step, the others at least 1."
        )


def input_points(pair: Pair) -> list[str]:
    """Every stack's token embedding.

    Raises:
        AbsentPointError: the model embeds no tokens.
    """
    model = pair.model
    fronts = [model.native.front_of(stack) for stack in model.native.stacks]
    found = [f"{front}hook_embed" for front in fronts]
    there = [name for name in found if name in model.vocabulary.index]
    return there or [model.vocabulary.canonical("hook_embed")]


def reads_of(pair: Pair, method: Method) -> list[str]:
    """What the other run has to keep for the way."""
    return input_points(pair) if method == "ig_inputs" else []


def steps_of(
    pair: Pair, method: Method, steps: int, points: Sequence[str], other: BaseRun
) -> Iterator[Step]:
    """The passes of a method, the base run first.

    Source: ig_inputs and ig_activations are those of Hanna, Pezzelle and Belinkov 2024, Have Faith
    in Faithfulness: `steps` points from the base run on, so that one step is the plain gradient.
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
