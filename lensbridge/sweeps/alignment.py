"""Clean activations: where they come from, and whether they fit the corrupted run."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError, NotCachedError
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.setters import SetterAxes


def clean_value(clean: Mapping[str, Tensor], point: str) -> Tensor:
    """A clean activation, with its batch axis.

    Raises:
        NotCachedError: the clean run did not keep it.
    """
    if not isinstance(clean, Mapping):
        raise InputError(
            f"A cache of the clean run is wanted, not a {type(clean).__name__}: the second that "
            "model.run_with_cache(clean) gives."
        )
    if point not in clean:
        raise NotCachedError(
            f"The clean cache lacks {point}, which is to be patched in. Keep it: "
            "model.run_with_cache(clean, names_filter=...)."
        )
    bare = isinstance(clean, ActivationCache) and not clean.has_batch_dim
    return clean[point].unsqueeze(0) if bare else clean[point]


def tokens_of(clean: Mapping[str, Tensor]) -> Tensor | None:
    """The ids of the run that a cache is of, where it knows them."""
    return clean.tokens if isinstance(clean, ActivationCache) else None


def check_fit(base: BaseRun, point: str, clean: Tensor, clean_tokens: Tensor | None) -> None:
    """Refuse a clean activation that does not lie over the corrupted one, axis by axis.

    Raises:
        InputError: other sizes; where it is the positions, with those that could be aligned.
    """
    found, wanted = tuple(clean.shape), base.shape(point)
    if found[1:] == wanted[1:] and found[0] in (1, wanted[0]):
        return
    axes = base.axes(point)
    if len(found) == len(wanted):
        longer = [a for a, f, w in zip(axes, found, wanted, strict=True) if f != w]
        if set(longer) & set("pqk"):
            raise InputError(_of_lengths(point, clean, base, clean_tokens))
        if longer == ["b"]:
            raise InputError(
                f"The clean cache has {found[0]} examples and the corrupted input {wanted[0]}: "
                "they have to be as many, or the clean run has to be of one."
            )
    raise InputError(
        f"{point} has shape {found} in the clean cache and {wanted} in the corrupted run "
        f"(axes {' '.join(axes)}). Both have to come from this model."
    )


def check_padding(base: BaseRun, clean: Mapping[str, Tensor]) -> None:
    """Refuse a clean run that is padded at other places than the corrupted one.

    Raises:
        InputError: an example that has other positions in one run than in the other.
    """
    mask = clean.attention_mask if isinstance(clean, ActivationCache) else None
    here, there = mask, base.cache.attention_mask
    if not isinstance(clean, ActivationCache) or (here is None and there is None):
        return
    one, other = _shown(here, there), _shown(there, here)
    if one.ndim != 2 or one.shape[1:] != other.shape[1:] or len(one) not in (1, len(other)):
        return
    wrong = (one != other).any(-1).nonzero().flatten().tolist()
    if wrong:
        counts = int(one.expand_as(other)[wrong[0]].sum()), int(other[wrong[0]].sum())
        raise InputError(
            f"Example {wrong[0]} has {counts[0]} positions in the clean run and {counts[1]} in the "
            "corrupted one, padded at other places, and which belong together is not something to "
            "guess. Use prompts that are as long as each other, example by example."
        )


def _shown(mask: Tensor | None, like: Tensor | None) -> Tensor:
    """Where a run has tokens; everywhere, where nothing was masked."""
    if mask is not None:
        return mask.bool().cpu()
    assert like is not None
    return torch.ones_like(like, dtype=torch.bool, device="cpu")


def _of_lengths(point: str, clean: Tensor, base: BaseRun, clean_tokens: Tensor | None) -> str:
    axis = next(i for i, letter in enumerate(base.axes(point)) if letter in "pqk")
    head = (
        f"{point} has {clean.shape[axis]} positions in the clean cache and "
        f"{base.shape(point)[axis]} in the corrupted run, and which belong together is not "
        "something to guess."
    )
    advice = (
        "Use prompts of equal length, or generic_activation_patch with a patch_setter that says "
        "which clean position goes where."
    )
    corrupted = base.cache.tokens
    if clean_tokens is None or corrupted is None:
        return f"{head} {advice}"
    return f"{head} {_shared(clean_tokens, corrupted)} {advice}"


def _shared(clean: Tensor, corrupted: Tensor) -> str:
    """Which positions hold the same tokens at the beginning and at the end of every example."""
    n = min(len(clean), len(corrupted))
    first, second = clean[:n].tolist(), corrupted[:n].tolist()
    start = min(_common(a, b) for a, b in zip(first, second, strict=True))
    end = min(_common(a[::-1], b[::-1]) for a, b in zip(first, second, strict=True))
    shorter = min(clean.shape[1], corrupted.shape[1])
    end = min(end, shorter - start)
    parts = []
    if start:
        parts.append(f"the first {start} (0 to {start - 1} in both)")
    if end:
        parts.append(f"the last {end} (-{end} to -1)")
    return f"The same tokens are at {' and '.join(parts)}." if parts else "No tokens agree."


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def check_axes(base: BaseRun, point: str, axes: SetterAxes) -> None:
    """Refuse an activation that a published setter would write to in the wrong places.

    Raises:
        InputError: other axes than it is for.
    """
    letters = base.axes(point)
    pairs = zip(letters, axes.letters, strict=False)
    if len(letters) < len(axes.letters) or any(letter not in those for letter, those in pairs):
        raise InputError(
            f"{point} has the axes {' '.join(letters)}, and {axes.name} is for "
            f"{' '.join(those[0] for those in axes.letters)}. Take the setter for these axes, or "
            "pass a patch_setter and index_df of your own."
        )


def check_index(
    base: BaseRun, point: str, axes: SetterAxes, names: Sequence[str], row: Sequence[int]
) -> None:
    """Refuse an index that a published setter cannot use.

    Raises:
        InputError: too many or too few entries, or one beyond its axis.
    """
    if len(row) != len(axes.indexed) + 1:
        raise InputError(
            f"An index has {len(row)} entries ({', '.join(names)}); the setter takes the layer and "
            f"{len(axes.indexed)} more."
        )
    shape = base.shape(point)
    for name, value, axis in zip(names[1:], row[1:], axes.indexed, strict=True):
        if not -shape[axis] <= value < shape[axis]:
            raise InputError(f"{name} {value}: {point} has {shape[axis]} there.")
