"""A claim on a model, which a description can leave out."""

from typing import NamedTuple


class Claim(NamedTuple):
    """Something that a model has: whether it is described, and how one sees it in the model."""

    what: str
    said: bool
    shown: str
