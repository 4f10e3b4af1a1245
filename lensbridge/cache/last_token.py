"""The activation at each text's last token, wherever its padding is."""

from typing import Protocol

from torch import Tensor

from lensbridge.cache.capture import batch_axis, position_axis
from lensbridge.cache.owner import CachedModel
from lensbridge.errors import InputError
from lensbridge.inputs.positions import column_owner
from lensbridge.points.names import Name, stack_of
from lensbridge.tensors.positions import token_positions
from lensbridge.tensors.slices import RowColumns


class Cached(Protocol):
    """The parts of a cache that are read."""

    tokens: Tensor | None
    model: CachedModel | None

    def real_tokens(self, size: int, stack: str | None = None) -> Tensor | None:
        """Which columns hold tokens."""

    def axes(self, name: Name) -> str:
        """One letter for each axis."""

    def canonical(self, name: Name) -> str:
        """The name under which an activation is stored."""

    def __getitem__(self, name: Name) -> Tensor: ...


def last_token(cache: Cached, name: Name) -> Tensor:
    """See `ActivationCache.last_token`."""
    full = cache.canonical(name)
    value, axes = cache[full], cache.axes(full)
    axis = position_axis(axes)
    if axis is None:
        raise InputError(f"{full} has the axes {axes!r}: none of them is a position of a text.")
    _require_all_columns(cache, full, value.shape[axis])
    real = cache.real_tokens(value.shape[axis], stack_of(full) or None)
    found = token_positions(-1, real)
    if isinstance(found, RowColumns):
        return found.of(value, axis, batch_axis(axes)).select(axis, 0)
    return value.select(axis, -1)


def _require_all_columns(cache: Cached, name: str, size: int) -> None:
    """Refuse an activation that was cut, where the last column may be another token.

    Raises:
        InputError: it has other columns than the input.
    """
    if cache.tokens is None:
        return
    if cache.model is not None and column_owner(cache.model.native, name) != "text":
        return
    if size != cache.tokens.shape[-1]:
        raise InputError(
            f"{name} was kept at {size} of {cache.tokens.shape[-1]} positions (pos_slice), and the "
            "cache does not know which. Run without pos_slice; or, if you kept the last position, "
            "take it: cache[name][:, -1]."
        )
