"""Kinds of intervention that compute the new value of a region from its old one and a constant.

Constants broadcast to the region, `[example, position, (head), entry]`, which has the positions,
heads and entries that the intervention is for. In a subspace the entries are its coordinates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.interventions.arguments import as_value, check_broadcast
from lensbridge.interventions.columns import repeated
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.region import Region
from lensbridge.interventions.source import SourceValues

Value = Tensor | float
"""A number, or a tensor that broadcasts to the part that is edited."""


def _beside(value: Value, region: Region) -> Value:
    """A value on the region's device, with its examples repeated for the rows of the run."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(region.value)
    if value.ndim == region.value.ndim:
        value = repeated(value, len(region.value), f"{region.place.name}: the value")
    return value


@dataclass(frozen=True, eq=False, repr=False)
class Replace(Intervention):
    """A given value in place of the run's.

    Args:
        value: a number, or a tensor that broadcasts to the region.

    Example:
        >>> import lensbridge
        >>> from lensbridge.interventions import Replace
        >>> model = lensbridge.load("demo")
        >>> off = Replace("blocks.1.attn.hook_attn_scores", float("-inf"), positions=-1, keys=[1])
        >>> with model.intervene([off]):
        ...     _, cache = model.run_with_cache("The Eiffel Tower is in the city of")
        >>> cache["pattern", 1][0, :, -1, 1]
        tensor([0., 0., 0., 0.])
    """

    value: Value
    on_integers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("value", as_value(self.value, "value"))

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        value = _beside(self.value, region)
        if isinstance(value, Tensor):
            return value.expand_as(region.value)
        return torch.full_like(region.value, value)

    def check_value(self, wanted: tuple[int | None, ...], what: str) -> None:
        check_broadcast(self.value, wanted, what, "value")


@dataclass(frozen=True, eq=False, repr=False)
class Add(Intervention):
    """A value added to the run's.

    Args:
        value: a number, or a tensor that broadcasts to the region.
        factor: what the value is multiplied by.
    """

    value: Value
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("value", as_value(self.value, "value"))

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        return region.value + self.factor * _beside(self.value, region)

    def check_value(self, wanted: tuple[int | None, ...], what: str) -> None:
        check_broadcast(self.value, wanted, what, "value")


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Intervention):
    """The run's value times a factor; with a subspace, only its part in there.

    Args:
        factor: a number, or a tensor that broadcasts to the region.
    """

    factor: Value

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("factor", as_value(self.factor, "factor"))

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        return region.value * _beside(self.factor, region)

    def check_value(self, wanted: tuple[int | None, ...], what: str) -> None:
        check_broadcast(self.factor, wanted, what, "factor")


@dataclass(frozen=True, eq=False, repr=False)
class Zero(Intervention):
    """Zero in place of the run's value; with a subspace, only its part in there is removed."""

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        return torch.zeros_like(region.value)


@dataclass(frozen=True, eq=False, repr=False)
class Project(Intervention):
    """The run's value without its part in a subspace, or that part alone.

    Args:
        subspace: `[d, k]` with orthonormal columns, or a direction `[d]` of any length.
        keep: keep the part in the subspace instead of the rest.
    """

    subspace: Tensor
    keep: bool = False

    @property
    def seen_subspace(self) -> Tensor | None:
        return None

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        value = region.value
        wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        basis = self.subspace.to(wide)
        within = (wide @ basis) @ basis.T
        return (within if self.keep else wide - within).to(value.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class Steer(Intervention):
    """A direction added to the run's value.

    Args:
        vector: `[d]`, or anything that broadcasts to the region.
        strength: what the vector is multiplied by.
        unit: "vector": strength 1 adds the vector as it is; "norm": strength 1 adds its direction
            with the norm of the value that it is added to.
    """

    vector: Tensor
    strength: float = 1.0
    unit: Literal["vector", "norm"] = "vector"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("vector", torch.as_tensor(as_value(self.vector, "vector")))
        if self.unit not in ("vector", "norm"):
            raise InputError(f"unit is 'vector' or 'norm', not {self.unit!r}.")
        if self.unit == "norm" and not bool(self.vector.norm(dim=-1).all()):
            raise InputError("unit='norm' needs the direction of the vector, which is zero.")

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        vector = _beside(self.vector, region)
        assert isinstance(vector, Tensor)
        if self.unit == "vector":
            return region.value + self.strength * vector
        direction = vector / vector.norm(dim=-1, keepdim=True)
        return region.value + self.strength * region.value.norm(dim=-1, keepdim=True) * direction

    def check_value(self, wanted: tuple[int | None, ...], what: str) -> None:
        check_broadcast(self.vector, wanted, what, "vector")


@dataclass(frozen=True, eq=False, repr=False)
class Noise(Intervention):
    """Gaussian noise added to the run's value.

    It depends only on the seed, the point, the row and the position. So a run can be repeated, and
    the noise of a place does not depend on what else is in the batch or the region.

    Args:
        std: standard deviation of the noise.
        seed: of the noise.
    """

    std: float
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.std >= 0:
            raise InputError(f"std is a standard deviation, 0 or more, not {self.std!r}.")

    @property
    def works_by_row(self) -> bool:
        return False

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        rows, n = region.value.shape[:2]
        columns = region.numbers.expand(rows, n).tolist()
        noise = [
            gaussian(self.seed, region.place.name, row, column, region.value.shape[2:])
            for row, own in zip(region.window.row_numbers, columns, strict=True)
            for column in own
        ]
        drawn = torch.stack(noise).reshape(region.value.shape)
        return region.value + self.std * drawn.to(region.value)


def gaussian(seed: int, name: str, row: int, column: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one place: float32, drawn on the CPU."""
    text = f"{seed} {name} {row} {column}".encode()
    number = int.from_bytes(sha256(text).digest()[:7], "big")
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(number))
