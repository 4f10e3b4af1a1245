"""Activations with named axes, for xarray (`pip install lensbridge[frames]`)."""

from typing import Any, Protocol

from torch import Tensor

from lensbridge.errors import LensbridgeError
from lensbridge.points.axes import AXES
from lensbridge.points.names import Name


class Labelled(Protocol):
    """The parts of a cache that are read."""

    tokens: Tensor | None

    def __getitem__(self, name: Name) -> Tensor: ...

    def axes(self, name: Name) -> str:
        """One letter for each axis."""

    def canonical(self, name: Name) -> str:
        """The name under which an activation is stored."""


def to_xarray(cache: Labelled, name: Name) -> Any:
    """One activation as an `xarray.DataArray`: its axes have names, its positions have tokens.

    Args:
        cache: the cache that has it.
        name: the name of the activation, in any spelling.

    Raises:
        LensbridgeError: xarray is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise LensbridgeError(
            "to_xarray needs xarray, which is not installed: pip install lensbridge[frames]."
        ) from error
    value = cache[name].detach().float().cpu()
    axes = [AXES[letter] for letter in cache.axes(name).split()]
    found = xarray.DataArray(value.numpy(), dims=axes, name=cache.canonical(name))
    tokens, along = cache.tokens, next((a for a in ("pos", "query_pos") if a in axes), None)
    if tokens is None or along is None or found.sizes[along] != tokens.shape[-1]:
        return found
    ids = tokens.cpu().numpy()
    if "batch" in axes and len(ids) == found.sizes["batch"]:
        return found.assign_coords(token=(("batch", along), ids))
    return found.assign_coords(token=((along,), ids.reshape(-1)[-tokens.shape[-1] :]))
