"""The oracle: bare HuggingFace models under plain PyTorch hooks, and attention from the formula."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from tiny_models import Layer, Shape, split_heads
from torch import Tensor, nn
from transformers.models.gpt_neox.modeling_gpt_neox import (
    apply_rotary_pos_emb as rotate_neox,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_llama


@dataclass
class Recording:
    """Inputs and outputs of every module in one bare forward pass."""

    logits: Tensor
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)


def cache_argument(model: nn.Module) -> str:
    """What a model's forward calls its key/value cache: `cache` from transformers 5.24 on."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The activation among a module's arguments."""
    candidates = [*args[:1], *([kwargs["hidden_states"]] if "hidden_states" in kwargs else [])]
    return next((one for one in candidates if isinstance(one, Tensor)), None)


def record(model: nn.Module, **call: Any) -> Recording:
    """Run a bare model and keep what goes in and out of every module."""
    recording = Recording(torch.empty(0))

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = first_tensor(args, kwargs)
        if given is not None:
            recording.inputs[module] = given
        out = output[0] if isinstance(output, tuple) else output
        if isinstance(out, Tensor):
            recording.outputs[module] = out

    handles = [
        module.register_forward_hook(hook, with_kwargs=True)
        for module in model.modules()
        if module is not model
    ]
    try:
        recording.logits = model(**call).logits
    finally:
        for handle in handles:
            handle.remove()
    return recording


def run_replacing(
    model: nn.Module, module: nn.Module, side: str, value: Tensor, **call: Any
) -> Tensor:
    """Logits of a bare model in which one module's input or output is another tensor."""

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (value, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": value}

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        return (value, *output[1:]) if isinstance(output, tuple) else value

    if side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        return model(**call).logits
    finally:
        handle.remove()


@dataclass
class Attention:
    """Attention of one layer, computed from the formula out of recorded projections.

    Shapes: q, rot_q `[b, p, h, d]`; k, rot_k, v `[b, p, g, d]`; scores, pattern `[b, h, q, k]`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rot_q: Tensor
    rot_k: Tensor
    scores: Tensor
    pattern: Tensor

    @classmethod
    def of(
        cls,
        model: nn.Module,
        shape: Shape,
        index: int,
        recording: Recording,
        mask: Tensor | None,
        **changed: Tensor,
    ) -> "Attention":
        """From a recording, with some of the values changed on the way."""
        layer = Layer(model, shape.family, index)
        q, k, v = (
            changed.get(role, split_heads(recording.outputs[layer.qkv[role]], shape, role))
            for role in "qkv"
        )
        rot_q, rot_k = rotated(model, shape, q, k)
        rot_q, rot_k = changed.get("rot_q", rot_q), changed.get("rot_k", rot_k)
        scores = changed.get("scores", scores_by_hand(shape, index, rot_q, rot_k, mask))
        dead = (scores == -torch.inf).all(-1, keepdim=True)
        pattern = scores.masked_fill(dead, 0.0).softmax(-1).masked_fill(dead, 0.0)
        return cls(q, k, v, rot_q, rot_k, scores, changed.get("pattern", pattern))

    @property
    def z(self) -> Tensor:
        """Shapes: `[b, p, (h d)]`, as the output projection reads it."""
        heads = self.pattern.shape[1]
        v = repeat(self.v, "b k g d -> b k (g r) d", r=heads // self.v.shape[2])
        z = torch.einsum("bhqk,bkhd->bqhd", self.pattern, v)
        return rearrange(z, "b q h d -> b q (h d)")


def rotated(model: nn.Module, shape: Shape, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """q and k after the native rotary embedding."""
    if shape.family == "gpt2":
        return q, k
    neox = shape.family.startswith("neox")
    base = model.gpt_neox if neox else model.model
    positions = torch.arange(q.shape[1]).unsqueeze(0)
    cos, sin = base.rotary_emb(q, positions)
    rotate = rotate_neox if neox else rotate_llama
    rot_q, rot_k = rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    return rot_q.transpose(1, 2), rot_k.transpose(1, 2)


def scores_by_hand(shape: Shape, index: int, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled, masked scores: causal, padding, and Mistral's window of four."""
    k = repeat(k, "b k g d -> b k (g r) d", r=q.shape[2] // k.shape[2])
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * shape.d_head**-0.5
    if shape.family == "gpt2":
        scores = scores / (index + 1)
    far = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])[None, :]
    seen = far >= 0
    if shape.family == "mistral":
        seen = seen & (far < 4)
    seen = seen[None, None].expand(scores.shape[0], 1, -1, -1)
    if mask is not None:
        seen = seen & mask.bool()[:, None, None, :]
    return scores.masked_fill(~seen, -torch.inf)
