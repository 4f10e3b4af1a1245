"""Norms as linear maps: with the divisor of each position fixed, a norm is linear.

So one summand of the residual stream can be followed through any number of norms, and a direction
can be followed back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lensbridge.native.norm import Norm


@dataclass(frozen=True)
class NormMap:
    """What a norm does to one summand of its input: centre, divide, multiply by the gain.

    Args:
        centred: whether the mean is subtracted (LayerNorm).
        divisor: `[..., pos, 1]`, or None.
        gain: `[d_model]` or a number.
    """

    centred: bool = False
    divisor: Tensor | None = None
    gain: Tensor | float = 1.0

    @classmethod
    def of(cls, norm: Norm, divisor: Tensor) -> "NormMap":
        """The map of a norm that divided by `divisor`."""
        return cls(norm.kind == "LN", divisor, norm.fixed_gain().detach())

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: `[..., pos, d_model]` -> the same."""
        y = x - x.mean(-1, keepdim=True) if self.centred else x
        y = y if self.divisor is None else y / self.divisor.to(y.device)
        return (y * self._gain(y)).to(x.dtype)

    def back(self, directions: Tensor) -> Tensor:
        """For directions of the map's output, those of its input with the same dot products.

        The divisor is left out.

        Shapes: `[d_model, direction]` -> the same.
        """
        gain = self._gain(directions)
        scaled = directions * (gain if isinstance(gain, float) else gain.unsqueeze(-1))
        return scaled - scaled.mean(0, keepdim=True) if self.centred else scaled

    def _gain(self, like: Tensor) -> Tensor | float:
        return self.gain if isinstance(self.gain, float) else self.gain.to(like.device)


@dataclass(frozen=True)
class Route:
    """Maps one after another."""

    maps: tuple[NormMap, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: `[..., pos, d_model]` -> the same."""
        for norm_map in self.maps:
            x = norm_map.forward(x)
        return x

    def back(self, directions: Tensor) -> Tensor:
        """For directions at the end, those at the start; the divisors are left out."""
        for norm_map in reversed(self.maps):
            directions = norm_map.back(directions)
        return directions

    @property
    def divisor(self) -> Tensor | float:
        """The product of the divisors, `[..., pos, 1]`."""
        product: Tensor | float = 1.0
        for norm_map in self.maps:
            if norm_map.divisor is not None:
                product = norm_map.divisor * product
        return product

    def after(self, first: Sequence[NormMap]) -> "Route":
        """The route with other maps before it."""
        return Route((*first, *self.maps))

    def write(self, weights: Tensor, matrix: Tensor, directions: Tensor | None) -> Tensor:
        """Each row of a matrix, times its weight, at the end of the route.

        With directions, no `[row, d_model]` product is made for any position.

        Args:
            weights: the weight of each row at each position.
            matrix: the rows.
            directions: the directions to project onto at the end, or None for whole vectors.

        Shapes: `[..., pos, row]`, `[row, d_model]` -> `[row, ..., pos, d_model or direction]`.
        """
        rows = weights.movedim(-1, 0).unsqueeze(-1)
        lead = (len(matrix), *[1] * (rows.ndim - 2), -1)
        if directions is None:
            return self.forward(rows * matrix.view(lead))
        read = matrix @ self.back(directions.to(matrix))
        return (rows / self.divisor).to(rows.dtype) * read.view(lead)

    def read(self, x: Tensor, directions: Tensor | None) -> Tensor:
        """A summand at the end of the route, projected onto directions if there are any.

        Shapes: `[..., pos, d_model]` -> `[..., pos, d_model or direction]`.
        """
        through = self.forward(x)
        return through if directions is None else through @ directions.to(through)
