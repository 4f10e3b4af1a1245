"""Edits of weights: for the time of a block or until they are undone, by name.

`model.edited({...})` and `model.edit_weights({...})` write new values. What is here computes such
values: ROME's and MEMIT's updates, with the second moments that they need, and weights that do not
write along a direction.
"""

from lensbridge.editing.directions import abliterated
from lensbridge.editing.edit import NewWeight, WeightEdit
from lensbridge.editing.moments import SecondMoment, second_moments
from lensbridge.editing.rome import rome
from lensbridge.editing.updates import least_squares_update, rank_one_update

__all__ = [
    "NewWeight",
    "SecondMoment",
    "WeightEdit",
    "abliterated",
    "least_squares_update",
    "rank_one_update",
    "rome",
    "second_moments",
]
