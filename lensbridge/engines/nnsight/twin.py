"""The twin of a model that is elsewhere: a lens on its modules, on tensors without values."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException as OfValues
from torch._subclasses.fake_tensor import DynamicOutputShapeException as OfSizes
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from lensbridge.engines.nnsight.draft import Draft
from lensbridge.engines.nnsight.generating import RehearsedGeneration
from lensbridge.engines.nnsight.recorder import Recorder
from lensbridge.engines.nnsight.sites import RecordedSites, TracedNames
from lensbridge.engines.nnsight.tape import Tape, is_alike
from lensbridge.errors import UnsupportedError
from lensbridge.hooks.scope import NOBODY, entered
from lensbridge.loading import load
from lensbridge.model import LensModel
from lensbridge.native.kv_cache import name_of_cache
from lensbridge.plans.guesses import Guesses
from lensbridge.plans.twin import WithoutValues, twin_of


class Twin:
    """A lens on the modules of nnsight's model, whose runs are recorded.

    Args:
        envoy: nnsight's model, whose weights may be elsewhere.
        tokenizer: of the model.
    """

    def __init__(self, envoy: Any, tokenizer: Any) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with _uninstrumented(envoy._module) as module:
            self.hf_model = twin_of(module, WithoutValues(self.mode)).eval()
        self.hf_model.requires_grad_(False)  # frozen weights on the server give the same gradients
        with self.mode, Guesses(None):
            self.lens: LensModel = load(self.hf_model, tokenizer=tokenizer, derive=False)
            self._hold_weights()
        self.tapes: list[tuple[dict[str, Any], Tape]] = []
        self.modules = _texts_of_modules(envoy, self.hf_model)
        self.places = dict(self._texts_of_tensors())
        self.sites = self.lens.engine.native_sites
        self.lens.vocabulary = TracedNames.of(self.lens.vocabulary, self.sites)

    def _hold_weights(self) -> None:
        """Let projections find out how their weights are held, which may run a module."""
        for block in self.lens.native.blocks:
            for attn in (block.attn, block.cross):
                if attn is not None:
                    _ = attn.out.held

    def _texts_of_tensors(self) -> Iterator[tuple[int, str]]:
        for module, text in self.modules.items():
            for name, one in [*module._parameters.items(), *module._buffers.items()]:
                if one is not None:
                    yield id(one), f"{text}.{name}"

    @contextmanager
    def recording(self, apart: bool = False) -> Iterator[tuple[LensModel, Recorder]]:
        """Inside, what the lens runs is written down by the recorder.

        Args:
            apart: whether the trace runs in another process than the model.
        """
        recorder, engine = Recorder(Draft(self.places, apart)), self.lens.engine
        experts = self.lens.cfg.n_experts
        run = engine.run
        engine.native_sites = RecordedSites(self.sites, recorder, self.modules.__getitem__)
        engine.run = partial(self._run, run, recorder, experts)  # type: ignore[method-assign]
        handles = [
            self.hf_model.register_forward_pre_hook(partial(_begin, recorder), with_kwargs=True),
            self.hf_model.register_forward_hook(partial(_end, recorder)),
        ]
        cache = name_of_cache(self.lens.preparer.accepted)
        hf_model: Any = self.hf_model
        hf_model.generate = RehearsedGeneration(hf_model, recorder.draft, cache)
        hf_model.forward = partial(self._forward, recorder)
        try:
            with recorder:
                yield self.lens, recorder
        finally:
            for handle in handles:
                handle.remove()
            del hf_model.generate, hf_model.forward
            engine.native_sites, engine.run = self.sites, run  # type: ignore[method-assign]

    @contextmanager
    def _run(self, run: Any, recorder: Recorder, experts: int | None) -> Iterator[None]:
        with run(), recorder.passing(), self.mode, Guesses(experts):
            yield

    def _forward(self, recorder: Recorder, **inputs: Any) -> Any:
        """The forward of the model; one that ran before with this input is only played again."""
        if recorder.differentiates or recorder.draft.generating or torch.is_grad_enabled():
            with self._explained():
                return type(self.hf_model).forward(self.hf_model, **inputs)
        with _disable_current_modes():
            known = next((tape for given, tape in self.tapes if is_alike(given, inputs)), None)
        if known is None:
            with entered(self.lens.engine, NOBODY), self._explained():  # nobody's hooks act
                known = Tape.of(self.hf_model, inputs)
            self.tapes = [*self.tapes[-3:], (inputs, known)]
        return known.play()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Inside, a model that cannot run without values says so.

        Raises:
            UnsupportedError: how far a pass goes depends on values.
        """
        try:
            yield
        except (OfValues, OfSizes) as error:
            raise UnsupportedError(
                f"What a {type(self.hf_model).__name__} computes with depends on values, such as "
                "which tokens an expert gets, so its passes cannot be written down without them. "
                "Use lensbridge.load(...)."
            ) from error


def _begin(recorder: Recorder, module: nn.Module, args: Any, kwargs: Any) -> None:
    recorder.begin({name: one for name, one in kwargs.items() if one is not None})


def _end(recorder: Recorder, module: nn.Module, args: Any, output: Any) -> None:
    recorder.end("model", output)


@contextmanager
def _uninstrumented(module: nn.Module) -> Iterator[nn.Module]:
    """A module without what nnsight has in the place of each `forward`."""
    held = {
        one: one.__dict__.pop("forward")
        for one in module.modules()
        if type(one.__dict__.get("forward")).__module__.startswith("nnsight")
    }
    try:
        yield module
    finally:
        for one, forward in held.items():
            one.__dict__["forward"] = forward


def _texts_of_modules(envoy: Any, twin: nn.Module) -> dict[nn.Module, str]:
    """Each module of the twin as text in nnsight's tree: `model.transformer.h[0].mlp`."""
    found = {twin: "model"}
    pending = [(envoy, twin, "model")]
    while pending:
        at, module, text = pending.pop()
        for name, child in module._modules.items():
            if child is None or child in found:
                continue
            inner = at._child_map[name]
            is_plain = vars(at).get(name) is inner  # not called `output`, which nnsight renames
            named = name if is_plain else f"{at.OVERLOAD_PREFIX}{name}"
            found[child] = f"{text}[{name}]" if name.isdigit() else f"{text}.{named}"
            pending.append((inner, child, found[child]))
    return found
