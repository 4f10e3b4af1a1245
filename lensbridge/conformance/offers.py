"""Descriptions with another value in one slot: what an activation, a scale, a bound, a norm or the
sinks of attention could be instead."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import product
from types import UnionType
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from lensbridge.conformance.activations import activation_of
from lensbridge.conformance.mutation import Mutant
from lensbridge.conformance.own_parts import (
    OF_ATTENTION,
    OF_ENDS,
    OF_NORMS,
    of_attention,
    of_ends,
    own_norms,
)
from lensbridge.conformance.subject import Subject
from lensbridge.native.resolve import config_dict
from lensbridge.spec import Architecture, Block

ACTIVATIONS = (
    "silu",
    "gelu",
    "gelu_new",
    "gelu_pytorch_tanh",
    "relu",
    "relu2",
    "quick_gelu",
    "gelu_fast",
    "tanh",
    "sigmoid",
    "mish",
    "swigluoai",
)
"""Activations of language models, the usual ones first."""

MOST = 24
"""How many values are tried in one slot."""

PAIR = " and block.mlp."
"""What stands between the changes of two branches."""

OF_BRANCHES = ("scale", "skip_scale")
"""The scales that can also be parameters of the block."""

OF_CONFIG = {"logit_softcap": "cap", "clip": "clip"}
"""Fields that name a config field with a bound, and what the name of that one has in it."""

NO_FACTORS = ("cycles", "eps", "sparsity")
"""Fields that hold a number or an expression as a scale does, and multiply nothing."""

_NAMED_ACT = re.compile(r"act|act_fn|activation\w*|\w+_act|\w+_act_fn|\w+_activation\w*|afn")
_NAMED_SCALE = re.compile(r"scal|mult|factor|alpha|beta|gamma|gain|lambda|residual|gate|(^|\.)ls\d")
_NO_SCALE = re.compile(r"eps|drop|theta|range|_id$|^num_|_size$|^n_|vocab|version|max_|std|coef")

Put: TypeAlias = Callable[[Any], Architecture]
"""Makes an architecture with this node in the place of another."""


@dataclass(frozen=True)
class Slot:
    """One field of one part of a description."""

    path: str
    name: str
    value: Any
    fill: Put


def offers(subject: Subject) -> Iterator[Mutant]:
    """Descriptions with another value in one slot, with a scale in another slot, and with the same
    or two scales in empty slots of both branches.

    What the model itself has comes first: its config fields and the parameters of its blocks.
    """
    architecture = subject.model.architecture
    values = _Values(subject)
    for slot in _slots("", architecture, _itself):
        for value in list(dict.fromkeys(values.of(slot.name)))[:MOST]:
            if value != slot.value:
                change = f"{slot.path}: {slot.value!r} -> {value!r}"
                yield Mutant(change, slot.fill(value))
    yield from _moved(architecture)
    if isinstance(architecture.block, Block):
        yield from _both_branches(architecture, architecture.block, values)


def _moved(architecture: Architecture) -> Iterator[Mutant]:
    """A scale in the place of another that is empty."""
    scales = [one for one in _slots("", architecture, _itself) if one.name.endswith("scale")]
    for one, other in product(scales, scales):
        if one.value is not None and other.value is None:
            left = one.fill(None)
            empty = (slot for slot in _slots("", left, _itself) if slot.path == other.path)
            moved = next(empty).fill(one.value)
            yield Mutant(f"{one.path} moved to {other.path}", moved)


def _itself(architecture: Architecture) -> Architecture:
    return architecture


def _both_branches(architecture: Architecture, block: Block, values: "_Values") -> Iterator[Mutant]:
    """The two scales of a block that has neither: a model that scales one branch scales both."""
    if block.attn is None or block.mlp is None:
        return
    for name in OF_BRANCHES:
        if (vars(block.attn)[name], vars(block.mlp)[name]) != (None, None):
            continue
        few = list(dict.fromkeys(values.of(name)))[:4]
        for one, other in product(few, few):
            to_attn: Any = {name: one}
            to_mlp: Any = {name: other}
            attn, mlp = replace(block.attn, **to_attn), replace(block.mlp, **to_mlp)
            change = f"block.attn.{name}: None -> {one!r}{PAIR}{name}: None -> {other!r}"
            new = replace(block, attn=attn, mlp=mlp)
            yield Mutant(change, replace(architecture, block=new))


class _Values:
    """What a model has that an activation or a scale could be."""

    def __init__(self, subject: Subject) -> None:
        config = config_dict(subject.hf_model)
        inner = config.get(subject.model.architecture.config or "")
        self.config = {**config, **inner} if isinstance(inner, dict) else config
        self.core = subject.model.native.core
        self.width = subject.model.cfg.d_model
        parts = subject.parts.values()
        self.modules = [part.module for part in parts]
        self.attentions = [part.attention for part in parts if part.attention is not None]
        slots = _slots("", subject.model.architecture, _itself)
        scales = [slot.value for slot in slots if slot.name.endswith("scale")]
        self.said = [one for one in scales if isinstance(one, str)]

    def of(self, name: str) -> Iterator[str]:
        """The values for a field of this name, the likely ones first."""
        if name == "act":
            yield from self._act_fields()
            yield from (one for one in ACTIVATIONS if activation_of(one) is not None)
            return
        if name in OF_CONFIG:
            yield from sorted(self._numeric(), key=lambda field: OF_CONFIG[name] not in field)
            return
        if name in OF_ENDS:
            yield from of_ends(name, self.core, self.modules)
            return
        if name in OF_NORMS:
            yield from own_norms(self.modules)
            return
        if name in OF_ATTENTION:
            yield from of_attention(name, self.attentions)
            return
        if name in OF_BRANCHES:
            yield from self._parameters()
        yield from self._numbers(name)
        yield from self.said

    def _act_fields(self) -> Iterator[str]:
        for field, value in self.config.items():
            if isinstance(value, str) and _NAMED_ACT.fullmatch(field):
                yield field

    def _numbers(self, name: str) -> Iterator[str]:
        """Config fields with a number other than one, then roots of the width."""
        subject = name.removesuffix("_scale")
        found = [one for one in self._numeric() if not _NO_SCALE.search(one)]
        named = [one for one in found if _NAMED_SCALE.search(one)]
        for one in sorted(named, key=lambda field: subject not in field):
            yield from (one, f"1 / {one}")
        width = next((key for key, value in self.config.items() if value == self.width), None)
        if width is not None:
            yield from (f"sqrt({width})", f"1 / sqrt({width})")
        yield from (one for one in found if one not in named)

    def _numeric(self) -> Iterator[str]:
        for field, value in self.config.items():
            if _is_factor(value):
                yield field
            elif isinstance(value, list | tuple) and _NAMED_SCALE.search(field):
                yield from (f"{field}[{i}]" for i, one in enumerate(value) if _is_factor(one))

    def _parameters(self) -> Iterator[str]:
        """Parameters of the blocks with one number, or one for each channel, named as factors or
        held by the block itself."""
        for module in self.modules:
            for path, parameter in module.named_parameters():
                own = "." not in path or _NAMED_SCALE.search(path)
                if own and parameter.numel() in (1, self.width):
                    yield path
                    if "gate" in path:
                        yield f"tanh({path})"


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value not in (0, 1)


def _slots(at: str, node: Any, put: Put) -> Iterator[Slot]:
    """Every activation and scale of a description."""
    hints = get_type_hints(type(node))
    for field in fields(node):
        name, value = field.name, vars(node)[field.name]
        fill = partial(_filled, node, name, put)
        others = name in ("act", *OF_CONFIG, *OF_ENDS, *OF_NORMS, *OF_ATTENTION)
        if others or (_is_scale(hints[name]) and name not in NO_FACTORS):
            yield Slot(f"{at}{name}", name, value, fill)
        elif is_dataclass(value):
            yield from _slots(f"{at}{name}.", value, fill)
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if is_dataclass(item):
                    yield from _slots(f"{at}{name}[{i}].", item, partial(_placed, value, i, fill))


def _filled(node: Any, name: str, put: Put, value: Any) -> Architecture:
    return put(replace(node, **{name: value}))


def _placed(items: tuple[Any, ...], i: int, fill: Put, item: Any) -> Architecture:
    return fill((*items[:i], item, *items[i + 1 :]))


def _is_scale(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType) and {float, str} <= set(get_args(hint))
