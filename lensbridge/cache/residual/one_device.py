"""Activations of layers that are on several devices, on one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OnOneDevice(Mapping[str, Tensor]):
    """The values of a cache, each moved when it is read.

    Args:
        values_there: the cache.
        device: where they go.
    """

    values_there: Mapping[str, Tensor]
    device: torch.device

    @classmethod
    def of(cls, values: Mapping[str, Tensor]) -> "OnOneDevice":
        """The values on the device of the first."""
        return cls(values, next(iter(values.values())).device)

    def __getitem__(self, name: str) -> Tensor:
        return self.values_there[name].to(self.device)

    def __contains__(self, name: object) -> bool:
        return name in self.values_there

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_there)

    def __len__(self) -> int:
        return len(self.values_there)
