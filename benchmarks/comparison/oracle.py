"""The bare model under plain PyTorch hooks: what every tool is held against."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from benchmarks.comparison.families import HEADS, Family, build

Change = Callable[[Tensor], Tensor]


@contextmanager
def changed(model: nn.Module, path: str, change: Change, side: str = "output") -> Iterator[None]:
    """What a module gives, or is given, becomes another tensor."""

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    module = model.get_submodule(path)
    handle = (
        module.register_forward_hook(after)
        if side == "output"
        else module.register_forward_pre_hook(before, with_kwargs=True)
    )
    try:
        yield
    finally:
        handle.remove()


def read(model: nn.Module, path: str, ids: Tensor, side: str = "output") -> Tensor:
    """What a module gives, or is given."""
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    with changed(model, path, keep, side):
        model(ids)
    return kept[0]


def eager_pattern(family: Family, ids: Tensor, layer: int) -> Tensor:
    """The pattern that the bare model shows with eager attention: `[b, h, q, k]`."""
    return build(family.name, "eager")(ids, output_attentions=True).attentions[layer]


def attends_to_first(
    model: nn.Module, family: Family, ids: Tensor, layer: int, head: int
) -> Tensor:
    """Logits if a head attends to the first position only: its z is the first position's v."""
    v = family.heads_of(read(model, family.path("values", layer), ids), "v")
    v = repeat(v, "b p n d -> b p (n r) d", r=HEADS // v.shape[2])

    def first(z: Tensor) -> Tensor:
        heads = rearrange(z, "b p (h d) -> b p h d", h=HEADS).clone()
        heads[:, :, head] = v[:, :1, head]
        return rearrange(heads, "b p h d -> b p (h d)")

    with changed(model, family.path("out", layer), first, "input"):
        return model(ids).logits


def key_weights(model: nn.Module, family: Family, layer: int) -> Tensor:
    """W_K of each key/value head from the native weights: `[n, d_model, d_head]`."""
    projection = model.get_submodule(family.path("keys", layer))
    weight = projection.weight if family.name == "gpt2" else projection.weight.T
    if family.fused == "blocked":
        return rearrange(weight, "m (r n d) -> r n m d", r=3, n=HEADS)[1]
    if family.fused == "interleaved":
        return rearrange(weight, "m (n r d) -> r n m d", r=3, n=HEADS)[1]
    return rearrange(weight, "m (n d) -> n m d", n=family.kv)


def gradient(
    model: nn.Module, path: str, ids: Tensor, scalar: Callable[[Tensor], Tensor]
) -> Tensor:
    """Of a scalar of the logits by what a module gives, with autograd."""
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        leaf = value.detach().requires_grad_()
        kept.append(leaf)
        return leaf

    with torch.enable_grad(), changed(model, path, keep):
        return torch.autograd.grad(scalar(model(ids).logits), kept[0])[0]
