"""ActivationCache: the activations of one run, each stored once under its canonical name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lensbridge.attribution import AttributionMethods
from lensbridge.errors import InputError, NotCachedError, StaleActivationError, UnknownPointError
from lensbridge.hooks import Callback, Hook
from lensbridge.names import BY_TEMPLATE, Name, template
from lensbridge.shares import ShareMethods
from lensbridge.sites import Site
from lensbridge.slices import PosSlice, as_index, taken
from lensbridge.stream import StreamMethods
from lensbridge.vocabulary import Vocabulary

if TYPE_CHECKING:
    from lensbridge.model import LensModel

GRAD = "_grad"


def version_of(tensor: Tensor) -> int:
    """How often a tensor's memory was written to; inference tensors do not count."""
    return -1 if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class Keep:
    """How captured activations are kept.

    Args:
        device: where to, or None: where they are.
        dtype: as what, or None: as they are.
        pos_slice: which positions: an index (the axis stays), a slice, its `(start, stop, step)`
            as a tuple, or a list of indices.
        detach: whether they are cut from the autograd graph.
    """

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    pos_slice: PosSlice = None
    detach: bool = True

    def index(self) -> Any:
        """The position slice as something to index with that keeps the axis."""
        pos = self.pos_slice
        if isinstance(pos, int):
            return slice(pos, None) if pos == -1 else slice(pos, pos + 1)
        return as_index(pos)

    def capture(self, value: Tensor, axes: str, alone: bool) -> Tensor:
        """The tensor to keep for a value.

        Args:
            value: the live activation.
            axes: its axes, to find the position axis.
            alone: whether nobody keeps the rest of the tensor that it may be a slice of, so that
                keeping a view would hold memory that nobody asked for.
        """
        kept = value.detach() if self.detach and value.requires_grad else value
        axis = None if self.pos_slice is None else position_axis(axes)
        if axis is not None:
            kept = kept[(slice(None),) * axis + (self.index(),)].clone()
        elif alone and kept.untyped_storage().nbytes() > kept.nbytes:
            kept = kept.clone()
        if self.device is not None or self.dtype is not None:
            kept = kept.to(device=self.device, dtype=self.dtype)
        return kept


def position_axis(axes: str) -> int | None:
    """Which axis counts positions: `p`, or the query axis of a pattern; None where there is none.

    Example:
        >>> position_axis("b p h d"), position_axis("b h q k"), position_axis("b m")
        (1, 2, None)
    """
    letters = axes.split()
    return next((letters.index(one) for one in "pq" if one in letters), None)


@dataclass
class Collector:
    """Callbacks that fill a dictionary with the activations of a run."""

    sites: Mapping[str, Site]
    names: Sequence[str]
    keep: Keep
    tensors: dict[str, Tensor] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    graph: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._asked = frozenset(self.names)

    def callbacks(self, required: bool, with_grad: bool) -> list[Callback]:
        """A reader for each name; with gradients, also the tensors to differentiate by."""
        found = []
        for name in self.names:
            if with_grad:
                found.append(Callback(name, "edit", self._join_graph(name), name, required))
            found.append(Callback(name, "read", self._reader(name), name, required))
        return found

    def _reader(self, name: str) -> Callable[[Tensor], None]:
        site, keep = self.sites[name], self.keep
        tensors, versions, axes = self.tensors, self.versions, site.axes
        alone = site.may_be_part and (len(site.shares) == 1 or not site.shares <= self._asked)

        def read(value: Tensor) -> None:
            kept = keep.capture(value, axes, alone)
            tensors[name] = kept
            versions[name] = version_of(kept)

        return read

    def _join_graph(self, name: str) -> Callable[[Tensor, Hook], None]:
        def join(value: Tensor, hook: Hook) -> None:
            self.graph[name] = value if value.requires_grad else value.requires_grad_()

        return join

    def backward(self, output: Tensor) -> None:
        """Gradients of a scalar at every point, kept under `<name>_grad`.

        Parameters' `.grad` stay as they are.
        """
        names = list(self.graph)
        grads = torch.autograd.grad(output, [self.graph[n] for n in names], allow_unused=True)
        for name, grad in zip(names, grads, strict=True):
            given = torch.zeros_like(self.graph[name]) if grad is None else grad
            kept = self.keep.capture(given, self.sites[name].axes, alone=True)
            self.tensors[name + GRAD] = kept
            self.versions[name + GRAD] = version_of(kept)
        self.graph.clear()


class ActivationCache(StreamMethods, ShareMethods, AttributionMethods, Mapping[str, Tensor]):
    """Activations by name: `cache["blocks.1.attn.hook_q"]`, `cache["q", 1]`, `cache["q", -1]`.

    Tensors are the run's own, not copies; reading one that was overwritten since raises.

    Attributes:
        model: the model that was run.
        tokens: `[batch, pos]` ids of the input, or None where it was not tokens.
        attention_mask: `[batch, pos]`, or None where nothing was masked.
        prepend_bos: whether the rows begin with a BOS token; None where the input was not text.
        has_batch_dim: False after `remove_batch_dim`.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        vocabulary: Vocabulary,
        *,
        model: "LensModel | None" = None,
        tokens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        prepend_bos: bool | None = None,
        versions: Mapping[str, int] | None = None,
        has_batch_dim: bool = True,
    ) -> None:
        self._tensors = tensors
        self._versions = {name: version_of(tensor) for name, tensor in tensors.items()}
        self._versions.update(versions or {})
        self.vocabulary = vocabulary
        self.model = model
        self.tokens = tokens
        self.attention_mask = attention_mask
        self.prepend_bos = prepend_bos
        self.has_batch_dim = has_batch_dim

    def _canonical(self, name: Name) -> str:
        first = name if isinstance(name, str) else name[0]
        if isinstance(first, str) and first.endswith(GRAD):
            plain = first.removesuffix(GRAD)
            shortened: Name = plain if isinstance(name, str) else (plain, *name[1:])
            return self.vocabulary.canonical(shortened) + GRAD
        return self.vocabulary.canonical(name)

    def __getitem__(self, name: Name) -> Tensor:
        """An activation by canonical, other or short name; negative layers count from the end.

        Raises:
            UnknownPointError: no such name.
            AbsentPointError: this architecture lacks the point.
            NotCachedError: the run was not asked to keep it.
            StaleActivationError: the tensor was written to after it was captured.
        """
        full = self._canonical(name)
        if full not in self._tensors:
            raise NotCachedError(
                f"{full} was not cached; this cache holds {len(self)} points. "
                f"Ask for it: run_with_cache(..., names_filter={full!r})."
            )
        tensor = self._tensors[full]
        if version_of(tensor) != self._versions[full]:
            raise StaleActivationError(
                f"{full} was written to after it was captured, so it is not what the model "
                "computed. Clone an activation before changing it in place."
            )
        return tensor

    def __contains__(self, name: object) -> bool:
        try:
            return self._canonical(name) in self._tensors  # type: ignore[arg-type]
        except (UnknownPointError, NotCachedError, KeyError, TypeError):
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"ActivationCache({len(self)} activations, {self.nbytes / 1e6:.1f} MB)"

    def _put(self, name: str, tensor: Tensor) -> None:
        self._tensors[name] = tensor
        self._versions[name] = version_of(tensor)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the activations take; what shares memory counts once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in self.values()}
        return sum(storage.nbytes() for storage in storages.values())

    @property
    def nbytes_by_name(self) -> dict[str, int]:
        """Bytes of each activation by itself."""
        return {name: tensor.nbytes for name, tensor in self.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the activations.

        Raises:
            InputError: there are none, or of several types.
        """
        found = {tensor.dtype for tensor in self.values() if tensor.is_floating_point()}
        if len(found) != 1:
            raise InputError(f"The activations have {len(found)} floating types: {found or {}}.")
        return found.pop()

    def _like(self, tensors: dict[str, Tensor], **changes: Any) -> "ActivationCache":
        about: dict[str, Any] = {
            "model": self.model,
            "tokens": self.tokens,
            "attention_mask": self.attention_mask,
            "prepend_bos": self.prepend_bos,
            "has_batch_dim": self.has_batch_dim,
        }
        return ActivationCache(tensors, self.vocabulary, **{**about, **changes})

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "ActivationCache":
        """The cache elsewhere, or as another floating type; what is so already is shared.

        Names that share one tensor share it there too.
        """
        moved: dict[int, Tensor] = {}
        for tensor in self.values():
            kind = dtype if tensor.is_floating_point() else None
            moved.setdefault(id(tensor), tensor.to(device=device, dtype=kind))
        return self._like({name: moved[id(tensor)] for name, tensor in self.items()})

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Switch gradients off (or on) for everything that follows, outside the cache too."""
        torch.set_grad_enabled(mode)

    # --- the batch axis ----------------------------------------------------------------------

    def _batch_axis(self, name: str) -> int | None:
        plain = name.removesuffix(GRAD)
        axes = BY_TEMPLATE[template(plain)].axes
        if self.model is not None:
            axes = self.model.engine.sites[plain].axes
        letters = axes.split()
        if letters[0] == "1":
            return 0
        if "t" in letters:
            raise InputError(
                f"{name} holds the tokens of all examples in one axis, so no example can be taken "
                "out. Leave the points inside experts out of the cache."
            )
        return letters.index("b") if "b" in letters else None

    def remove_batch_dim(self) -> "ActivationCache":
        """The cache without its batch axis, for a batch of one.

        Raises:
            InputError: the batch has more than one example.
        """
        if not self.has_batch_dim:
            return self
        axes = {name: self._batch_axis(name) for name in self if ".experts." not in name}
        sizes = {self[name].shape[axis] for name, axis in axes.items() if axis is not None}
        if sizes - {1}:
            raise InputError(f"The batch has {max(sizes)} examples; only a batch of 1 can go.")
        squeezed = {
            name: t if axes.get(name) is None else t.select(axes[name] or 0, 0)
            for name, t in self.items()
        }
        return self._like(squeezed, has_batch_dim=False)

    def apply_slice_to_batch_dim(self, batch_slice: PosSlice) -> "ActivationCache":
        """The cache of some examples; an int takes the batch axis away.

        Raises:
            InputError: there is no batch axis, or an activation mixes the examples.
        """
        if not self.has_batch_dim:
            raise InputError("This cache has no batch axis any more, so no example can be taken.")
        alone = isinstance(batch_slice, int)

        def chosen(name: str, tensor: Tensor) -> Tensor:
            axis = self._batch_axis(name)
            if axis is None:
                return tensor
            shared = tensor.shape[axis] == 1 and self._is_shared(name)
            return taken(
                tensor, (0 if alone else None) if shared else batch_slice, axis - tensor.ndim
            )

        def row(given: Tensor | None) -> Tensor | None:
            return None if given is None else taken(given, batch_slice, -given.ndim)

        return self._like(
            {name: chosen(name, tensor) for name, tensor in self.items()},
            tokens=row(self.tokens),
            attention_mask=row(self.attention_mask),
            has_batch_dim=not alone,
        )

    def _is_shared(self, name: str) -> bool:
        return BY_TEMPLATE[template(name.removesuffix(GRAD))].axes.startswith("1 ")

    # --- files -------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the cache to a file; see `lensbridge.cache_files`."""
        from lensbridge.cache_files import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path, model: "LensModel | None" = None) -> "ActivationCache":
        """Read a cache from a file; see `lensbridge.cache_files`."""
        from lensbridge.cache_files import load

        return load(path, model)
