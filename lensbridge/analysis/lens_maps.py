"""Lenses: functions of the stream that are applied before the final norm and head."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from typing import Any, TypeAlias

from torch import Tensor, nn

from lensbridge.analysis.tuned_lens import TunedLens, maps_of
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel

Lens: TypeAlias = TunedLens | Callable[[Tensor, int], Tensor] | Sequence[Callable[[Tensor], Tensor]]
"""A tuned lens; or `f(stream, row)`, applied to each row `[batch, pos, d_model]` before the final
norm; or a list with one `f(stream)` for each row, which may leave out the last one."""


def lenses_of(
    lens: Any, model: HookedModel, layers: Sequence[int], labels: Sequence[str]
) -> list[Callable[[Tensor], Tensor]]:
    """A function of the stream for each row.

    Raises:
        InputError: it is no function of a stream and a row, and no list of functions.
    """
    if isinstance(lens, TunedLens):
        return maps_of(lens, model, layers, labels)
    count = len(labels)
    if isinstance(lens, Sequence | nn.ModuleList) and not isinstance(lens, str):
        wrong = next((i for i, one in enumerate(lens) if not callable(one)), None)
        if wrong is not None:
            raise InputError(
                f"lens is a list with one function f(stream) for each row; item {wrong} is "
                f"{lens[wrong]!r}."
            )
        if len(lens) == count - 1 and labels[-1] == "final_post":
            return [*lens, lambda stream: stream]
        if len(lens) != count:
            raise InputError(
                f"lens is a list of {len(lens)}, and {count} rows are read: pass one function "
                "f(stream) for each row."
            )
        return list(lens)
    try:
        signature(lens).bind(None, 0)
    except TypeError as error:
        raise InputError(
            "lens is a function f(stream, row), or a list with one f(stream) for each row, not "
            f"{lens!r} ({error})."
        ) from error
    except ValueError:  # builtins without a signature
        pass
    return [partial(_at_row, lens, i) for i in range(count)]


def _at_row(lens: Callable[[Tensor, int], Tensor], row: int, stream: Tensor) -> Tensor:
    return lens(stream, row)


def seen_through(lens: Callable[[Tensor], Tensor], stream: Tensor, row: int) -> Tensor:
    """A row of the stream through its lens.

    Raises:
        InputError: the lens gives something else than a stream.
    """
    found: Any = lens(stream)
    if not isinstance(found, Tensor) or found.shape != stream.shape:
        what = f"shape {list(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise InputError(
            f"lens gave {what} for row {row}; it gives a stream of shape {list(stream.shape)}, as "
            "it gets."
        )
    return found
