"""Methods of `ActivationCache` for the axes of activations, the batch's above all."""

from collections.abc import Callable, ItemsView, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lensbridge.cache.capture import GRAD
from lensbridge.errors import InputError
from lensbridge.points.names import Name, template
from lensbridge.points.point_names import PointNames
from lensbridge.points.table import BY_TEMPLATE
from lensbridge.tensors.slices import PosSlice, taken


class BatchMethods:
    """Methods of `ActivationCache` for the batch axis."""

    if TYPE_CHECKING:
        vocabulary: PointNames
        has_batch_dim: bool
        tokens: Tensor | None
        attention_mask: Tensor | None
        decoder_attention_mask: Tensor | None
        canonical: Callable[[Name], str]
        with_tensors: Callable[..., Any]
        items: Callable[[], ItemsView[str, Tensor]]
        __getitem__: Callable[..., Tensor]
        __iter__: Callable[..., Iterator[str]]

    def axes(self, name: Name) -> str:
        """One letter for each axis of an activation (`lensbridge.points.table`): "b p h d"."""
        plain = self.canonical(name).removesuffix(GRAD)
        index = self.vocabulary.index  # at the time of the run: an SAE's points may be gone now
        site = index.get(plain) if isinstance(index, Mapping) else None
        letters = BY_TEMPLATE[template(plain)].axes if site is None else site.axes
        if self.has_batch_dim:
            return letters
        return " ".join(letter for letter in letters.split() if letter != _batch_letter(letters))

    def _batch_axis(self, name: str) -> int | None:
        letters = self.axes(name).split()
        if "t" in letters:
            raise InputError(
                f"{name} has the tokens of all examples in one axis, so no example can be taken "
                "out. Leave the points inside experts out of the cache."
            )
        letter = _batch_letter(" ".join(letters))
        return letters.index(letter) if letter in letters else None

    def remove_batch_dim(self) -> Any:
        """The cache without its batch axis, for a batch of one.

        Raises:
            InputError: the batch has more than one example.
        """
        if not self.has_batch_dim:
            return self
        axes = {name: self._batch_axis(name) for name in self if ".experts." not in name}
        sizes = {self[name].shape[axis] for name, axis in axes.items() if axis is not None}
        if sizes - {1}:
            raise InputError(
                f"The batch has {max(sizes)} examples, so its axis cannot be removed. Take one: "
                "cache.apply_slice_to_batch_dim(0)."
            )
        squeezed = {
            name: t if axes.get(name) is None else t.select(axes[name] or 0, 0)
            for name, t in self.items()
        }
        return self.with_tensors(squeezed, has_batch_dim=False)

    def apply_slice_to_batch_dim(self, batch_slice: PosSlice) -> Any:
        """The cache of some examples; an int removes the batch axis.

        Raises:
            InputError: there is no batch axis, or an activation mixes the examples.
        """
        if not self.has_batch_dim:
            raise InputError("This cache has no batch axis, so no example can be taken from it.")
        alone = isinstance(batch_slice, int)

        def chosen(name: str, tensor: Tensor) -> Tensor:
            axis = self._batch_axis(name)
            if axis is None:
                return tensor
            one_for_all = self.axes(name).startswith("1 ")
            shared = one_for_all and tensor.shape[axis] == 1
            return taken(
                tensor, (0 if alone else None) if shared else batch_slice, axis - tensor.ndim
            )

        def row(given: Tensor | None) -> Tensor | None:
            return None if given is None else taken(given, batch_slice, -given.ndim)

        return self.with_tensors(
            {name: chosen(name, tensor) for name, tensor in self.items()},
            tokens=row(self.tokens),
            attention_mask=row(self.attention_mask),
            decoder_attention_mask=row(self.decoder_attention_mask),
            has_batch_dim=not alone,
        )


def _batch_letter(axes: str) -> str:
    """The letter of the batch axis: `1` where all examples share the value, else `b`."""
    return "1" if axes.startswith("1 ") else "b"
