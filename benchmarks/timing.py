"""Contenders timed in turn, and the ratio between two of them with its uncertainty.

The clock counts the processor time of this process, so neighbours on a shared machine disturb it
less than they disturb elapsed time. Ratios are taken within one round, where both contenders met
the same machine, and the median over the rounds is what counts.
"""

import gc
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

Work = Callable[[], object]

clock = time.process_time


@dataclass(frozen=True)
class Spread:
    """A median and the interval that holds it with 95% confidence."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """The median of values, and its interval from their ranks.

        Example:
            >>> Spread.of(range(101)).middle
            50
        """
        ranked = sorted(values)
        reach = 0.98 * len(ranked) ** 0.5
        first = max(round(len(ranked) / 2 - reach), 0)
        last = min(round(len(ranked) / 2 + reach), len(ranked) - 1)
        return cls(ranked[first], median(ranked), ranked[last])


@dataclass(frozen=True)
class Samples:
    """Seconds for each contender, one for each round."""

    seconds: Mapping[str, list[float]]

    def ratio(self, one: str, other: str) -> Spread:
        """How many times as long one contender takes as the other."""
        pairs = zip(self.seconds[one], self.seconds[other], strict=True)
        return Spread.of(a / b for a, b in pairs)

    def microseconds_each(self, one: str, other: str, count: int) -> list[float]:
        """What one contender takes more than the other, shared out among `count` pieces of work."""
        pairs = zip(self.seconds[one], self.seconds[other], strict=True)
        return [(a - b) / count * 1e6 for a, b in pairs]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        seconds: elapsed time for one set of contenders.
        least: rounds to run even if that takes longer.
        most: rounds that are enough.
        warm_up: whether each contender runs once before, untimed.
    """

    seconds: float = 10.0
    least: int = 7
    most: int = 200
    warm_up: bool = True


def interleave(contenders: Mapping[str, Work], effort: Effort) -> Samples:
    """Time every contender once a round, in an order that changes from round to round."""
    order = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    shuffle = random.Random(0).shuffle
    for work in contenders.values() if effort.warm_up else ():
        work()
    gc.collect()
    end = time.perf_counter() + effort.seconds
    done = 0
    while done < effort.least or (time.perf_counter() < end and done < effort.most):
        shuffle(order)
        for name in order:
            seconds[name].append(_time(contenders[name]))
        done += 1
    return Samples(seconds)


def _time(work: Work) -> float:
    start = clock()
    work()
    return clock() - start
