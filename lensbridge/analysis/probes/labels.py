"""Labels as numbers, and how well they are read."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError


def numbers_of(labels: Sequence[Any], classes: Sequence[Any]) -> Tensor:
    """The number of each label's class; numbers as they are.

    Raises:
        InputError: a label that is none of the classes.
    """
    if not classes:
        return torch.tensor([float(one) for one in labels], dtype=torch.double)
    place = {one: i for i, one in enumerate(classes)}
    unknown = next((one for one in labels if one not in place), None)
    if unknown is not None:
        raise InputError(f"The label {unknown!r} is none of the {len(classes)} classes.")
    return torch.tensor([place[one] for one in labels])


def score(found: Tensor, wanted: Tensor, of_classes: bool) -> float:
    """Accuracy of classes; R2 of numbers, which compares with guessing their mean.

    Raises:
        InputError: R2 of equal numbers.
    """
    if of_classes:
        return float((found == wanted).double().mean())
    total = ((wanted - wanted.mean()) ** 2).sum()
    if float(total) == 0:
        raise InputError(
            "The labels of the held-out examples are all equal, so there is no R2. Pass more "
            "examples, or fewer folds."
        )
    return 1.0 - float(((wanted - found) ** 2).sum() / total)
