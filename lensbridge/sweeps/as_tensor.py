"""A result that can be used where a tensor is expected."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from lensbridge.elsewhere.hinted import Hinted


class AsTensor(Hinted):
    """Torch functions, arithmetic, numpy and the attributes of a tensor act on `values`."""

    values: Tensor

    def __getattr__(self, name: str) -> Any:
        """Attributes that only a tensor has are those of `values`: `shape`, `cpu`, `max`..."""
        if name.startswith("__") or name == "values":  # copy and pickle ask before it is set
            raise AttributeError(name)
        if name in self._instead or not hasattr(self.values, name):
            raise AttributeError(self._missing(name))
        return getattr(self.values, name)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        plain = {key: _plain(value) for key, value in (kwargs or {}).items()}
        return func(*_plain(list(args)), **plain)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self.values.detach().cpu().numpy()
        return array if dtype is None else array.astype(dtype)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.values)

    def __add__(self, other: Any) -> Tensor:
        return self.values + _plain(other)

    def __radd__(self, other: Any) -> Tensor:
        return other + self.values

    def __sub__(self, other: Any) -> Tensor:
        return self.values - _plain(other)

    def __rsub__(self, other: Any) -> Tensor:
        return other - self.values

    def __mul__(self, other: Any) -> Tensor:
        return self.values * _plain(other)

    def __rmul__(self, other: Any) -> Tensor:
        return other * self.values

    def __truediv__(self, other: Any) -> Tensor:
        return self.values / _plain(other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return other / self.values

    def __neg__(self) -> Tensor:
        return -self.values


def _plain(value: Any) -> Any:
    """The tensor of a result, inside lists and tuples too."""
    if isinstance(value, AsTensor):
        return value.values
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value
