"""An intervention moved to some rows of a larger batch, where it does what it does alone."""

from typing import Any

from lensbridge.errors import InputError
from lensbridge.interventions.columns import of_examples, per_example
from lensbridge.interventions.exchange import Swap
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.kinds import Noise


def moves(one: Intervention) -> bool:
    """Whether an intervention does the same in whichever rows its examples are; noise does not."""
    return not isinstance(one, Noise)


def at_rows(one: Intervention, first: int, count: int) -> Intervention:
    """An intervention on a run of `count` examples, for a batch in which they begin at a row.

    Args:
        one: the intervention.
        first: the row of the first example.
        count: how many examples there are.

    Raises:
        InputError: it names an example that there is not.

    Example:
        >>> from lensbridge.interventions import Zero
        >>> at_rows(Zero("z", examples=[-1]), 4, 2).examples
        (5,)
    """
    own = one.chosen(count, type(one).__name__)
    moved = {"examples": [first + row for row in (range(count) if own is None else own)]}
    if not isinstance(one, Swap) or one.partners is None:
        found: Intervention = one.at(**moved)
        return found
    for partner in one.partners:
        if not -count <= partner < count:
            raise InputError(f"Swap: partner {partner} is out of range; there are {count}.")
    partners = [partner % count for partner in one.partners]
    there: Any = one.source_positions
    if there is None and one.examples is None and per_example(one.positions):
        there = of_examples(one.positions, partners)
    swap: Swap = one.at(partners=[first + row for row in partners], source_positions=there, **moved)
    return swap
