"""Splits of examples into those that a probe is fitted to and those that it is scored on."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from lensbridge.errors import InputError


def splits(
    texts: Tensor, classes: Sequence[Hashable] | None, validation: int | float, seed: int
) -> list[Tensor]:
    """Which examples are held out in each split.

    All tokens of a text are on one side of a split. If each text is one example, the splits have
    the same share of each class.

    Args:
        texts: the text of each example.
        classes: the class of each example; None: the labels are numbers.
        validation: the number of folds, each held out once; or the share of the texts that is held
            out, in one split.
        seed: of the draw.

    Shapes: each `[example]` of booleans

    Raises:
        InputError: too few examples for so many folds.
    """
    of_text = torch.unique(texts, return_inverse=True)[1]
    count = int(of_text.max()) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    if classes is not None and count == len(texts):
        order = _by_class(order, classes)
    found = []
    for held in _along(count, validation):
        of_order = torch.empty(count, dtype=torch.bool)
        of_order[torch.tensor(order)] = held
        found.append(of_order[of_text])
    if classes is not None:
        _require_all_classes(found, classes)
    return found


def _along(count: int, validation: int | float) -> list[Tensor]:
    """Which places of a list are held out in each split.

    Raises:
        InputError: not possible with so many places.
    """
    place = torch.arange(count, dtype=torch.double)
    if isinstance(validation, float) and 0 < validation < 1:
        held = torch.floor((place + 1) * validation + 0.5) > torch.floor(place * validation + 0.5)
        if not bool(held.any()) or bool(held.all()):
            raise InputError(
                f"validation={validation} of {count} texts leaves nothing on one side of the split."
            )
        return [held]
    if isinstance(validation, bool) or validation != int(validation) or validation < 2:
        raise InputError(
            "validation is the number of folds (2 or more), or the share of the texts that is held "
            f"out, as a number between 0 and 1; not {validation!r}."
        )
    if validation > count:
        raise InputError(
            f"validation={validation} folds need {validation} texts or more; there are {count}."
        )
    return [place % validation == i for i in range(int(validation))]


def _by_class(order: Sequence[int], classes: Sequence[Hashable]) -> list[int]:
    """The same order with the examples of each class together, so that splits share them out."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i in order:
        groups[classes[i]].append(i)
    return [i for group in groups.values() for i in group]


def _require_all_classes(held_out: Sequence[Tensor], classes: Sequence[Hashable]) -> None:
    """Refuse splits in which a class is missing from what is fitted.

    Raises:
        InputError: with the class and how often it occurs.
    """
    count = Counter(classes)
    for split in held_out:
        left = {one for one, held in zip(classes, split.tolist(), strict=True) if not held}
        missing = [one for one in count if one not in left]
        if missing:
            raise InputError(
                f"The class {missing[0]!r} has {count[missing[0]]} of {len(classes)} examples, and "
                "a split holds all of them out. Pass more examples of it, or other folds: "
                "validation=2, or another seed."
            )
