"""Arguments of interventions: indices, the basis of a subspace and values, checked."""

from typing import Any

import torch
from numpy import ndarray
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.tensors.position_forms import is_int

_ORTHONORMAL = 1e-3
"""How far the products of a basis's columns may be from 0 and 1."""


def as_indices(what: str, given: Any) -> tuple[int, ...] | None:
    """One index or several as a tuple; of a mask of bools, where it is true; None for None.

    Raises:
        InputError: they are no ints.
    """
    if given is None:
        return None
    if isinstance(given, Tensor | ndarray) and str(given.dtype).endswith("bool"):
        given = torch.as_tensor(given).nonzero().flatten()
    plain = given.tolist() if isinstance(given, Tensor | ndarray) else given
    several = plain if isinstance(plain, list | tuple | range) else (plain,)
    if not several or not all(is_int(one) for one in several):
        raise InputError(f"{what} is an int or a list of ints, not {given!r}.")
    return tuple(int(one) for one in several)


def as_basis(given: Any) -> Tensor:
    """The basis of a subspace, contiguous, so that products round the same after it was read from a
    file.

    Raises:
        InputError: it has another shape, or its columns are not orthonormal.
    """
    basis = torch.as_tensor(given)
    if basis.ndim == 1 and bool(basis.any()):
        basis = (basis / basis.norm()).unsqueeze(-1)
    check_basis(basis)
    return basis.contiguous()


def check_basis(basis: Tensor) -> None:
    """Refuse a matrix that is not an orthonormal basis.

    Raises:
        InputError: it has another shape, or its columns are not orthonormal.
    """
    if basis.ndim != 2 or basis.shape[0] < basis.shape[1]:
        raise InputError(
            "A subspace is [d, k] with k at most d, a basis in its columns, or a direction [d] "
            f"that is not zero; got shape {tuple(basis.shape)}."
        )
    wide = basis.detach().double()
    off = (wide.T @ wide - torch.eye(basis.shape[1], dtype=wide.dtype, device=wide.device)).abs()
    rounding = torch.finfo(basis.dtype).eps if basis.is_floating_point() else 0.0
    if float(off.max()) > max(_ORTHONORMAL, rounding):
        raise InputError(
            f"The columns of the subspace are not orthonormal (off by {float(off.max()):.3g}). "
            "Use torch.linalg.qr(basis).Q."
        )


def check_broadcast(
    value: Tensor | float, wanted: tuple[int | None, ...], what: str, name: str
) -> None:
    """Refuse a value that does not broadcast to a region.

    Raises:
        InputError: with both shapes.
    """
    found = tuple(value.shape) if isinstance(value, Tensor) else ()
    pairs = list(zip(reversed(found), reversed(wanted), strict=False))
    fits = all(w is None or f in (1, w) for f, w in pairs) and len(found) <= len(wanted)
    if not fits:
        shown = ", ".join("?" if one is None else str(one) for one in wanted)
        raise InputError(
            f"{what}: {name} has shape {found}; it has to broadcast to ({shown}): examples, "
            "positions, heads (if there are any), entries."
        )


def as_value(given: Any, what: str) -> "Tensor | float":
    """A number or tensor; lists and arrays become tensors.

    Raises:
        InputError: it cannot be made a tensor.
    """
    if isinstance(given, Tensor | int | float) and not isinstance(given, bool):
        return given
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} is a number or a tensor, not {given!r}.") from error
