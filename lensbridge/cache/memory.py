"""Methods of `ActivationCache` for where its tensors are: bytes, dtype, device, copies."""

from collections.abc import Callable, ItemsView, ValuesView
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lensbridge.cache.capture import Place, place_of
from lensbridge.errors import InputError
from lensbridge.tensors.dtypes import dtype_of

if TYPE_CHECKING:
    from typing_extensions import Self


class MemoryMethods:
    """Methods of `ActivationCache` for the memory that its tensors take."""

    if TYPE_CHECKING:
        _tensors: dict[str, Tensor]
        with_tensors: Callable[..., Any]
        items: Callable[[], ItemsView[str, Tensor]]
        values: Callable[[], ValuesView[Tensor]]

    @property
    def nbytes(self) -> int:
        """The bytes of memory of the activations; shared memory counts once."""
        held = [tensor.untyped_storage() for tensor in self._tensors.values()]
        storages = {storage.data_ptr(): storage for storage in held}
        return sum(storage.nbytes() for storage in storages.values())

    @property
    def nbytes_by_name(self) -> dict[str, int]:
        """The bytes of each activation."""
        return {name: tensor.nbytes for name, tensor in self._tensors.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the activations.

        Raises:
            InputError: there are no activations, or they have several types.
        """
        found = {tensor.dtype for tensor in self.values() if tensor.is_floating_point()}
        if len(found) != 1:
            raise InputError(f"The activations have {len(found)} floating types: {found or {}}.")
        return found.pop()

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None
    ) -> "Self":
        """The cache on another device or as another floating type; unchanged tensors are shared.

        Names that share one tensor share it in the result too.

        Raises:
            InputError: there is no such dtype.
        """
        dtype = dtype_of(dtype)
        return self._mapped(
            lambda one: one.to(device=device, dtype=dtype if one.is_floating_point() else None)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Self":
        """A cache of the same model with copies of the tensors."""
        return self._mapped(Tensor.clone)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Self":
        """A cache with changed tensors; names that share one tensor share what it becomes."""
        made: dict[Place, Tensor] = {}
        for tensor in self.values():
            if place_of(tensor) not in made:
                made[place_of(tensor)] = change(tensor)
        changed = {name: made[place_of(tensor)] for name, tensor in self.items()}
        cache: Self = self.with_tensors(changed)
        return cache
