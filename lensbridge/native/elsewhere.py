"""Modules of a model that other processes have: the layers of other stages of a pipeline."""

from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["put_elsewhere", "where_is"]

_WHERE: WeakKeyDictionary[nn.Module, Callable[[], str]] = WeakKeyDictionary()


def put_elsewhere(modules: Iterable[nn.Module], where: Callable[[], str]) -> None:
    """Note that modules stand for ones that another process has.

    Args:
        modules: without values.
        where: says where they are, as a clause: "stage 0 (rank 0) has layer 2".
    """
    for module in modules:
        _WHERE[module] = where


def where_is(module: nn.Module) -> str | None:
    """Where a module is that is not in this process, as a clause; None for all others."""
    found = _WHERE.get(module)
    return None if found is None else found()
