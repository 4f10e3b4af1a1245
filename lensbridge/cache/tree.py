"""A cache as a tree for notebooks: names, shapes, dtypes and bytes; the tokens of its prompts."""

from typing import Protocol

from torch import Tensor

from lensbridge.cache.owner import CachedModel, Decodes
from lensbridge.inputs.position_labels import PositionLabels
from lensbridge.viz.labels import label_of
from lensbridge.viz.numbers import bytes_as_text
from lensbridge.viz.tree import Tree

MOST_PROMPTS, MOST_TOKENS = 4, 60


class Named(Protocol):
    """The parts of a cache that are read."""

    model: CachedModel | None
    tokens: Tensor | None
    attention_mask: Tensor | None
    _tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """The bytes of memory of the activations."""


def tree_of(cache: Named) -> Tree:
    """The tree of a cache."""
    tensors = cache._tensors
    details = {
        name: f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}, "
        f"{bytes_as_text(tensor.nbytes)}"
        for name, tensor in tensors.items()
    }
    facts = {"activations": str(len(tensors)), "memory": bytes_as_text(cache.nbytes)}
    stacks = {name.partition(".")[0] for name in tensors}
    return Tree("ActivationCache", facts, details, sorted(stacks), _prompts(cache))


def _prompts(cache: Named) -> list[str]:
    """The tokens of the first prompts."""
    if cache.tokens is None:
        return []
    rows = cache.tokens.reshape(-1, cache.tokens.shape[-1])
    mask = cache.attention_mask
    lines = []
    for i, row in enumerate(rows[:MOST_PROMPTS]):
        there = row if mask is None or mask.shape != rows.shape else row[mask[i].bool()]
        lines.append(f"prompt {i}, {len(there)} tokens: {_text(cache, there)}")
    more = len(rows) - len(lines)
    return [*lines, *([f"and {more} more prompts"] if more else [])]


def _text(cache: Named, ids: Tensor) -> str:
    known = cache.model.tokens if isinstance(cache.model, Decodes) else None
    shown = ids[:MOST_TOKENS]
    if known is None or known.tokenizer is None:
        words = [str(one) for one in shown.tolist()]
    else:
        labels = PositionLabels.of(known, shown[None], None)
        words = [] if labels is None else [label_of(text) for text in labels.texts]
    return " ".join(words) + (" …" if len(ids) > MOST_TOKENS else "")
