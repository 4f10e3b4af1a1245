"""The MLP of a branch: finds its projections and its activation from the values in between."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import (
    Layer,
    NotEstablished,
    close,
    common_parent,
    fitted_scale,
    is_projection,
    unit,
)
from lensbridge.derive.norms import looks_like_norm
from lensbridge.derive.trace import TracedCall
from lensbridge.spec import MLP, FusedGatedMLP, GatedMLP

Dense: TypeAlias = MLP | GatedMLP | FusedGatedMLP


@dataclass(frozen=True)
class FoundDense:
    """The description of a dense MLP, and the projection that reads the stream."""

    spec: Dense
    reader: TracedCall


def find_dense(
    layer: Layer, down: TracedCall, after: int, fields: Fields, *, inside: str = ""
) -> FoundDense:
    """The MLP of a down projection.

    Args:
        layer: the layer that it is in.
        down: the call of that projection.
        fields: the config, for the name of the activation.
        after: when the state of the stream that the MLP reads appeared.
        inside: the module that it must be in, relative to the block.

    Raises:
        NotEstablished: the input of the down projection is no activation of a projection.
    """
    search = _Search(layer, down, after, fields, inside)
    found = search.plain() or search.fused() or search.gated() or search.behind_norm()
    if found is None:
        raise NotEstablished(
            f"the input of '{layer.relative(down.path)}' is no known activation of a projection "
            "before it"
        )
    return found


class _Search:
    def __init__(
        self, layer: Layer, down: TracedCall, after: int, fields: Fields, inside: str
    ) -> None:
        self.layer, self.down, self.fields = layer, down, fields
        self.post = down.inputs[0]
        self.tolerance = max(layer.trace.tolerance, 1e-5)
        self.calls = [
            call
            for call in layer.calls
            if after <= call.start
            and call.end < down.start
            and layer.relative(call.path).startswith(inside)
        ]
        self.projections = [
            call
            for call in self.calls
            if is_projection(call.module) and self._outer(call) == self._outer(down, given=True)
        ]

    @staticmethod
    def _outer(call: TracedCall, given: bool = False) -> int:
        """How many vectors the input or output of a call has."""
        tensor = call.inputs[0] if given else call.output
        return -1 if tensor is None else tensor.numel() // tensor.shape[-1]

    def plain(self) -> FoundDense | None:
        for up in reversed(self._of_width(1)):
            names = self._activations(_out(up), self.post)
            if names is not None:
                path, up_path, down_path = self._paths(up, self.down)
                spec = MLP(path, up=up_path, down=down_path, act=self._act(names))
                return FoundDense(spec, up)
        return None

    def gated(self) -> FoundDense | None:
        for gate, up in permutations(self._of_width(1), 2):
            for factor in (1.0, *self._factors(gate)):
                names = self._gated_activations(_out(gate) * factor, _out(up))
                if names is not None:
                    path, gate_path, up_path, down_path = self._paths(gate, up, self.down)
                    spec = GatedMLP(
                        path,
                        gate=gate_path,
                        up=up_path,
                        down=down_path,
                        act=self._act(names),
                        gate_scale=None if factor == 1.0 else self.fields.number(factor),
                    )
                    return FoundDense(spec, gate)
        return None

    def _factors(self, gate: TracedCall) -> Iterator[float]:
        """What a gate is multiplied by before a module, such as its activation, reads it."""
        for call in self.calls:
            if call.inputs and call.inputs[0].shape == _out(gate).shape:
                factor = fitted_scale(_out(gate), call.inputs[0], self.tolerance)
                if factor is not None and not unit(factor, self.tolerance):
                    yield factor

    def behind_norm(self) -> FoundDense | None:
        """A gated MLP with a norm between the product and the down projection."""
        for norm in self.calls:
            gave = norm.output
            if gave is None or gave.shape != self.post.shape or not close(gave, self.post, 1e-6):
                continue
            if looks_like_norm(norm):
                self.post = norm.inputs[0]
                found = self.gated()
                if found is not None and isinstance(found.spec, GatedMLP):
                    path = self.layer.relative(norm.path)
                    inner = path.removeprefix(f"{found.spec.path}.") if found.spec.path else path
                    return replace(found, spec=replace(found.spec, inner_norm=inner))
        return None

    def fused(self) -> FoundDense | None:
        for both in self._of_width(2):
            first, second = _out(both).chunk(2, -1)
            for gate, up, gate_first in ((first, second, True), (second, first, False)):
                names = self._gated_activations(gate, up)
                if names is not None:
                    path, both_path, down_path = self._paths(both, self.down)
                    spec = FusedGatedMLP(
                        path,
                        gate_up=both_path,
                        down=down_path,
                        halves="gate_first" if gate_first else "up_first",
                        act=self._act(names),
                    )
                    return FoundDense(spec, both)
        return None

    def _of_width(self, times: int) -> list[TracedCall]:
        width = times * self.post.shape[-1]
        return [call for call in self.projections if _out(call).shape[-1] == width]

    def _gated_activations(self, gate: Tensor, up: Tensor) -> set[str] | None:
        if gate.numel() != self.post.numel():
            return None
        post, up = self.post.double().flatten(), up.double().flatten()
        for call in self.calls:
            got = call.output
            if got is None or got.shape != gate.shape or not _reads(call, gate):
                continue
            if close(got.double().flatten() * up, post, self.tolerance):
                return self._activations(gate, got) or set()
        flat = gate.double().flatten()
        names = {
            name
            for name, act in activations().items()
            if close(act(flat) * up, post, self.tolerance)
        }
        return names or None

    def _activations(self, pre: Tensor, post: Tensor) -> set[str] | None:
        """Names of activations that map one to the other; empty: one without a name."""
        flat, wanted = pre.double().flatten(), post.double().flatten()
        if flat.shape != wanted.shape:
            return None
        names = {
            name for name, act in activations().items() if close(act(flat), wanted, self.tolerance)
        }
        if names:
            return names
        acts = (call for call in self.calls if _reads(call, pre) and self.layer.is_leaf(call))
        for act in acts:
            same = act.output is not None and act.output.numel() == post.numel()
            if same and not is_projection(act.module):
                return set() if close(_out(act).reshape(post.shape), post, 0) else None
        return None

    def _act(self, names: set[str]) -> str:
        by_length = sorted(names, key=lambda name: (len(name), name))
        return self.fields.activation(names) or next(iter(by_length), "hidden_act")

    def _paths(self, *calls: TracedCall) -> list[str]:
        paths = [self.layer.relative(call.path) for call in calls]
        parent = common_parent([path.rpartition(".")[0] for path in paths])
        return [parent, *(path.removeprefix(f"{parent}.") if parent else path for path in paths)]


def relative_to(spec: Dense, path: str) -> Dense:
    """The same MLP with its path relative to another module."""
    return replace(spec, path=spec.path.removeprefix(path).removeprefix("."))


def _out(call: TracedCall) -> Tensor:
    assert call.output is not None
    return call.output


def _reads(call: TracedCall, tensor: Tensor) -> bool:
    return (
        bool(call.inputs)
        and call.inputs[0].shape == tensor.shape
        and bool((call.inputs[0] == tensor).all())
    )


@cache
def activations() -> dict[str, Any]:
    """The activations that configs name, as functions, without those that have weights."""
    from transformers.activations import ACT2FN

    found: dict[str, Any] = {}
    probe = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for name in (name for name in ACT2FN if name != "xielu"):  # it warns of what is not installed
        try:
            act = ACT2FN[name]
            result = act(probe)
        except (ImportError, RuntimeError, TypeError):  # not installed, or halves the width
            continue
        if not list(act.parameters()) and result.shape == probe.shape and name != "linear":
            found[name] = act
    return found
