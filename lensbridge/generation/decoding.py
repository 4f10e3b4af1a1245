"""One run of HuggingFace's `generate`, with callbacks at every pass and a cache of all of them."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.capture import Keep
from lensbridge.errors import InputError
from lensbridge.generation import options as generation
from lensbridge.generation.collector import (
    DecodingCollector,
    check_ends_together,
    check_rows_stay,
    last_call,
    whole_logits,
)
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.attachment import STAYING
from lensbridge.hooks.callbacks import Callback, require_fired
from lensbridge.hooks.progress import Progress
from lensbridge.inputs.prepare import Prepared
from lensbridge.points.point_names import NamesFilter, names_points

_INPUTS = ("input_ids", "inputs_embeds", "attention_mask")


@dataclass(frozen=True)
class Decoding:
    """A run of HuggingFace's `generate` in which callbacks act at every pass.

    Args:
        model: that generates.
        prepared: the prompt.
        config: the generation config of this run.
        options: what else `generate` is given.
        callbacks: interventions.
        collector: keeps activations, if they are asked for.
    """

    model: HookedModel
    prepared: Prepared
    config: Any
    options: dict[str, Any]
    callbacks: list[Callback]
    collector: DecodingCollector | None

    def run(self) -> Any:
        """Generate. It gives what HuggingFace gives.

        Raises:
            HookNeverFiredError: a callback was never called.
        """
        engine = self.model.engine
        given = generation.inputs_of(self.prepared)  # outside of the run, which may have no values
        if engine.is_idle and not self.callbacks and self.collector is None:
            with engine.run():
                return self._generate(given)
        self.config.disable_compile = True  # transformers compiles passes over a static cache
        own = [*self.callbacks, *([] if self.collector is None else self.collector.callbacks())]
        # an attachment of its own, so that `hook.step` starts at 0
        with self._logits_asked(), engine.attached(own) as attachment, engine.run():
            attachment.count_run()
            self._begin(attachment.state.progress, given)
            found = self._generate(given)
            self._read_last(attachment.state.progress, found)
        require_fired(own)
        if not attachment.alone:
            require_fired(engine.permanent, STAYING)
        return found

    def _generate(self, given: dict[str, Any]) -> Any:
        hf_model: Any = self.model.hf_model
        return hf_model.generate(**given, generation_config=self.config, **self.options)

    def _begin(self, progress: Progress, given: dict[str, Any]) -> None:
        """Note what is known of a generation before its first pass."""
        progress.named = {name: given[name] for name in given if name in _INPUTS}
        progress.ends = generation.ends(self.config)
        progress.new = (self.config.max_new_tokens or 1) - 1 + (self.collector is not None)
        progress.examples = len(next(iter(given.values())))
        if self.collector is not None:
            self.collector.progress = progress

    def _read_last(self, progress: Progress, found: Any) -> None:
        """Run the model on the last token, where activations of all positions are kept."""
        if self.collector is not None and self.collector.names:
            self.model.engine.root(**last_call(progress, _ids_in(found)))

    def _logits_asked(self) -> AbstractContextManager[None]:
        """Logits at every position, where those are kept."""
        wanted = self.collector is not None and "hook_logits" in self.collector.names
        can = "logits_to_keep" in self.model.preparer.accepted
        return whole_logits(self.model.engine.root) if wanted and can else nullcontext()


def collector_for(
    model: HookedModel,
    config: Any,
    options: dict[str, Any],
    names_filter: NamesFilter,
    device: Any,
) -> DecodingCollector:
    """What keeps the activations of every pass of a generation.

    Args:
        model: that generates.
        config: the generation config of the run.
        options: what else `generate` is given.
        names_filter: which points, as in `run_with_cache`.
        device: where to keep them.

    Raises:
        InputError: there are no rows that go on from pass to pass, or no order of their values.
    """
    check_rows_stay(config, options)
    check_ends_together(model.hf_model)
    names = model.vocabulary.select(names_filter)
    inside = [name for name in names if ".experts." in name]
    if inside:
        raise InputError(
            f"{inside[0]} has the tokens that an expert was given, in no order that could be "
            "put together. Run the model on the finished text."
        )
    fronts = *(model.native.front_of(one) for one in model.native.towers), "projector."
    of_encoder = (".cross_attn.hook_k", ".cross_attn.hook_v")
    return DecodingCollector(
        model.engine.sites,
        names,
        names_points(names_filter),
        Keep(device),
        lambda name: name.startswith(fronts) or name.endswith(of_encoder),
    )


def cache_of(
    model: HookedModel, collector: DecodingCollector, prepared: Prepared, found: Any
) -> ActivationCache:
    """The activations of a generation that has ended.

    Args:
        model: that generated.
        collector: has kept them.
        prepared: the prompt.
        found: what HuggingFace's `generate` gave.
    """
    mask = collector.progress.mask(encoder=True)
    decoder_only = not model.native.is_encoder_decoder
    return ActivationCache(
        collector.tensors(),
        model.vocabulary,
        model=model,
        tokens=_ids_in(found) if decoder_only else prepared.tokens,
        attention_mask=None if mask is None or bool(mask.all()) else mask,
        prepend_bos=prepared.prepend_bos,
    )


def _ids_in(found: Any) -> Tensor:
    """Shapes: `[batch, pos]`"""
    ids: Tensor = found if isinstance(found, Tensor) else found.sequences
    return ids
