"""`ActivationCache` with the constructor, the names and the in-place methods of TransformerLens."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lensbridge.cache import ActivationCache as LensCache
from lensbridge.compat.transformer_lens.lens_point import by_head
from lensbridge.compat.transformer_lens.raised import asserting
from lensbridge.compat.transformer_lens.slices import taking_slices
from lensbridge.compat.transformer_lens.spellings import GRAD, spelled, unspelled
from lensbridge.points.names import Name


@taking_slices
class ActivationCache(LensCache):
    """Activations by name.

    `remove_batch_dim` and `to` change this cache itself and return it.

    Args:
        cache_dict: activations by name, as `add_caching_hooks` fills it.
        model: the model that was run.
        has_batch_dim: whether the first axis is the batch.
    """

    def __init__(
        self, cache_dict: Mapping[str, Tensor], model: Any, has_batch_dim: bool = True
    ) -> None:
        lens = model.lens
        index = lens.vocabulary.index
        stored = {unspelled(name, index): tensor for name, tensor in cache_dict.items()}
        super().__init__(stored, lens.vocabulary, model=lens, has_batch_dim=has_batch_dim)

    _shown: Mapping[str, str] = MappingProxyType({})
    """Canonical names -> the names of points inside what stands in a model."""

    _beside: frozenset[str] = frozenset()
    """Names of points that are not the native model's."""

    @classmethod
    def of(cls, cache: Any) -> "ActivationCache":
        """The same cache as this class."""
        found: ActivationCache = object.__new__(cls)
        found.__dict__.update(cache.__dict__)
        return found

    def with_tensors(self, tensors: dict[str, Tensor], **changes: Any) -> "ActivationCache":
        own = {shown: name for name, shown in self._shown.items()}
        stored = {
            own.get(name) or unspelled(name, self.vocabulary.index): tensor
            for name, tensor in tensors.items()
        }
        found = type(self).of(super().with_tensors(stored, **changes))
        found._shown, found._beside = self._shown, self._beside
        return found

    def __iter__(self) -> Iterator[str]:
        return (self._shown.get(name) or spelled(name) for name in self._tensors)

    def show(self, names: Mapping[str, str], beside: Mapping[str, Tensor]) -> None:
        """Take the names of a model in which something stands, and the values there.

        Args:
            names: a point of the native model -> its name there.
            beside: the values of points that the native model does not have.
        """
        renamed = {own: name for own, name in names.items() if own != name}
        index = self.vocabulary.index
        plain = {unspelled(own, index): name for own, name in renamed.items()}
        self._shown = {**plain, **{own + GRAD: name + GRAD for own, name in plain.items()}}
        self._beside = frozenset(beside)
        for name, tensor in beside.items():
            self._put(name, tensor)

    def canonical(self, name: Name) -> str:
        if isinstance(name, str) and name not in self._tensors:
            name = {shown: own for own, shown in self._shown.items()}.get(name, name)
        full = super().canonical(name)
        return full if full in self._tensors else unspelled(full, self.vocabulary.index)

    def axes(self, name: Name) -> str:
        if name in self._beside:
            batch = "b " if self.has_batch_dim else ""
            return batch + " ".join("x" * (self[name].ndim - len(batch) // 2))
        return super().axes(name)

    @property
    def cache_dict(self) -> dict[str, Tensor]:
        """A dictionary of the activations."""
        return dict(self)

    def _columns(self, pos_slice: Any, stack: str | None = None) -> Any:
        """Positions are columns of the batch here, also where it is padded."""
        return pos_slice

    def spread(self, heads: int) -> None:
        """Give `hook_attn_in` its head axis in place: one view of the value for each head."""
        tensors = {name: by_head(name, one, heads) for name, one in self._tensors.items()}
        self._tensors = tensors

    @asserting
    def remove_batch_dim(self) -> "ActivationCache":
        """Drop the batch axis of a batch of one, in place."""
        self.__dict__.update(super().remove_batch_dim().__dict__)
        return self

    def to(self, device: Any = None, dtype: Any = None, **_: Any) -> "ActivationCache":
        """Move the activations, in place."""
        self.__dict__.update(super().to(device, dtype).__dict__)
        return self
