"""HookedModel: a model that runs with hooks, caches, and shows its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.apart import refuse_apart
from lensbridge.cache.capture import Collector, Keep
from lensbridge.errors import InputError
from lensbridge.hooked_model.running import LogitsAndLoss, OneTensor, Result, ReturnType, RunMethods
from lensbridge.hooks.hook_point import HookPair
from lensbridge.inputs.prepare import Prepared
from lensbridge.plans.budget import require_room
from lensbridge.points.point_names import NamesFilter, names_points
from lensbridge.tensors.dtypes import dtype_of
from lensbridge.tensors.positions import Count
from lensbridge.tensors.slices import PosSlice


class HookedModel(RunMethods):
    """A HuggingFace model, not modified, with named activations and weights.

    This is what every tool of lensbridge works on; `LensModel` is this with the tools' methods.
    Tools call `prepare`, `run_callbacks`, `cache_of` and `listening`, from which the methods for
    users are made.

    Attributes:
        hf_model: the model itself, the very object.
        cfg: its sizes and choices under the field's names.
        tokens: its tokenizer with the rules for BOS and padding.
        native: its modules by what they do, as the description says.
        engine: attaches callbacks to it and takes them off.
        components: what `blocks`, `embed` and the other views of weights are made of.
        preparer: makes arguments of the native forward of an input.
    """

    @overload
    def run_with_hooks(
        self,
        input: Any = None,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        *,
        return_type: OneTensor = "logits",
        **options: Any,
    ) -> Tensor: ...
    @overload
    def run_with_hooks(
        self,
        input: Any = None,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        *,
        return_type: Literal["both"],
        **options: Any,
    ) -> LogitsAndLoss: ...
    @overload
    def run_with_hooks(
        self,
        input: Any = None,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        *,
        return_type: None,
        **options: Any,
    ) -> Tensor | None: ...
    def run_with_hooks(
        self,
        input: Any = None,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        return_type: ReturnType = "logits",
        **forward: Any,
    ) -> Result:
        """Run the model with hooks on it for this run.

        Args:
            input: as in `forward`.
            fwd_hooks: `(name or filter, fn)` pairs; `fn(activation, hook)` gets a private copy and
                may edit it in place or return a new value.
            bwd_hooks: the same on gradients; they act when the user runs `backward`.
            reset_hooks_end: take the hooks off at the end; otherwise they stay until `reset_hooks`.
            clear_contexts: empty every `hook.ctx` at the end.
            return_type: as in `forward`.
            forward: other arguments of `forward`.

        Raises:
            HookNeverFiredError: a named point that the run did not pass.
            EditError: a returned value of another shape or dtype.
        """
        callbacks = self._callbacks(fwd_hooks, bwd_hooks)
        if reset_hooks_end:
            result, _ = self.run_callbacks(callbacks, input, return_type, **forward)
        else:
            self.engine.add(callbacks)
            result, _ = self.run_callbacks([], input, return_type, **forward)
        if clear_contexts:
            self.engine.contexts.clear()
        return result

    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: OneTensor = "logits",
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[Tensor, ActivationCache]: ...
    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: Literal["both"],
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[LogitsAndLoss, ActivationCache]: ...
    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: None,
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[Tensor | None, ActivationCache]: ...
    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: OneTensor = "logits",
        return_cache_object: Literal[False],
        **options: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: Literal["both"],
        return_cache_object: Literal[False],
        **options: Any,
    ) -> tuple[LogitsAndLoss, dict[str, Tensor]]: ...
    @overload
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        *,
        return_type: None,
        return_cache_object: Literal[False],
        **options: Any,
    ) -> tuple[Tensor | None, dict[str, Tensor]]: ...
    def run_with_cache(
        self,
        input: Any = None,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        pos_slice: PosSlice = None,
        incl_bwd: bool = False,
        remove_batch_dim: bool = False,
        return_type: ReturnType = "logits",
        return_cache_object: bool = True,
        detach: bool = True,
        count: Count = "tokens",
        max_bytes: int | str | None = None,
        **forward: Any,
    ) -> tuple[Result, ActivationCache | dict[str, Tensor]]:
        """Run the model and keep activations.

        Args:
            input: as in `forward`.
            names_filter: what to keep: None (all but what comes only when named), a name, a short
                name, a glob, a callable on names, or a list of these.
            device: where to keep it.
            dtype: as what to keep it: a dtype or its name.
            pos_slice: which positions to keep, of the tokens of each text; -1 or "last" is its
                last token. The axis stays.
            incl_bwd: also run backward from the (scalar) result and keep gradients under
                `<name>_grad`; parameters' `.grad` stay as they are.
            remove_batch_dim: drop the batch axis of a batch of one.
            return_type: as in `forward`.
            return_cache_object: False gives a plain dictionary.
            detach: False keeps the activations in the autograd graph.
            count: "columns": `pos_slice` counts columns of the batch, padding included.
            max_bytes: the most that may be kept on one device that computes, such as "2GB". A run
                that would keep more is not run; the error says what fits. See `plan`.
            forward: other arguments of `forward`.

        Raises:
            UnknownPointError: a name or glob that matches nothing.
            HookNeverFiredError: a named point that the run did not pass.
            InputError: gradients of points that no one run can give; a position that a text lacks;
                more than `max_bytes`.
        """
        if max_bytes is not None:
            options = {
                "device": device,
                "dtype": dtype,
                "pos_slice": pos_slice,
                "incl_bwd": incl_bwd,
                "return_type": return_type,
                "detach": detach,
                "count": count,
            }
            planned = partial(self.plan, **{"names_filter": names_filter, **options, **forward})
            require_room(partial(planned, input), max_bytes, names_filter, options)
        names = self.vocabulary.select(names_filter)
        if incl_bwd:
            refuse_apart(names, self.engine.sites)
        keep = Keep(device, dtype_of(dtype), pos_slice, detach, count)
        collector = self.collector(names, keep)
        callbacks = collector.callbacks(names_points(names_filter), incl_bwd)
        # nobody could follow a graph to activations that are cut from it
        unused = return_type is None and detach and forward.get("stop_at_layer") is None
        grad = torch.no_grad() if unused and self.engine.is_idle else nullcontext()
        with torch.enable_grad() if incl_bwd else grad:
            result, prepared = self.run_callbacks(callbacks, input, return_type, **forward)
            if incl_bwd:
                collector.backward(_scalar(result))
        cache = self.cache_of(collector, prepared)
        cache = cache.remove_batch_dim() if remove_batch_dim else cache
        return result, cache if return_cache_object else dict(cache)

    def collector(self, names: Sequence[str], keep: Keep) -> Collector:
        """What keeps activations of a run.

        Args:
            names: canonical names of the points.
            keep: how they are kept.
        """
        return Collector(self.engine.sites, names, keep, self.native)

    def cache_of(self, collector: Collector, prepared: Prepared) -> ActivationCache:
        """What a collector kept of a run, as a cache that knows the input.

        Args:
            collector: whose callbacks were in the run.
            prepared: the input, from `run_callbacks`.
        """
        return ActivationCache(
            collector.tensors,
            self.vocabulary,
            model=self,
            tokens=prepared.tokens,
            attention_mask=prepared.mask,
            prepend_bos=prepared.prepend_bos,
            versions=collector.versions,
            decoder_attention_mask=prepared.kwargs.get("decoder_attention_mask"),
        )

    @property
    def processed_by(self) -> tuple[str, ...]:
        """The steps of weight processing that are in force."""
        return ()


def _scalar(result: Result) -> Tensor:
    value = result.loss if isinstance(result, LogitsAndLoss) else result
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError("incl_bwd needs a scalar to run backward from: return_type='loss'.")
    return value
