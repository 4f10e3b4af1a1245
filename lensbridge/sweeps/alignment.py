"""Checks that clean activations, setters and indices fit the corrupted run."""

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
        InputError: what was given is no cache.
        NotCachedError: the clean run did not keep the activation.
    """
    if not isinstance(clean, Mapping):
        raise InputError(
            "Clean activations come from a cache, the second value of model.run_with_cache(clean); "
            f"got a {type(clean).__name__}."
        )
    if point not in clean:
        raise NotCachedError(
            f"The clean cache lacks {point}, whose values are to be patched in. Keep it: "
            "model.run_with_cache(clean, names_filter=...)."
        )
    bare = isinstance(clean, ActivationCache) and not clean.has_batch_dim
    return clean[point].unsqueeze(0) if bare else clean[point]


def tokens_of(clean: Mapping[str, Tensor]) -> Tensor | None:
    """The token ids of the run that was cached; None where the cache lacks them."""
    return clean.tokens if isinstance(clean, ActivationCache) else None


def check_fit(base: BaseRun, point: str, clean: Tensor, clean_tokens: Tensor | None) -> None:
    """Refuse a clean activation that has another shape than the corrupted one.

    Raises:
        InputError: the shapes differ; if positions do, the message has those that match.
    """
    shape, wanted = tuple(clean.shape), base.shape(point)
    if shape[1:] == wanted[1:] and shape[0] in (1, wanted[0]):
        return
    axes = base.axes(point)
    if len(shape) == len(wanted):
        differing = [axis for axis, n, w in zip(axes, shape, wanted, strict=True) if n != w]
        if set(differing) & set("pqk"):
            raise InputError(_of_lengths(point, clean, base, clean_tokens))
        if differing == ["b"]:
            raise InputError(
                f"The clean cache has {shape[0]} examples and the corrupted input {wanted[0]}. "
                "Give as many clean examples, or one."
            )
    raise InputError(
        f"{point} has shape {shape} in the clean cache and {wanted} in the corrupted run "
        f"(axes {' '.join(axes)}). Both have to come from this model."
    )


def check_padding(base: BaseRun, clean: Mapping[str, Tensor]) -> None:
    """Refuse a clean run whose padding is not where the corrupted run's is.

    Raises:
        InputError: with the first example that has other positions in the two runs.
    """
    if isinstance(clean, ActivationCache):
        _check_masks(clean.attention_mask, base.cache.attention_mask)
        _check_masks(clean.decoder_attention_mask, base.cache.decoder_attention_mask)


def _check_masks(mask: Tensor | None, other: Tensor | None) -> None:
    """Refuse masks of a clean and a corrupted text that differ."""
    if mask is None and other is None:
        return
    there, here = _tokens(mask, other), _tokens(other, mask)
    if there.ndim != 2 or there.shape[1:] != here.shape[1:] or len(there) not in (1, len(here)):
        return
    wrong = (there != here).any(-1).nonzero().flatten().tolist()
    if wrong:
        counts = int(there.expand_as(here)[wrong[0]].sum()), int(here[wrong[0]].sum())
        raise InputError(
            f"Example {wrong[0]} has {counts[0]} positions in the clean run and {counts[1]} in the "
            "corrupted one, with other padding, so it is not clear which positions correspond. Use "
            "prompts that have equal length, example by example."
        )


def _tokens(mask: Tensor | None, like: Tensor | None) -> Tensor:
    """Which positions of a run are tokens; all, if it has no mask."""
    if mask is not None:
        return mask.bool().cpu()
    assert like is not None
    return torch.ones_like(like, dtype=torch.bool, device="cpu")


def _of_lengths(point: str, clean: Tensor, base: BaseRun, clean_tokens: Tensor | None) -> str:
    axis = next(i for i, letter in enumerate(base.axes(point)) if letter in "pqk")
    head = (
        f"{point} has {clean.shape[axis]} positions in the clean cache and "
        f"{base.shape(point)[axis]} in the corrupted run, so it is not clear which positions "
        "correspond."
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
    """Which positions at the beginning and the end hold the same tokens in every example."""
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


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def check_axes(base: BaseRun, point: str, axes: SetterAxes) -> None:
    """Refuse an activation that a published setter would write to at the wrong places.

    Raises:
        InputError: it has other axes than the setter is for.
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
        InputError: too many or too few entries, or one that is out of range.
    """
    if len(row) != len(axes.indexed) + 1:
        raise InputError(
            f"An index has {len(row)} entries ({', '.join(names)}); the setter takes the layer and "
            f"{len(axes.indexed)} more."
        )
    shape = base.shape(point)
    for name, value, axis in zip(names[1:], row[1:], axes.indexed, strict=True):
        if not -shape[axis] <= value < shape[axis]:
            raise InputError(f"{name} {value} is out of range; {point} has {shape[axis]}.")
