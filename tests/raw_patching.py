"""Activation patching on bare HuggingFace models, with plain PyTorch hooks: an oracle."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from einops import rearrange
from raw import Attention, Recording, record
from tiny_models import Layer, Shape, build, join_heads, split_heads
from torch import Tensor, nn

Change = Callable[[Tensor, Tensor], None]
"""Writes some of the second tensor (clean) into the first (corrupted)."""


def run_changing(
    model: nn.Module, changes: list[tuple[nn.Module, str, Any]], ids: Tensor, **call: Any
) -> Tensor:
    """Logits of a bare model in which inputs or outputs of modules go through functions."""

    def before(change: Any) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        return hook

    def after(change: Any) -> Any:
        def hook(_: nn.Module, args: Any, out: Any) -> Any:
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        return hook

    handles = []
    for module, side, change in changes:
        if side == "input":
            handles.append(module.register_forward_pre_hook(before(change), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(after(change)))
    try:
        return model(input_ids=ids, **call).logits
    finally:
        for handle in handles:
            handle.remove()


@dataclass(eq=False)
class Bare:
    """A bare model, a clean and a corrupted input."""

    shape: Shape
    clean: Tensor
    corrupted: Tensor

    @cached_property
    def model(self) -> Any:
        return build(self.shape)

    @cached_property
    def runs(self) -> tuple[Recording, Recording]:
        return (
            record(self.model, input_ids=self.clean),
            record(self.model, input_ids=self.corrupted),
        )

    def attention(self, layer: int, which: int, **changed: Tensor) -> Attention:
        return Attention.of(self.model, self.shape, layer, self.runs[which], None, **changed)

    def patched(self, what: str, index: int, change: Change) -> Tensor:
        """Logits of the corrupted run with some of a clean activation in it."""
        clean, corrupted = self.runs
        layer = Layer(self.model, self.shape.family, index)
        heads = self.shape.heads

        def replacing(module: nn.Module, side: str, split: Any, join: Any) -> Tensor:
            def replaced(whole: Tensor) -> Tensor:
                source = (clean.inputs if side == "input" else clean.outputs)[module]
                share = split(whole).clone()
                change(share, split(source))
                return join(whole, share)

            return run_changing(self.model, [(module, side, replaced)], self.corrupted)

        def plain(whole: Tensor) -> Tensor:
            return whole

        def as_it_is(whole: Tensor, share: Tensor) -> Tensor:
            return share

        if what == "resid_pre":
            return replacing(layer.block, "input", plain, as_it_is)
        if what in ("attn_out", "mlp_out"):
            module = layer.attn if what == "attn_out" else layer.mlp
            return replacing(module, "output", plain, as_it_is)
        if what in ("q", "k", "v"):
            return replacing(
                layer.qkv[what],
                "output",
                lambda whole: split_heads(whole, self.shape, what),
                lambda whole, share: join_heads(whole, share, self.shape, what),
            )
        if what == "z":
            return replacing(
                layer.o,
                "input",
                lambda whole: rearrange(whole, "b p (h d) -> b p h d", h=heads),
                lambda whole, share: rearrange(share, "b p h d -> b p (h d)"),
            )
        if what == "resid_mid":
            mids = [run.inputs[layer.block] + run.outputs[layer.attn] for run in self.runs]
            wanted = mids[1].clone()
            change(wanted, mids[0])
            out = wanted - corrupted.inputs[layer.block]
            return run_changing(self.model, [(layer.attn, "output", lambda _: out)], self.corrupted)
        assert what == "pattern"
        pattern = self.attention(index, 1).pattern.clone()
        change(pattern, self.attention(index, 0).pattern)
        z = self.attention(index, 1, pattern=pattern).z
        return run_changing(self.model, [(layer.o, "input", lambda _: z)], self.corrupted)
