"""HookedModel: a model that runs with hooks, caches, and shows its weights."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, overload

import torch
from torch import Tensor, nn

from lensbridge.cache import ActivationCache
from lensbridge.cache.apart import refuse_apart
from lensbridge.cache.capture import Collector, Keep
from lensbridge.errors import (
    ArchitectureMismatchError,
    InputError,
    LensbridgeError,
    UnsupportedArchitectureError,
    suggest,
)
from lensbridge.hooks.callbacks import Callback
from lensbridge.hooks.engine import Engine
from lensbridge.hooks.forward import Span, run_forward
from lensbridge.hooks.loss import Loss
from lensbridge.hooks.methods import HookMethods, HookPair
from lensbridge.inputs.methods import TextMethods
from lensbridge.inputs.prepare import Prepared, Preparer
from lensbridge.inputs.tokens import Side, Tokens
from lensbridge.native.config import LensConfig, config_of
from lensbridge.native.parts import ResolvedModel
from lensbridge.native.resolve import GIVEN, resolve
from lensbridge.native.settings import kernel_of
from lensbridge.native.structure import Structure
from lensbridge.native.wrappers import unwrapped
from lensbridge.points.names import rows_of_short
from lensbridge.points.point_names import NamesFilter, names_points
from lensbridge.sites.wiring import sites_of, vocabulary_of
from lensbridge.spec import Architecture
from lensbridge.tensors.loss import lm_cross_entropy_loss
from lensbridge.tensors.positions import Count
from lensbridge.tensors.slices import PosSlice
from lensbridge.weights.circuits import CircuitMethods
from lensbridge.weights.components import Components
from lensbridge.weights.methods import WeightMethods

if TYPE_CHECKING:
    from typing_extensions import Self

OneTensor: TypeAlias = Literal["logits", "loss"]
ReturnType: TypeAlias = Literal["logits", "loss", "both"] | None
"""What a run returns; None returns nothing and computes no logits."""

Result: TypeAlias = "Tensor | LogitsAndLoss | None"
"""What a run returns: logits, a loss, both, a residual stream (`stop_at_layer`), or None."""


class LogitsAndLoss(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Tensor
    loss: Tensor


class HookedModel(HookMethods, WeightMethods, TextMethods, CircuitMethods):
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

    def __init__(
        self,
        hf_model: nn.Module,
        find_tokenizer: Callable[[], Any],
        architecture: Architecture | None = None,
        source: str = GIVEN,
    ) -> None:
        self.hf_model = unwrapped(hf_model)
        self.tokens = Tokens(find_tokenizer)
        self._description = architecture, source
        self._cfg: tuple[Any, LensConfig] | None = None
        self.engine = Engine(self.hf_model, {}, ())
        self._look()
        me = weakref.ref(self)  # so that hooks and tools do not keep a lens alive
        self.engine.follow = lambda: (lens := me()) is not None and lens.follow()
        weakref.finalize(self, self.engine.close)

    def __repr__(self) -> str:
        cfg, spec = self.cfg, self.native.architecture
        over = f", overriding '{spec.overrides}'" if spec.overrides else ""
        if self.native.rivals:
            over += f"; also claimed by {', '.join(self.native.rivals)}, not in use"
        return (
            f"{type(self).__name__}({cfg.original_architecture} {cfg.model_name!r}, "
            f"{cfg.n_layers} layers, d_model {cfg.d_model}, read as '{spec.name}' from "
            f"{cfg.plugin}{over})"
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            own = getattr(type(self), name, None)
            if isinstance(own, property):
                return own.fget(self)  # it raised; again, for its own message
            raise AttributeError(self._without(name))

    def _without(self, name: str) -> str:
        """What to write instead of an attribute that a lens does not have."""
        kind, native = type(self).__name__, self.__dict__.get("native")
        told = f"A {kind} has no attribute {name!r}."
        if native is None or name.startswith("_"):
            return told
        if name == "config":
            return f"{told} Sizes are in model.cfg, and HuggingFace's config is model.cfg.hf."
        if hasattr(native.core, name):
            return (
                f"{told} The HuggingFace model has one: model.hf_model.{name}. Here weights are "
                "model.blocks[0].attn.W_Q, and activations have names: model.hook_names."
            )
        if name in self.vocabulary.index or rows_of_short(name):
            return f"{told} It is a point: model.run_with_cache(input, {name!r})."
        public = [one for one in dir(type(self)) if not one.startswith("_")]
        hint = suggest(name, public) or " The HuggingFace model itself is model.hf_model."
        return f"{told}{hint}"

    def _look(self) -> None:
        """Find every part of the model as it is now."""
        native = resolve(self.hf_model, *self._description)
        self._refuse_new_code(native)
        sites = sites_of(native)
        self.engine.move_to(sites, tuple({self.hf_model, native.core}))
        self.native = native
        self.vocabulary = vocabulary_of(native, sites)
        me = weakref.ref(self)
        self._components = Components(native, lambda layer, resid: _run_block(me(), layer, resid))
        self.preparer = Preparer(native, self.tokens, native.calling.accepted)
        head = () if native.unembed is None else (native.unembed.module,)
        tables = (native.main.embed, native.main.pos_embed, *head)
        self._structure = Structure.of(self.hf_model, [one for one in tables if one is not None])

    def _refuse_new_code(self, native: ResolvedModel) -> None:
        """Code that came after the model was loaded has not been checked."""
        before = self.__dict__.get("native")
        known = () if before is None else {one.what for one in before.overrides}
        new = [one for one in native.overrides if before is not None and one.what not in known]
        if new:
            raise ArchitectureMismatchError(
                f"{new[0]}, and whether '{native.architecture.name}' describes that is checked "
                "only at load."
            )

    def follow(self) -> bool:
        """Take in modules that were replaced since the model was last looked at.

        Adapters that were injected or merged, resized embeddings and exchanged layers are found in
        the next run, or when names or weights are asked for.

        Returns:
            Whether there were any.

        Raises:
            ArchitectureMismatchError: the description does not fit the model as it is now.
        """
        if self._structure.holds:
            return False
        try:
            self._look()
        except (ArchitectureMismatchError, UnsupportedArchitectureError) as error:
            changes = self._structure.changes()
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise ArchitectureMismatchError(
                f"The model was changed after it was loaded ({'; '.join(changes[:3])}{more}), and "
                f"it is not as described any more: {error} Undo the change, or load the model "
                "again: lensbridge.load(hf_model)."
            ) from error
        return True

    @property
    def components(self) -> Components:
        """Every part under the field's names, and every weight by name."""
        self.follow()
        return self._components

    # --- copies ------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> "Self":
        """A lens on a copy of the model. Hooks are not copied."""
        return self._on(deepcopy(self.hf_model, memo))

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: the model, its tokenizer and its description, but no hooks."""
        return {
            "hf_model": self.hf_model,
            "tokenizer": self.tokens.tokenizer,
            "description": self._description,
            "default_prepend_bos": self.tokens.default_prepend_bos,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        tokenizer, default = state["tokenizer"], state["default_prepend_bos"]
        HookedModel.__init__(self, state["hf_model"], lambda: tokenizer, *state["description"])
        self.tokens.default_prepend_bos = default

    def _on(self, hf_model: nn.Module) -> "Self":
        """A lens like this one on another model."""
        other = type(self)(hf_model, self.tokens.find, *self._description)
        other.tokens.default_prepend_bos = self.tokens.default_prepend_bos
        return other

    @property
    def cfg(self) -> LensConfig:
        """Sizes and choices under the field's names; `cfg.hf` is the HuggingFace config."""
        self.follow()
        bos = self.tokens.default_prepend_bos
        state = (self.native, self.device, self.dtype, bos, kernel_of(self.native.core))
        if self._cfg is None or self._cfg[0] != state:
            self._cfg = state, config_of(self.native, bos, self.device)
        return self._cfg[1]

    @property
    def architecture(self) -> Architecture:
        """The description that the model is read with."""
        return self.native.architecture

    # --- running -----------------------------------------------------------------------------

    @overload
    def forward(self, input: Any, return_type: OneTensor = "logits", **options: Any) -> Tensor: ...
    @overload
    def forward(
        self, input: Any, return_type: Literal["both"], **options: Any
    ) -> LogitsAndLoss: ...
    @overload
    def forward(self, input: Any, return_type: None, **options: Any) -> Tensor | None: ...
    def forward(
        self,
        input: Any,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        past_key_values: Any = None,
        labels: Any = None,
        tokens: Any = None,
        **hf: Any,
    ) -> Result:
        """Run the model.

        Args:
            input: text, a list of texts, ids `[pos]` or `[batch, pos]`, a tokenizer's output, or
                embeddings `[batch, pos, d_model]`; with `start_at_layer`, a residual stream.
            return_type: "logits", "loss", "both", or None to compute neither.
            loss_per_token: the loss of each pair instead of the mean.
            prepend_bos: BOS before text; None means the default (True).
            padding_side: where short texts of a list are padded; None means right.
            attention_mask: 1 for tokens, 0 for padding; made here for lists of texts.
            position_ids: made here from the mask where the model has absolute positions.
            start_at_layer: skip the layers before it; `input` is what it reads.
            stop_at_layer: run the layers before it and return the residual stream there.
            past_key_values: a key/value cache to continue.
            labels: for the native forward: the loss is that of `hf_model(..., labels=labels)`,
                which does not count -100. Models that do not predict the next token of their input
                (masked ones, classifiers, encoder-decoders) have no loss without labels.
            tokens: the ids whose next ones the loss is of, where the input is a residual or
                embeddings.
            hf: for the native forward.

        Shapes: logits `[batch, pos, d_vocab]`; loss a scalar, or per token `[batch, pos - 1]`, of
            labels that the model does not shift `[batch, pos]` or `[batch]`; residual
            `[batch, pos, d_model]`.

        Raises:
            TypeError: a keyword that the model does not take.
            InputError: an input that cannot be run.
        """
        return self.run_callbacks(
            [],
            input,
            return_type,
            loss_per_token=loss_per_token,
            start_at_layer=start_at_layer,
            stop_at_layer=stop_at_layer,
            labels=labels,
            tokens=tokens,
            prepend_bos=prepend_bos,
            padding_side=padding_side,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **hf,
        )[0]

    __call__ = forward

    def prepare(self, input: Any, **options: Any) -> Prepared:
        """An input as the native forward takes it.

        Args:
            input: as in `forward`.
            options: `prepend_bos`, `padding_side`, `attention_mask`, `position_ids`,
                `past_key_values` and other keywords of the native forward.

        Raises:
            TypeError: a keyword that the model does not take.
            InputError: an input that cannot be run.
        """
        self.follow()
        return self.preparer.prepare(input, **options)

    @overload
    def run_callbacks(
        self, callbacks: list[Callback], input: Any, return_type: OneTensor, **options: Any
    ) -> tuple[Tensor, Prepared]: ...
    @overload
    def run_callbacks(
        self, callbacks: list[Callback], input: Any, return_type: ReturnType, **options: Any
    ) -> tuple[Result, Prepared]: ...
    def run_callbacks(
        self,
        callbacks: list[Callback],
        input: Any,
        return_type: ReturnType,
        *,
        loss_per_token: bool = False,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        labels: Any = None,
        tokens: Any = None,
        **prepare: Any,
    ) -> tuple[Result, Prepared]:
        """One pass with callbacks of the engine: what every kind of run is made of.

        Args:
            callbacks: what reads or edits activations in this run.
            input: as in `forward`, like the other arguments.
            return_type: as in `forward`.
            loss_per_token: as in `forward`.
            start_at_layer: as in `forward`.
            stop_at_layer: as in `forward`.
            labels: as in `forward`.
            tokens: as in `forward`.
            prepare: options of `prepare`.

        Returns:
            What `forward` returns, and the input as it was run.
        """
        self._check_return_type(return_type, stop_at_layer)
        prepared = self.prepare(input, **prepare)
        head = return_type is not None or self._listens("hook_logits", callbacks)
        span = Span.of(start_at_layer, stop_at_layer, self.native.sizes.n_layers, head)
        self.engine.check(prepared, callbacks, muted=span.misses)
        loss = self._loss(prepared, return_type if span.stop is None else None, labels, tokens)
        outcome = run_forward(self.engine, self.native, loss.given(prepared), span, callbacks)
        if span.stop is not None:
            return outcome.residual, prepared
        if any(one.name == "hook_logits" and one.kind != "read" for one in self._acting(callbacks)):
            loss = loss.after_hooks(self.engine.sites["hook_logits"])
        result = None if return_type is None else self.native.logits(outcome.native)
        if result is None or return_type == "logits":
            return result, prepared
        value = loss.result(outcome.native, result, loss_per_token)
        return LogitsAndLoss(result, value) if return_type == "both" else value, prepared

    def _check_return_type(self, return_type: ReturnType, stop_at_layer: int | None) -> None:
        if return_type not in ("logits", "loss", "both", None):
            raise InputError(
                f"return_type is 'logits', 'loss', 'both' or None, not {return_type!r}."
            )
        if return_type and stop_at_layer is None and not self.native.returns_logits:
            raise LensbridgeError(
                f"{type(self.native.core).__name__} has no language-model head, so there are no "
                "logits. Pass return_type=None, or load the causal-LM class."
            )

    def _loss(self, prepared: Prepared, return_type: ReturnType, labels: Any, tokens: Any) -> Loss:
        wanted = return_type in ("loss", "both")
        return Loss.of(self.native, prepared, labels, tokens, wanted)

    def _acting(self, callbacks: list[Callback]) -> list[Callback]:
        return [*self.engine.listening, *callbacks]

    def _listens(self, name: str, callbacks: list[Callback]) -> bool:
        return any(one.name == name for one in self._acting(callbacks))

    @overload
    def run_with_hooks(
        self,
        input: Any,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        *,
        return_type: OneTensor = "logits",
        **options: Any,
    ) -> Tensor: ...
    @overload
    def run_with_hooks(
        self,
        input: Any,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        *,
        return_type: Literal["both"],
        **options: Any,
    ) -> LogitsAndLoss: ...
    @overload
    def run_with_hooks(
        self,
        input: Any,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        *,
        return_type: None,
        **options: Any,
    ) -> Tensor | None: ...
    def run_with_hooks(
        self,
        input: Any,
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
        input: Any,
        names_filter: NamesFilter = None,
        *,
        return_type: OneTensor = "logits",
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[Tensor, ActivationCache]: ...
    @overload
    def run_with_cache(
        self,
        input: Any,
        names_filter: NamesFilter = None,
        *,
        return_type: Literal["both"],
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[LogitsAndLoss, ActivationCache]: ...
    @overload
    def run_with_cache(
        self,
        input: Any,
        names_filter: NamesFilter = None,
        *,
        return_type: None,
        return_cache_object: Literal[True] = True,
        **options: Any,
    ) -> tuple[Tensor | None, ActivationCache]: ...
    @overload
    def run_with_cache(
        self,
        input: Any,
        names_filter: NamesFilter = None,
        *,
        return_type: OneTensor = "logits",
        return_cache_object: Literal[False],
        **options: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    @overload
    def run_with_cache(
        self,
        input: Any,
        names_filter: NamesFilter = None,
        *,
        return_type: Literal["both"],
        return_cache_object: Literal[False],
        **options: Any,
    ) -> tuple[LogitsAndLoss, dict[str, Tensor]]: ...
    @overload
    def run_with_cache(
        self,
        input: Any,
        names_filter: NamesFilter = None,
        *,
        return_type: None,
        return_cache_object: Literal[False],
        **options: Any,
    ) -> tuple[Tensor | None, dict[str, Tensor]]: ...
    def run_with_cache(
        self,
        input: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        pos_slice: PosSlice = None,
        incl_bwd: bool = False,
        remove_batch_dim: bool = False,
        return_type: ReturnType = "logits",
        return_cache_object: bool = True,
        detach: bool = True,
        count: Count = "tokens",
        **forward: Any,
    ) -> tuple[Result, ActivationCache | dict[str, Tensor]]:
        """Run the model and keep activations.

        Args:
            input: as in `forward`.
            names_filter: what to keep: None (all but what comes only when named), a name, a short
                name, a glob, a callable on names, or a list of these.
            device: where to keep it.
            dtype: as what to keep it.
            pos_slice: which positions to keep, of the tokens of each text; -1 or "last" is its
                last token. The axis stays.
            incl_bwd: also run backward from the (scalar) result and keep gradients under
                `<name>_grad`; parameters' `.grad` stay as they are.
            remove_batch_dim: drop the batch axis of a batch of one.
            return_type: as in `forward`.
            return_cache_object: False gives a plain dictionary.
            detach: False keeps the activations in the autograd graph.
            count: "columns": `pos_slice` counts columns of the batch, padding included.
            forward: other arguments of `forward`.

        Raises:
            UnknownPointError: a name or glob that matches nothing.
            HookNeverFiredError: a named point that the run did not pass.
            InputError: gradients of points that no one run can give; a position that a text lacks.
        """
        names = self.vocabulary.select(names_filter)
        if incl_bwd:
            refuse_apart(names, self.engine.sites)
        keep = Keep(device, dtype, pos_slice, detach, count)
        collector = Collector(self.engine.sites, names, keep, self.native)
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

    def loss_fn(
        self,
        logits: Tensor,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """Next-token cross-entropy; see `lensbridge.loss.lm_cross_entropy_loss`."""
        return lm_cross_entropy_loss(logits, tokens, attention_mask, per_token)

    @property
    def processed_by(self) -> tuple[str, ...]:
        """The steps of weight processing that are in force."""
        return ()

    # --- the model as a torch object ---------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.preparer.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.hf_model.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> "Self":
        """Move the model in place, as `hf_model.to` does."""
        self.hf_model.to(*args, **kwargs)
        return self

    def eval(self) -> "Self":
        """Switch dropout off."""
        self.hf_model.eval()
        return self

    def train(self, mode: bool = True) -> "Self":
        """Switch dropout on."""
        self.hf_model.train(mode)
        return self

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's own parameters."""
        return self.hf_model.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's own parameters under their native names."""
        return self.hf_model.named_parameters()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the parameters' gradients."""
        self.hf_model.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The model's own state under its native names."""
        return self.hf_model.state_dict()


def _run_block(model: HookedModel | None, layer: int, resid: Tensor) -> Tensor:
    if model is None:
        raise LensbridgeError("The model that this layer is of was dropped: keep it in a variable.")
    return model.forward(resid, start_at_layer=layer, stop_at_layer=layer + 1)


def _scalar(result: Result) -> Tensor:
    value = result.loss if isinstance(result, LogitsAndLoss) else result
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError("incl_bwd needs a scalar to run backward from: return_type='loss'.")
    return value
