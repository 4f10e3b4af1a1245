"""Activations: on a grid of values, neurons are the function that the description names."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from statistics import NormalDist
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.mlp import dense, sparsity_of
from lensbridge.conformance.passes import Block
from lensbridge.conformance.subject import Subject
from lensbridge.errors import ConformanceError
from lensbridge.hooks.callbacks import Hook
from lensbridge.native.parts import MLPPart, MoEPart

Function: TypeAlias = Callable[[Tensor], Tensor]
"""What makes neurons of values before the activation."""

APART = 1e-5
"""The allowed difference of a neuron, relative to the larger of 1 and what it should be.
Activations that are near to each other differ by more: gelu and gelu_new by up to 4.7e-4."""

USUAL = (
    "silu", "gelu", "gelu_new", "quick_gelu", "relu", "relu2", "tanh", "sigmoid", "mish",
    "leaky_relu", "linear",
)  # fmt: skip
"""Activations that an error looks for."""


class _Neurons(NamedTuple):
    """The neurons of one MLP, and what they are made of."""

    block: Block
    sub: str
    act: str
    sparsity: float

    @property
    def found(self) -> Tensor:
        return self.block[f"{self.sub}.hook_post"]

    def made_by(self, activation: Function) -> Tensor:
        """What they would be with an activation."""
        made = activation(_cut(self.block[f"{self.sub}.hook_pre"], self.sparsity))
        linear = f"{self.sub}.hook_pre_linear"
        return made * self.block[linear] if linear in self.block else made

    def are(self, activation: Function) -> bool:
        """Whether an activation makes them."""
        made = self.made_by(activation)
        return bool(made.numel()) and bool(((self.found - made).abs() <= APART * _size(made)).all())


def check_activation_is_as_named(subject: Subject) -> None:
    """The neurons are the named activation function of pre, times the linear branch."""
    unknown = set()
    for neurons in _all_neurons(subject):
        module = _module_of(subject, neurons)
        activation = activation_of(neurons.act, module)
        if activation is not None:
            _hold(subject, neurons, activation)
            continue
        known = _known(subject, neurons)
        if known:
            raise ConformanceError(
                f"{neurons.block.name(neurons.sub)}: act is {neurons.act!r}, which is no config "
                f"field and no activation of transformers. {known}"
            )
        unknown.add(neurons.act)
    if unknown:
        raise NotApplicable(
            f"transformers has no activation {', '.join(sorted(unknown))}, and the neurons are "
            "made by none of its usual ones"
        )


def _all_neurons(subject: Subject) -> Iterator[_Neurons]:
    """The neurons of every MLP, as they are and on a grid of values before the activation."""
    places = list(dense(subject, "pre", "post", every=True))
    points = ("pre", "pre_linear", "post")
    names = [block.name(f"{sub}.hook_{one}") for block, sub in places for one in points]
    edits = [(block.name(f"{sub}.hook_pre"), _to_grid) for block, sub in places]
    spread = subject.read([name for name in names if name in subject.clean.values], edits)
    for values in (spread.values, subject.clean.values):
        for block, sub in places:
            at = Block(block.at, values)
            yield _Neurons(at, sub, _act(subject, at, sub), sparsity_of(subject, at, sub))


def _to_grid(value: Tensor, hook: Hook) -> Tensor:
    """Values from -4 to 4, in each row."""
    width = value.shape[-1]
    spread = torch.linspace(-4.0, 4.0, value.numel(), dtype=torch.float64)
    return spread.view(width, -1).T.reshape(value.shape).to(value)


def _hold(subject: Subject, neurons: _Neurons, activation: Function) -> None:
    made, (block, sub, act, _) = neurons.made_by(activation), neurons
    size = _size(made)
    try:
        subject.expect.close(
            block.name(f"{sub}.hook_post"),
            neurons.found / size,
            made / size,
            f"{act} of {sub}.hook_pre",
            slack=APART / subject.expect.tolerance,
        )
    except ConformanceError as error:
        raise ConformanceError(f"{error} {_known(subject, neurons)}".rstrip()) from None


def _size(neurons: Tensor) -> Tensor:
    return neurons.abs().clamp(min=1.0)


def _known(subject: Subject, neurons: _Neurons) -> str:
    """A sentence with the config field or the activation that makes the neurons; "" if none."""
    fields = _fields(subject, neurons.block.at)
    fitting = [name for name, value in fields.items() if _is_made_by(neurons, value)]
    if fitting:
        field = _nearest(neurons.act, fitting)
        return f"The config field {field!r} has the right one, {fields[field]!r}."
    named = [name for name in USUAL if _is_made_by(neurons, name)]
    return f"The neurons are {_nearest(neurons.act, named)} of hook_pre." if named else ""


def _nearest(word: str, names: list[str]) -> str:
    return (get_close_matches(word, names, n=1) or names)[0]


def _is_made_by(neurons: _Neurons, name: str) -> bool:
    activation = activation_of(name)
    return activation is not None and neurons.are(activation)


def _fields(subject: Subject, at: str) -> dict[str, str]:
    """The config fields of a block's stack that have a word."""
    stack = next(one for one in subject.stacks.values() if at.startswith(f"{one.prefix}."))
    settings: dict[str, Any] = stack.config.to_dict()
    return {name: value for name, value in settings.items() if isinstance(value, str)}


def _cut(gate: Tensor, share: float) -> Tensor:
    """Values without their mean and that quantile of a normal distribution; no negative ones."""
    if not share:
        return gate
    quantile = NormalDist().inv_cdf(share)
    spread = gate.std(-1, keepdim=True, unbiased=False)
    return torch.relu(gate - gate.mean(-1, keepdim=True) - quantile * spread)


def _act(subject: Subject, block: Block, sub: str) -> str:
    return _part(subject, block, sub).act


def _module_of(subject: Subject, neurons: _Neurons) -> nn.Module:
    return _part(subject, neurons.block, neurons.sub).module


def _part(subject: Subject, block: Block, sub: str) -> MLPPart | MoEPart:
    mlp = subject.parts[block.at].mlp
    if isinstance(mlp, MoEPart) and mlp.shared is not None and sub == "mlp.shared":
        return mlp.shared
    assert isinstance(mlp, MLPPart | MoEPart)
    return mlp


def activation_of(name: str, owner: nn.Module | None = None) -> Function | None:
    """The activation of a name in configs; None if there is none.

    Args:
        name: its name in transformers.
        owner: the MLP that has it. If it has parameters, it is the module of that type there; None
            if there is not exactly one.
    """
    from transformers.activations import ACT2FN

    found = ACT2FN[name] if name in ACT2FN else None  # noqa: SIM401 - it makes what it has
    if found is None or not list(found.parameters()):
        return found
    held = [] if owner is None else [one for one in owner.modules() if type(one) is type(found)]
    return held[0] if len(held) == 1 else None
