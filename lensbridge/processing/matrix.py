"""A stored matrix, in whatever module it is: a projection, a router, a stack of experts."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lensbridge.native.experts import Experts, Stacked
from lensbridge.native.holding import Held, held
from lensbridge.native.linear import Linear
from lensbridge.native.parts import ResolvedModel
from lensbridge.processing.undo_log import UndoLog


@dataclass(frozen=True)
class Matrix:
    """A weight and its bias, by their names in a module.

    Args:
        module: the module that has both.
        weight: the name of the weight, `[in, out]` or `[out, in]`, after an axis for experts.
        bias: the name of the bias.
        transposed: whether the weight is stored `[..., in, out]`.
        in_scale: the multiplier of its input.
    """

    module: nn.Module
    weight: str
    bias: str
    transposed: bool
    in_scale: float = 1.0

    @property
    def parameter(self) -> nn.Parameter:
        """The stored weight."""
        found = self.module._parameters[self.weight]
        assert found is not None
        return found

    @property
    def bias_parameter(self) -> nn.Parameter | None:
        """The stored bias, or None."""
        return self.module._parameters.get(self.bias)

    @property
    def width(self) -> int:
        """The width of its input."""
        return self.parameter.shape[-2 if self.transposed else -1]

    def read(self) -> Tensor:
        """Shapes: `[..., in, out]`, in at least float32."""
        return wide(self._turned(self.parameter.detach()))

    def write(self, undo_log: UndoLog, value: Tensor) -> None:
        """Shapes: `[..., in, out]`"""
        undo_log.write(self.parameter, self._turned(value))

    def read_bias(self) -> Tensor:
        """Shapes: `[..., out]`, in at least float32. Zeros if there is no bias."""
        own = self.bias_parameter
        if own is not None:
            return wide(own.detach())
        weight = self._turned(self.parameter.detach())
        like = wide(weight[..., 0, :])
        return torch.zeros_like(like)

    def write_bias(self, undo_log: UndoLog, value: Tensor) -> None:
        """Set the bias; if there is none, add one.

        Shapes: `[..., out]`
        """
        own, weight = self.bias_parameter, self.parameter
        if own is not None:
            undo_log.write(own, value)
            return
        fresh = value.to(weight.device, weight.dtype).contiguous()
        undo_log.put(self.module, self.bias, nn.Parameter(fresh, weight.requires_grad))

    def takes_bias(self) -> bool:
        """Whether it has a bias, or would use one if it had it."""
        if self.bias_parameter is not None:
            return True
        return self.bias in self.module._parameters and self._uses_a_new_bias()

    def _uses_a_new_bias(self) -> bool:
        """Try it on a copy of the module that shares the weight: zeros must give the bias."""
        weight = self._turned(self.parameter.detach())
        bias = torch.arange(1.0, 1.0 + weight.shape[-1], device=weight.device) % 7
        twin = copy.copy(self.module)
        given = {**self.module._parameters, self.bias: nn.Parameter(bias.to(weight.dtype))}
        twin.__dict__["_parameters"] = given
        with torch.no_grad():
            out = type(self.module).forward(twin, weight.new_zeros(1, weight.shape[-2]))
        return isinstance(out, Tensor) and torch.equal(out[0], bias.to(weight.dtype))

    def _turned(self, weight: Tensor) -> Tensor:
        return weight if self.transposed else weight.mT


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the precision of the rewriting: float32, or float64 if it has that."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def of_linear(linear: Linear, in_scale: float = 1.0) -> "Matrix | str":
    """The matrix of a projection; or the reason why it cannot be rewritten."""
    if (why := obstacle(linear.held)) is not None:
        return f"the weight of a {type(linear.module).__name__} {why}"
    return Matrix(linear.module, "weight", "bias", linear.transposed, in_scale)


def of_experts(experts: Experts, weight: Stacked) -> "Matrix | str":
    """One stacked parameter of a mixture; or the reason why it cannot be rewritten."""
    if experts.activation is not None:
        return "the experts are not stacked in transformers' usual parameters"
    if (why := obstacle(experts.held(weight))) is not None:
        return f"{weight.name} of the experts {why}"
    return Matrix(weight.module, weight.name, f"{weight.name}_bias", weight.input_first)


def obstacle(how: Held) -> str | None:
    """Why a weight that is held like this cannot be rewritten; None where it is plain."""
    return None if how.writable else f"is {how.by} ({how.instead.rstrip('.')})"


def of_router(router: nn.Module, n_experts: int, d_model: int) -> "Matrix | str":
    """The matrix of a router that is linear up to its logits; or the reason why it is not."""
    shapes = {name: tuple(p.shape) for name, p in router.named_parameters()}
    whole, per_expert = (n_experts, d_model), (n_experts,)
    found = [name for name, shape in shapes.items() if shape == whole]
    plain = all(shape in (whole, per_expert) for shape in shapes.values())
    if len(found) != 1 or not plain or not _holds_linears_only(router):
        return "its router is more than one matrix"
    path, _, name = found[0].rpartition(".")
    holder = router.get_submodule(path)
    if (why := obstacle(held(holder, name))) is not None:
        return f"the weight of its router {why}"
    return Matrix(holder, name, "bias", transposed=False)


def _holds_linears_only(router: nn.Module) -> bool:
    inside = list(router.modules())[1:]
    return all(isinstance(module, nn.Linear) for module in inside)


def places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str, str]]]:
    """Where each parameter is, by its id: module, name, and path for messages."""
    found: dict[int, list[tuple[nn.Module, str, str]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((module, name, f"{path}.{name}"))
    return found


def untie(native: ResolvedModel, undo_log: UndoLog) -> None:
    """Give the head its own weight, if it shares the embedding's."""
    if native.unembed is None:
        return
    module = native.unembed.module
    weight = module._parameters["weight"]
    if weight is not None and len(places(native.core)[id(weight)]) > 1:
        undo_log.put(module, "weight", nn.Parameter(weight.data, weight.requires_grad))
