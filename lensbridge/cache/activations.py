"""ActivationCache: the activations of one run, each stored once under its canonical name."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import files, labelled
from lensbridge.cache.batch import BatchMethods
from lensbridge.cache.capture import GRAD, version_of
from lensbridge.cache.last_token import last_token
from lensbridge.cache.memory import MemoryMethods
from lensbridge.cache.owner import CachedModel
from lensbridge.cache.pictures import PictureMethods
from lensbridge.cache.residual.attribution import AttributionMethods
from lensbridge.cache.residual.shares import ShareMethods
from lensbridge.cache.residual.stream import StreamMethods
from lensbridge.elsewhere.cache import CACHE
from lensbridge.elsewhere.hinted import Hinted
from lensbridge.errors import InputError, NotCachedError, StaleActivationError, UnknownPointError
from lensbridge.points.names import LAYER, Name, rows_of_short, short_of
from lensbridge.points.point_names import PointNames, nowhere


class ActivationCache(
    StreamMethods,
    ShareMethods,
    AttributionMethods,
    PictureMethods,
    BatchMethods,
    MemoryMethods,
    Hinted,
    Mapping[str, Tensor],
):
    """Activations by name: `cache["blocks.1.attn.hook_q"]`, `cache["q", 1]`, `cache["q", -1]`.

    Tensors are those of the run, not copies. If one was overwritten later, reading it raises.

    Args:
        cache_dict: activations by name; with a model, in any of its spellings.
        names: the model that was run, or its names if there is no model.
        has_batch_dim: whether the first axis is the batch.

    Attributes:
        model: the model that was run.
        tokens: `[batch, pos]` ids of the input, or None if the input was not tokens.
        attention_mask: `[batch, pos]`, or None if nothing was masked.
        decoder_attention_mask: the same of the decoder of an encoder-decoder.
        prepend_bos: whether the rows begin with a BOS token; None if the input was not text.
        processed: the steps of weight processing that were applied in the run.
        has_batch_dim: False after `remove_batch_dim`.
    """

    decoder_attention_mask: Tensor | None = None
    _instead = CACHE

    def __init__(
        self,
        cache_dict: Mapping[str, Tensor],
        names: PointNames | CachedModel | None = None,
        has_batch_dim: bool = True,
        *,
        model: CachedModel | None = None,
        tokens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        prepend_bos: bool | None = None,
        versions: Mapping[str, int] | None = None,
        processed: tuple[str, ...] | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> None:
        self._tensors: dict[str, Tensor] = {}
        if isinstance(names, PointNames):
            self.vocabulary = names
            self._tensors.update(cache_dict)
        else:
            model = model if names is None else names
            self.vocabulary = _vocabulary(model)
            self._tensors.update({self.canonical(name): t for name, t in cache_dict.items()})
        self._versions = {name: version_of(tensor) for name, tensor in self._tensors.items()}
        self._versions.update(versions or {})
        self.model = model
        self.tokens = tokens
        self.attention_mask = attention_mask
        self.decoder_attention_mask = decoder_attention_mask
        self.prepend_bos = prepend_bos
        self.has_batch_dim = has_batch_dim
        ran_with = () if model is None else model.processed_by
        self.processed = ran_with if processed is None else processed

    def canonical(self, name: Name) -> str:
        """The name under which an activation is stored, from any spelling.

        Raises:
            UnknownPointError: there is no such name.
            AbsentPointError: this model lacks the point.
        """
        if isinstance(name, str) and name in self._tensors:
            return name
        if not isinstance(name, str | Sequence) or not name:
            raise UnknownPointError(
                f"A point is named by a string or by (name, layer), not by {type(name).__name__}."
            )
        first = name if isinstance(name, str) else name[0]
        if isinstance(first, str) and first.endswith(GRAD):
            plain = first.removesuffix(GRAD)
            shortened: Name = plain if isinstance(name, str) else (plain, *name[1:])
            return self.vocabulary.canonical(shortened) + GRAD
        return self.vocabulary.canonical(name)

    def _hint(self, name: str) -> str:
        if name not in CACHE and rows_of_short(name.removeprefix("hook_")):
            short = name.removeprefix("hook_")
            return f" It is a point: cache[{short!r}, 1] is that of a layer. list(cache) has all."
        return super()._hint(name)

    def __getitem__(self, name: Name) -> Tensor:
        """An activation by canonical, other or short name; negative layers count from the end.

        Raises:
            UnknownPointError: there is no such name.
            AbsentPointError: this model lacks the point.
            NotCachedError: the run did not keep it.
            StaleActivationError: the tensor was written to after it was captured.
        """
        full = self.canonical(name)
        if full not in self._tensors:
            self.require([full])
        tensor = self._tensors[full]
        if version_of(tensor) != self._versions[full]:
            raise StaleActivationError(
                f"{full} was written to after it was captured, so it is not what the model "
                "computed. Clone an activation before changing it in place."
            )
        return tensor

    def last_token(self, name: Name, layer: int | None = None) -> Tensor:
        """An activation at each text's own last token, wherever padding is.

        Of a pattern or scores, it is the row of the last query.

        Args:
            name: the point, in any spelling.
            layer: the layer, where `name` is a short name: `cache.last_token("resid_post", 5)`.

        Shapes: the activation's without the position axis: `[batch, ...]`

        Raises:
            InputError: the activation has no positions, or was kept at some of them only.
            NotCachedError: the run did not keep it.

        Example:
            >>> import lensbridge
            >>> model = lensbridge.load("demo")
            >>> _, cache = model.run_with_cache(["John and Mary went to the store", "When Tom"])
            >>> cache.last_token("resid_post", -1).shape
            torch.Size([2, 128])
        """
        if layer is None:
            return last_token(self, name)
        if not isinstance(name, str):
            raise InputError(f"The name {name!r} has a layer: leave layer={layer} out.")
        return last_token(self, (name, layer))

    def require(self, names: Iterable[str]) -> None:
        """Require that the cache has activations.

        Args:
            names: canonical names.

        Raises:
            NotCachedError: it does not have all of them; the message says how to keep them.
        """
        missing = [name for name in names if name not in self._tensors]
        if not missing:
            return
        rows = list(dict.fromkeys(LAYER.sub(r"\1.*.", name) for name in missing))
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        asked: Any = rows if more else missing[0]
        raise NotCachedError(
            f"Not cached: {missing[0]}{more}; this cache holds {len(self)} points. Ask for it: "
            f"run_with_cache(..., names_filter={asked!r})."
        )

    def __contains__(self, name: object) -> bool:
        try:
            return self.canonical(name) in self._tensors  # type: ignore[arg-type]
        except (UnknownPointError, NotCachedError, KeyError, TypeError):
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _ipython_key_completions_(self) -> list[Name]:
        """What a notebook offers after `cache[`: every name, and `("q", 5)`."""
        return [*self, *filter(None, map(short_of, self))]

    def __repr__(self) -> str:
        return f"ActivationCache({len(self)} activations, {self.nbytes / 1e6:.1f} MB)"

    def _put(self, name: str, tensor: Tensor) -> None:
        self._tensors[name] = tensor
        self._versions[name] = version_of(tensor)

    def with_tensors(self, tensors: dict[str, Tensor], **changes: Any) -> "ActivationCache":
        """A cache of the same run with other tensors; `changes` are other arguments."""
        about: dict[str, Any] = {
            "model": self.model,
            "tokens": self.tokens,
            "attention_mask": self.attention_mask,
            "decoder_attention_mask": self.decoder_attention_mask,
            "prepend_bos": self.prepend_bos,
            "has_batch_dim": self.has_batch_dim,
            "processed": self.processed,
        }
        return ActivationCache(tensors, self.vocabulary, **{**about, **changes})

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: the activations and what is known of the run, without the model."""
        index = (*self.vocabulary.index,)
        names = replace(self.vocabulary, index=index, elsewhere=nowhere, native=())
        return {**self.__dict__, "vocabulary": names, "model": None, "_versions": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._versions = {name: version_of(tensor) for name, tensor in self._tensors.items()}

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Switch gradients off (or on) for all later code, also outside the cache."""
        torch.set_grad_enabled(mode)

    # --- other formats ------------------------------------------------------------------------

    def to_xarray(self, name: Name) -> Any:
        """One activation with named axes; see `lensbridge.cache.labelled`."""
        return labelled.to_xarray(self, name)

    def save(self, path: str | Path) -> None:
        """Write the cache to a file; see `lensbridge.cache.files`."""
        files.save(self, path)

    @classmethod
    def load(cls, path: str | Path, model: CachedModel | None = None) -> "ActivationCache":
        """Read a cache from a file; see `lensbridge.cache.files`."""
        return cls(**files.load(path, model))


def _vocabulary(model: CachedModel | None) -> PointNames:
    if model is None:
        raise InputError("An ActivationCache needs the model that was run, for its names.")
    return model.vocabulary
