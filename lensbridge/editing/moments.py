"""Second moments of activations, gathered over a dataset: what ROME and MEMIT weigh edits with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.special import Excluded, is_special, known_special_ids
from lensbridge.points.point_names import NamesFilter

_FORMAT = "lensbridge.SecondMoment/1"


@dataclass(frozen=True, eq=False, repr=False)
class SecondMoment:
    """The sum of `x x^T` over tokens, which is not centred, and how many they were.

    Args:
        total: the sum, in float64.
        count: of how many tokens.
        name: of the point.

    Shapes: total `[d, d]`
    """

    total: Tensor
    count: int
    name: str = ""

    def __repr__(self) -> str:
        return f"SecondMoment({self.name}, {len(self.total)} wide, {self.count} tokens)"

    def __add__(self, other: SecondMoment) -> SecondMoment:
        """That of both sets of tokens.

        Raises:
            InputError: they are of different points.
        """
        if self.name != other.name or self.total.shape != other.total.shape:
            raise InputError(f"{self} and {other} are of different points.")
        return SecondMoment(self.total + other.total, self.count + other.count, self.name)

    @property
    def matrix(self) -> Tensor:
        """The mean of `x x^T`. Shapes: `[d, d]`"""
        return self.total / self.count

    def save(self, path: str | Path) -> None:
        """Write it into a safetensors file."""
        about = {"format": _FORMAT, "count": str(self.count), "name": self.name}
        save_file({"total": self.total.contiguous()}, path, metadata=about)

    @classmethod
    def load(cls, path: str | Path) -> SecondMoment:
        """Read what `save` wrote.

        Raises:
            InputError: it is no such file.
        """
        try:
            with safe_open(str(path), "pt") as file:
                about = file.metadata() or {}
                if about.get("format") == _FORMAT:
                    total = file.get_tensor("total")
                    return cls(total, int(about["count"]), about["name"])
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read as a second moment: {error}") from error
        raise InputError(f"{path} is no second moment: SecondMoment.save writes one.")


def second_moments(
    model: HookedModel,
    data: Iterable[Any],
    site: NamesFilter = "post",
    batch_size: int = 8,
    exclude_special_tokens: Excluded = True,
    **input_options: Any,
) -> dict[str, SecondMoment]:
    """The second moment of activations at some points, over all tokens of a dataset.

    Args:
        model: the model.
        data: texts, or ids of each, in anything that can be looped over; it is never all in memory.
        site: the points. "post", the input of `W_out` in every layer, is what MEMIT needs.
        batch_size: how many texts are run at once.
        exclude_special_tokens: leave BOS, EOS and separators out; or the ids of the tokens that are
            left out. Padding never counts.
        input_options: `prepend_bos` and other options of `run_with_cache`.

    Returns:
        By the name of the point.

    Raises:
        InputError: there are no texts, or a point has other axes than examples, positions, entries.

    Example:
        >>> import lensbridge
        >>> from lensbridge.editing import second_moments
        >>> model = lensbridge.load("demo")
        >>> moments = second_moments(model, ["The Louvre is", "The Eiffel Tower is"], ("post", 1))
        >>> moments["blocks.1.mlp.hook_post"]
        SecondMoment(blocks.1.mlp.hook_post, 512 wide, 7 tokens)
    """
    names = model.vocabulary.select(site)
    special = known_special_ids(model.tokens, model.native, exclude_special_tokens)
    found: dict[str, SecondMoment] = {}
    for texts in _batches(data, batch_size):
        with torch.no_grad():
            _, cache = model.run_with_cache(
                texts, names_filter=names, return_type=None, **input_options
            )
        for name in names:
            own = _moment(cache, name, special)
            found[name] = found[name] + own if name in found else own
    if not found:
        raise InputError("There are no texts to gather second moments from.")
    return found


def _batches(data: Iterable[Any], size: int) -> Iterator[Any]:
    if isinstance(data, str):
        data = [data]
    rest = iter(data)
    while some := list(islice(rest, size)):
        yield torch.stack(some) if isinstance(some[0], Tensor) else some


def _moment(cache: ActivationCache, name: str, special: frozenset[int]) -> SecondMoment:
    value = cache[name]
    if cache.axes(name).split()[:2] != ["b", "p"] or value.ndim != 3:
        raise InputError(
            f"{name} has the axes {cache.axes(name)}; a second moment needs a point with examples, "
            "positions and entries."
        )
    rows = value[_counted(cache, value, special)].double()
    return SecondMoment((rows.T @ rows).cpu(), len(rows), name)


def _counted(cache: ActivationCache, value: Tensor, special: frozenset[int]) -> Tensor:
    """Which columns hold tokens that count. Shapes: `[batch, pos]`"""
    real = cache.real_tokens(value.shape[1])
    if real is None:
        real = torch.ones(value.shape[:2], dtype=torch.bool)
    real = real.to(value.device)
    tokens = cache.tokens
    if special and tokens is not None and tokens.shape == real.shape:
        real = real & ~is_special(tokens, special).to(real.device)
    return real
