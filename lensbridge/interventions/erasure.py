"""Affine erasure: what a linear classifier could read of a concept is taken out of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError, ShapeError
from lensbridge.interventions.arguments import check_broadcast
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.region import Region
from lensbridge.interventions.source import SourceValues

_NOTHING = 1e-8
"""Singular values of whitened covariances below this, which are at most 1, are rounding."""


@dataclass(frozen=True)
class AffineEraser:
    """The map `x - left right (x - mean)`.

    Shapes: left `[d, k]`, right `[k, d]`, mean `[d]`
    """

    left: Tensor
    right: Tensor
    mean: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: `[..., d]` -> `[..., d]`"""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        left, right, mean = (one.to(wide) for one in (self.left, self.right, self.mean))
        return (wide - ((wide - mean) @ right.T) @ left.T).to(x.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class Erase(Intervention):
    """The run's value less `left right (value - mean)`; `fit_erasure` makes them.

    Args:
        left: `[d, k]`.
        right: `[k, d]`.
        mean: `[d]`.
    """

    left: Tensor
    right: Tensor
    mean: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        d, k = self.left.shape if self.left.ndim == 2 else (0, 0)
        if not d or self.right.shape != (k, d) or self.mean.shape != (d,):
            shapes = [list(one.shape) for one in (self.left, self.right, self.mean)]
            raise InputError(f"left, right and mean are [d, k], [k, d] and [d], not {shapes}.")

    @property
    def eraser(self) -> AffineEraser:
        """The map."""
        return AffineEraser(self.left, self.right, self.mean)

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        return self.eraser(region.value)

    def check_value(self, wanted: tuple[int | None, ...], what: str) -> None:
        check_broadcast(self.mean, wanted, what, "mean")


def leace(x: Tensor, z: Tensor) -> AffineEraser:
    """The smallest affine change of `x` after which no linear classifier can tell `z` from it.

    After it the covariance of every entry of `x` with every entry of `z` is zero, and of all affine
    maps that do this it changes `x` least in the mean square.

    Args:
        x: activations.
        z: what is to be erased: one-hot classes, or numbers.

    Shapes: `[example, d]`, `[example, k]` or `[example]`

    Raises:
        ShapeError: other shapes.
        InputError: fewer than two examples.

    Source: Belrose et al. 2023, "LEACE: perfect linear concept erasure in closed form".

    Example:
        >>> import torch
        >>> z = torch.tensor([0.0, 0.0, 1.0, 1.0])
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [5.0, 1.0], [6.0, 0.0]])
        >>> erased = leace(x, z)(x)
        >>> torch.allclose(erased[z == 0].mean(0), erased[z == 1].mean(0), atol=1e-5)
        True
    """
    z = z[:, None] if z.ndim == 1 else z
    if x.ndim != 2 or z.ndim != 2 or len(x) != len(z):
        raise ShapeError(
            f"x is [example, d] and z [example, k], with as many examples, not {list(x.shape)} and "
            f"{list(z.shape)}."
        )
    if len(x) < 2:
        raise InputError(f"Erasure needs two examples or more, not {len(x)}.")
    wide, mean = x.double(), x.double().mean(0)
    centred, concept = wide - mean, z.double() - z.double().mean(0)
    sizes, V = torch.linalg.eigh(centred.T @ centred / (len(x) - 1))
    there = sizes > sizes[-1] * _rounding(x)
    root = sizes.clamp(min=0).sqrt()
    inverse = torch.where(there, 1 / root.clamp(min=1e-300), 0.0)
    concept = concept / concept.std(0).clamp(min=1e-12)
    whitened = (V * inverse) @ V.T @ (centred.T @ concept / (len(x) - 1))
    U, strength, _ = torch.linalg.svd(whitened, full_matrices=False)
    U = U[:, strength > _NOTHING]
    left, right = (V * torch.where(there, root, 0.0)) @ V.T @ U, U.T @ (V * inverse) @ V.T
    dtype = torch.promote_types(x.dtype, torch.float32)
    return AffineEraser(left.to(dtype), right.to(dtype), mean.to(dtype))


def _rounding(x: Tensor) -> float:
    """The size beside the largest up to which an eigenvalue of a covariance is rounding.

    Activations that should be equal differ in their last digits, and whitening would make these
    differences as large as anything else.
    """
    given = torch.finfo(torch.promote_types(x.dtype, torch.float32)).eps
    return max(x.shape[1] * torch.finfo(torch.double).eps, (x.shape[1] * given) ** 2)


def eraser_of(found: Any) -> AffineEraser:
    """An eraser in its own form, from one of another library.

    Raises:
        InputError: it has neither `left`, `right` and `mean` nor concept-erasure's `proj_left`,
            `proj_right` and `bias`.
    """
    if isinstance(found, AffineEraser):
        return found
    if all(hasattr(found, name) for name in ("proj_left", "proj_right", "bias")):
        left, right = found.proj_left.detach(), found.proj_right.detach()
        mean = left.new_zeros(len(left)) if found.bias is None else found.bias.detach()
        return AffineEraser(left, right, mean)
    raise InputError(
        f"fit gives an eraser, such as LeaceEraser.fit of concept-erasure does, not {found!r}."
    )
