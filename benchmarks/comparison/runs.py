"""The work that is timed, as each tool's documentation does it, on GPT-2's shape.

A method that is not there is work that the tool has no call for. Each returns logits, or the
sweep's grid, so that it can be checked against the bare model.
"""

# ruff: noqa: RET504  a name in a trace is what the trace leaves behind

from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.comparison import workload
from benchmarks.comparison.intervened import Intervened
from benchmarks.comparison.oracle import changed
from benchmarks.comparison.tokenizer import demo_tokenizer
from benchmarks.comparison.workload import CELLS, LAYERS, gpt2, metric, places, prompts

PATHS = {"z": ("attn.c_proj", "input"), "mlp_out": ("mlp", "output"), "resid_post": ("", "output")}
POINTS = {"z": "attn.hook_z", "mlp_out": "hook_mlp_out", "resid_post": "hook_resid_post"}


def path(part: str, layer: int) -> tuple[str, str]:
    """A module of GPT-2 and its side."""
    inside, side = PATHS[part]
    return f"transformer.h.{layer}{'.' if inside else ''}{inside}", side


class Bare:
    """The model and PyTorch hooks."""

    def __init__(self) -> None:
        self.hf = gpt2()
        self.clean, self.corrupted = prompts()

    def idle(self) -> Tensor:
        return self.hf(self.clean).logits

    def stream(self) -> Tensor:
        return self.hf(self.clean, output_hidden_states=True).logits

    def everything(self) -> Tensor:
        """Inputs and outputs of all modules."""
        kept: list[Any] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            kept.append((args, output))

        handles = [one.register_forward_hook(keep) for one in self.hf.modules()]
        try:
            return self.hf(self.clean).logits
        finally:
            for handle in handles:
                handle.remove()

    def edits(self) -> Tensor:
        with ExitStack() as stack:
            for place in places():
                module, side = path(*place)
                stack.enter_context(changed(self.hf, module, workload.shrink, side))
            return self.hf(self.clean).logits

    @cached_property
    def stream_clean(self) -> list[Tensor]:
        """`resid_pre` of each layer on the clean prompt."""
        return list(self.hf(self.clean, output_hidden_states=True).hidden_states[:LAYERS])

    def sweep(self) -> Tensor:
        clean = self.stream_clean
        return torch.stack([self._patched(clean[layer], layer, pos) for layer, pos in CELLS])

    def _patched(self, clean: Tensor, layer: int, pos: int) -> Tensor:
        def patch(value: Tensor) -> Tensor:
            value = value.clone()
            value[:, pos] = clean[:, pos]
            return value

        with changed(self.hf, f"transformer.h.{layer}", patch, "input"):
            return metric(self.hf(self.corrupted).logits)[0]


class _Named:
    """lensbridge and TransformerLens, which share their calls."""

    def __init__(self, model: Any, patching: Any) -> None:
        self.model, self.patching = model, patching
        self.clean, self.corrupted = prompts()

    def idle(self) -> Tensor:
        return self.model(self.clean)

    def stream(self) -> Tensor:
        names = [f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)]
        return self.model.run_with_cache(self.clean, names_filter=names)[0]

    def everything(self) -> Tensor:
        return self.model.run_with_cache(self.clean)[0]

    def edits(self) -> Tensor:
        def shrink(value: Tensor, hook: Any) -> Tensor:
            return workload.shrink(value)

        hooks = [(f"blocks.{layer}.{POINTS[part]}", shrink) for part, layer in places()]
        return self.model.run_with_hooks(self.clean, fwd_hooks=hooks)

    @cached_property
    def cache(self) -> Any:
        """The clean run's."""
        return self.model.run_with_cache(self.clean)[1]

    def sweep(self) -> Tensor:
        import pandas

        done = self.patching.generic_activation_patch(
            self.model,
            self.corrupted,
            self.cache,
            lambda logits: metric(logits)[0],
            self.patching.layer_pos_patch_setter,
            "resid_pre",
            index_df=pandas.DataFrame(CELLS, columns=["layer", "pos"]),
        )
        return torch.as_tensor(done)


class _Lens(_Named):
    """Its whole sweep shares batches, so all of it runs."""

    whole = True

    def sweep(self) -> Tensor:
        run = self.patching.get_act_patch_resid_pre
        return run(self.model, self.corrupted, self.cache, lambda logits: metric(logits)[0])


def lens() -> Any:
    """lensbridge."""
    import lensbridge
    from lensbridge import patching

    return _Lens(lensbridge.load(gpt2()), patching)


def bridge() -> Any:
    """TransformerLens."""
    import transformer_lens.patching as patching

    from benchmarks.comparison.tools.bridge import boot

    return _Named(boot(gpt2()), patching)


class Traced:
    """nnsight."""

    def __init__(self) -> None:
        from nnsight import TransformersModel

        self.hf = gpt2()
        self.model = TransformersModel(self.hf, tokenizer=demo_tokenizer())
        self.clean, self.corrupted = prompts()

    def idle(self) -> Tensor:
        with self.model.trace(self.clean):
            logits = self.model.output.logits.save()
        return logits

    def stream(self) -> Tensor:
        with self.model.trace(self.clean):
            kept = list().save()  # noqa: C408
            for layer in range(LAYERS):
                kept.append(self.model.transformer.h[layer].output)
            logits = self.model.output.logits.save()
        return logits

    def everything(self) -> Tensor:
        with self.model.trace(self.clean) as tracer:
            tracer.cache(include_inputs=True)
            logits = self.model.output.logits.save()
        return logits

    def edits(self) -> Tensor:
        with self.model.trace(self.clean):
            for place in places():
                module, side = path(*place)
                spot = self.model.get(module)
                setattr(spot, side, workload.shrink(getattr(spot, side)))
            logits = self.model.output.logits.save()
        return logits

    @cached_property
    def stream_clean(self) -> list[Tensor]:
        """`resid_pre` of each layer on the clean prompt."""
        return list(self.hf(self.clean, output_hidden_states=True).hidden_states[:LAYERS])

    def sweep(self) -> Tensor:
        clean = self.stream_clean
        with self.model.trace() as tracer:  # one batch
            saved = list().save()  # noqa: C408
            for layer, pos in CELLS:
                with tracer.invoke(self.corrupted):
                    block = self.model.transformer.h[layer]
                    block.input[:, pos, :] = clean[layer][:, pos, :]
                    saved.append(self.model.lm_head.output[:, -1:])
        return torch.stack([metric(one)[0] for one in saved])


class Standard:
    """nnterp."""

    def __init__(self) -> None:
        from nnterp import StandardizedTransformer

        self.model = StandardizedTransformer(gpt2(), tokenizer=demo_tokenizer())
        self.clean, self.corrupted = prompts()

    def idle(self) -> Tensor:
        with self.model.trace(self.clean):
            logits = self.model.logits.save()
        return logits

    def stream(self) -> Tensor:
        with self.model.trace(self.clean):
            kept = list().save()  # noqa: C408
            for layer in range(LAYERS):
                kept.append(self.model.layers_output[layer])
            logits = self.model.logits.save()
        return logits

    def sweep(self) -> Tensor:
        hf = self.model._model
        clean = list(hf(self.clean, output_hidden_states=True).hidden_states[:LAYERS])
        with self.model.trace() as tracer:  # one batch
            saved = list().save()  # noqa: C408
            for layer, pos in CELLS:
                with tracer.invoke(self.corrupted):
                    value = self.model.layers_input[layer].clone()
                    value[:, pos] = clean[layer][:, pos]
                    self.model.layers_input[layer] = value
                    saved.append(self.model.logits[:, -1:])
        return torch.stack([metric(one)[0] for one in saved])


CONTENDERS: dict[str, Any] = {
    "bare": Bare,
    "lensbridge": lens,
    "TransformerLens": bridge,
    "nnsight": Traced,
    "nnterp": Standard,
    "pyvene": Intervened,
}
