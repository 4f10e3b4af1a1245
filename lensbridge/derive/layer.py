"""One layer of a trace as a graph: its values, the calls that return them and that read them."""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from lensbridge.derive.trace import Kernel, Trace, TracedCall


class NotEstablished(Exception):  # noqa: N818 - it ends a search and is no error
    """A part of the description could not be established; the message says why."""


@dataclass(eq=False)
class Value:
    """One tensor of the stream's shape, also if several modules return it.

    Args:
        tensor: `[b, p, m]`.
        time: when it first appeared.
        producers: the calls that return it, innermost first.
        consumers: the calls that read it.
    """

    tensor: Tensor
    time: int
    producers: list[TracedCall] = field(default_factory=list)
    consumers: list[TracedCall] = field(default_factory=list)

    @cached_property
    def flat(self) -> Tensor:
        """The tensor in double precision, so that sums of it are exact enough to be compared."""
        return self.tensor.flatten().double()

    @cached_property
    def size(self) -> float:
        return float(self.flat.norm())


class Layer:
    """One layer of a traced stack: its input, its output and the values in between.

    Args:
        trace: the trace.
        call: the call of the layer.
        given: its input.
        shape: of the values; None: that of its output.
    """

    def __init__(
        self, trace: Trace, call: TracedCall, given: Tensor, shape: torch.Size | None = None
    ) -> None:
        self.trace = trace
        self.call = call
        self.path = call.path
        inside = trace.within(call.path)
        self.calls = [one for one in inside if call.start < one.start and one.end < call.end]
        assert call.output is not None
        self.shape = call.output.shape if shape is None else shape
        self._known: dict[bytes, Value] = {}
        self.x = self._end(given, call.start)
        for one in self.calls:
            self._add(one)
        self.y = self._end(call.output, call.end)
        self.y.time = call.end
        for value in self._known.values():
            value.producers.sort(key=lambda one: one.end)

    def _end(self, tensor: Tensor, time: int) -> Value:
        """The stream at one end, which is no value where branches read another shape."""
        return self._value(tensor, time) if self._fits(tensor) else Value(tensor, time)

    def _add(self, call: TracedCall) -> None:
        for tensor in call.inputs:
            if self._fits(tensor):
                value = self._value(tensor, call.start)
                value.consumers.append(call)
        for tensor in call.outputs[:1]:
            if self._fits(tensor):
                self._value(tensor, call.end).producers.append(call)

    def _fits(self, tensor: Tensor) -> bool:
        return (
            tensor.is_floating_point()
            and tensor.numel() == self.shape.numel()
            and tensor.shape[-1] == self.shape[-1]
        )

    def _value(self, tensor: Tensor, time: int) -> Value:
        whole = tensor.reshape(self.shape).float().cpu()
        value = self._known.setdefault(whole.numpy().tobytes(), Value(whole, time))
        value.time = min(value.time, time)
        return value

    @property
    def values(self) -> list[Value]:
        """Every value of the stream's shape, in the order in which they appeared."""
        return sorted(self._known.values(), key=lambda value: value.time)

    def value(self, tensor: Tensor | None) -> Value | None:
        """The value that a tensor is, if it is one of them."""
        if tensor is None or not self._fits(tensor):
            return None
        return self._known.get(tensor.reshape(self.shape).float().cpu().numpy().tobytes())

    @cached_property
    def positions_first(self) -> bool:
        """Whether the stream has positions before the batch."""
        wide = [one for one in self.trace.inputs.values() if isinstance(one, Tensor)]
        told = {tuple(one.shape[:2]) for one in wide if one.ndim == 2}
        first, second = self.shape[:2]
        return (second, first) in told and (first, second) not in told

    @property
    def rows(self) -> tuple[int, int]:
        """The sizes of the batch and of a row of positions."""
        first, second = self.shape[:2]
        return (second, first) if self.positions_first else (first, second)

    def by_rows(self, tensor: Tensor) -> Tensor:
        """A tensor of this layer with the batch first: `[b, p, ...]`."""
        turned = self.positions_first and tensor.shape[:2] == self.shape[:2]
        return tensor.transpose(0, 1) if turned else tensor

    @property
    def kernels(self) -> list[Kernel]:
        """The attention kernels that ran in this layer."""
        return [k for k in self.trace.kernels if self.call.start < k.time < self.call.end]

    def relative(self, path: str) -> str:
        """A path relative to the block."""
        return path.removeprefix(self.path).removeprefix(".")

    def below(self, path: str) -> list[TracedCall]:
        """The calls of the modules below a path, which is relative to the model."""
        return [call for call in self.calls if call.path.startswith(f"{path}.")]

    def is_leaf(self, call: TracedCall) -> bool:
        """Whether no other module ran inside this one."""
        return not any(call.start < other.start and other.end < call.end for other in self.calls)


def is_projection(module: nn.Module) -> bool:
    """Whether a module, of any class, has one matrix that maps its input's last axis."""
    weight = module._parameters.get("weight")
    return (
        weight is not None and weight.ndim == 2 and not isinstance(module, nn.Embedding)
    ) or hasattr(module, "base_layer")


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors of one shape are the same up to rounding."""
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double().to(a.device)
    return bool((a - b).norm() <= tolerance * (a.norm() + b.norm() + 1e-12))


def gave(call: TracedCall, value: Tensor) -> bool:
    """Whether a value is the output of a call."""
    output = call.output
    return output is not None and output.shape == value.shape and close(output, value, 1e-6)


def fitted_scale(a: Tensor, b: Tensor, tolerance: float) -> float | None:
    """The number c with `b = c * a`, or None."""
    a, b = a.double().flatten(), b.double().flatten().to(a.device)
    if a.shape != b.shape or not bool(a.norm() > 0):
        return None
    c = float(a @ b / (a @ a))
    return c if bool((b - c * a).norm() <= tolerance * (b.norm() + abs(c) * a.norm())) else None


def common_parent(paths: list[str]) -> str:
    """The longest path that is equal to or above all of these.

    Example:
        >>> common_parent(["attn.self.q", "attn.out.dense"])
        'attn'
    """
    split = [path.split(".") for path in paths]
    shared = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def as_heads(tensor: Tensor, batch: int) -> Tensor:
    """A kernel's operand as `[b, p, h, d]`."""
    whole = tensor if tensor.ndim == 4 else tensor.unflatten(0, (batch, -1))
    return whole.transpose(1, 2)


def unit(scale: float, tolerance: float) -> bool:
    """Whether a fitted factor is one."""
    return abs(scale - 1) < max(10 * tolerance, 1e-4)
