"""Finds which modules are norms, and what they compute, from their inputs and outputs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import Layer, NotEstablished, Value, close, fitted_scale
from lensbridge.derive.trace import TracedCall, tensors
from lensbridge.native.norm import affine_names
from lensbridge.spec import NormKind, Scale

_EPS_NAMES = ("eps", "variance_epsilon", "epsilon")


@dataclass(frozen=True)
class NormFacts:
    """What a norm module computes; `eps` only where the module itself does not have it."""

    kind: NormKind
    unit_offset: bool
    eps: Scale | None


def looks_like_norm(call: TracedCall) -> bool:
    """Whether a module's output stays the same, up to its eps, when its input is scaled."""
    if not call.inputs or call.output is None:
        return False
    given, got = call.inputs[0], call.output
    if not given.is_floating_point() or given.shape != got.shape:
        return False
    if any(parameter.ndim > 2 for parameter in call.module.parameters(recurse=False)):
        return False
    try:
        with torch.no_grad():
            larger = next(tensors(call.module(given * 16)), None)
    except Exception:  # a module that needs more than its input is not a norm
        return False
    return isinstance(larger, Tensor) and close(larger, got, 0.03) and not close(given, got, 1e-3)


def facts_of(call: TracedCall, fields: Fields, tolerance: float) -> NormFacts:
    """What one norm computes.

    Raises:
        NotEstablished: neither LayerNorm nor RMSNorm, with or without a gain of 1 + weight.
    """
    assert call.output is not None
    x = call.inputs[0].double()
    centered = x - x.mean(-1, keepdim=True)
    gain_name, bias_name = affine_names(call.module)
    bias = _parameter(call.module, bias_name, x, 0.0)
    gain = _parameter(call.module, gain_name, x, 1.0)
    has_gain = call.module._parameters.get(gain_name) is not None
    offsets = ((False, gain), (True, gain + 1)) if has_gain else ((False, gain),)
    kinds: tuple[tuple[NormKind, Tensor], ...] = (("LN", centered), ("RMS", x))
    for eps, said in _candidates(call.module, fields):
        for kind, wide in kinds:
            normalized = wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()
            for unit_offset, factor in offsets:
                if close(normalized * factor + bias, call.output, tolerance):
                    return NormFacts(kind, unit_offset, said)
    raise NotEstablished(
        f"{type(call.module).__name__} at '{call.path}' computes neither LayerNorm nor RMSNorm"
    )


def _candidates(module: nn.Module, fields: Fields) -> Iterator[tuple[float, Scale | None]]:
    """Candidates for eps, and how to describe each; the module's own need not be described."""
    for name in _EPS_NAMES:
        held = getattr(module, name, None)
        if isinstance(held, float):
            yield held, None
            return
    for name, value in fields.values.items():
        if isinstance(value, float) and "eps" in name:
            yield value, name
    yield from ((eps, eps) for eps in (1e-5, 1e-6, 1e-8, 1e-12, 0.0))


def _parameter(module: nn.Module, name: str, like: Tensor, missing: float) -> Tensor:
    held = module._parameters.get(name)
    if held is None:
        return torch.full(like.shape[-1:], missing, dtype=like.dtype, device=like.device)
    return held.detach().double()


def norm_before(layer: Layer, source: Value, reader: TracedCall) -> TracedCall | None:
    """The norm between a state of the stream and a module that reads it.

    Raises:
        NotEstablished: the module reads neither the stream nor a norm of it.
    """
    read = layer.value(reader.inputs[0])
    if read is source:
        return None
    for call in source.consumers:
        if call.end < reader.start and looks_like_norm(call):
            assert call.output is not None
            same = layer.value(call.output) is read
            whole = reader.inputs[0].numel() == call.output.numel()
            if same or (whole and _proportional(call.output, reader.inputs[0], layer)):
                return call
    raise NotEstablished(
        f"'{layer.relative(reader.path)}' reads neither the stream nor a norm of it"
    )


def _proportional(a: Tensor, b: Tensor, layer: Layer) -> bool:
    return fitted_scale(a, b.reshape(a.shape), layer.trace.tolerance) is not None
