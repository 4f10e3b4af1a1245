"""A test of the checks themselves: descriptions with one declaration changed must be rejected.

The mutants are made for any frozen dataclass: a new field of `lensbridge.spec` gets mutants as soon
as an adapter uses it, and this test fails until some check rejects them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import combinations
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from lensbridge.conformance.check import Check, run_check
from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.failures import RUN_ERRORS, told
from lensbridge.conformance.subject import Subject
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import LensbridgeError
from lensbridge.inputs.random import inputs_for
from lensbridge.native.parts import MLPPart, MoEPart
from lensbridge.spec import MLP, Architecture, FusedGatedMLP, GatedMLP, Norms

Outcome: TypeAlias = Literal["refused", "rejected", "survived", "equal"]
"""refused: at load. rejected: by a check. equal: the change has no effect."""

NOT_BEHAVIOUR = ("name", "classes", "requires", "overrides", "undescribed")
"""Fields that select a description or explain it, and say nothing about the model."""

OPEN_LISTS = ("steps",)
"""Fields that may be left out: the description then says less, and is not wrong."""

TYPO = " with a typo"
"""The end of the change to a misspelt path or name."""

ACTIVATIONS = ("relu", "gelu")
"""Names that are tried in the place of an activation's."""


@dataclass(frozen=True)
class Mutant:
    """A description with one declaration changed."""

    change: str
    architecture: Architecture


@dataclass(frozen=True)
class Trial:
    """The outcome for a mutant, and the check or error that gave it."""

    mutant: Mutant
    outcome: Outcome
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.outcome:<9}{self.mutant.change}  {self.reason}".rstrip()


# --- making mutants --------------------------------------------------------------------------


def mutants(architecture: Architecture) -> Iterator[Mutant]:
    """Every description that differs from this one in one declaration.

    Example:
        >>> from lensbridge_adapters.gpt2 import GPT2
        >>> next(m.change for m in mutants(GPT2) if "residual" in m.change)
        "block.residual: 'sequential' -> 'parallel'"
    """
    for change, changed in _of_node("", architecture):
        yield Mutant(change, changed)


def _of_node(at: str, node: Any) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(type(node))
    for field in fields(node):
        if field.name in NOT_BEHAVIOUR:
            continue
        value = vars(node)[field.name]
        for words, new in _of_value(value, _choices(hints[field.name]), field.name):
            change = f"{at}{field.name}{words}"
            yield change, replace(node, **{field.name: new})
        for inner, new in _inside(f"{at}{field.name}", value):
            yield inner, replace(node, **{field.name: new})
    yield from _exchanged(at, node)
    yield from _other_types(at, node)


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values that a field may have: the members of a union, and those of its `Literal`s."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    found: list[Any] = []
    for member in members:
        found += get_args(member) if get_origin(member) is Literal else [member]
    return tuple(found)


def _of_value(value: Any, choices: tuple[Any, ...], name: str) -> Iterator[tuple[str, Any]]:
    """Changes of one field: another literal, a flip, a typo, nothing at all."""
    literals = [one for one in choices if isinstance(one, str)]
    if name == "act":
        yield from ((f": {value!r} -> {one!r}", one) for one in ACTIVATIONS if one != value)
        return
    if isinstance(value, bool):
        yield f": {value} -> {not value}", not value
    elif literals:
        yield from ((f": {value!r} -> {one!r}", one) for one in literals if one != value)
    elif isinstance(value, str) and value:
        yield f": {value!r}{TYPO}", f"{value}x"
    if value is not None and not isinstance(value, bool) and NoneType in choices:
        yield f": {_brief(value)} forgotten", None
    if isinstance(value, float):
        yield f": {value} -> {value * 2}", value * 2.0


def _brief(value: Any) -> str:
    return type(value).__name__ if is_dataclass(value) else repr(value)


def _inside(at: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Changes inside a nested description, or inside one of several."""
    if is_dataclass(value):
        yield from _of_node(f"{at}.", value)
    elif isinstance(value, tuple) and value and not at.endswith(OPEN_LISTS):
        for i, item in enumerate(value):
            for change, new in _inside(f"{at}[{i}]", item):
                yield change, (*value[:i], new, *value[i + 1 :])
            if len(value) > 1 or is_dataclass(item):
                yield f"{at}[{i}] forgotten", (*value[:i], *value[i + 1 :])
            if i and isinstance(item, str):
                swapped = (*value[: i - 1], item, value[i - 1], *value[i + 1 :])
                yield f"{at}[{i - 1}] and [{i}] exchanged", swapped


def _exchanged(at: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Two paths of one part exchanged; for norms, also a path moved to an empty slot."""
    empty_too = isinstance(node, Norms)
    paths = {
        field.name: vars(node)[field.name]
        for field in fields(node)
        if field.name not in (*NOT_BEHAVIOUR, "kind", "layout", "halves", "qk_norm_axes", "path")
        and (isinstance(vars(node)[field.name], str) or empty_too)
        and not isinstance(vars(node)[field.name], bool)
    }
    for one, other in combinations(paths, 2):
        if paths[one] != paths[other]:
            new = replace(node, **{one: paths[other], other: paths[one]})
            yield f"{at}{one} and {other} exchanged", new


def _other_types(at: str, node: Any) -> Iterator[tuple[str, Any]]:
    """A gated MLP declared as a plain one."""
    if isinstance(node, GatedMLP):
        plain = MLP(node.path, node.up, node.down, node.act, node.written_by, node.scale)
        yield f"{at}gate forgotten", plain
    if isinstance(node, FusedGatedMLP):
        plain = MLP(node.path, node.gate_up, node.down, node.act, node.written_by, node.scale)
        yield f"{at}gate forgotten", plain


# --- trying them -----------------------------------------------------------------------------


def trials(
    architecture: Architecture,
    model: nn.Module | None = None,
    *,
    checks: Iterable[Check] = CHECKS,
    limit: int | None = None,
    **config: Any,
) -> list[Trial]:
    """Try every mutant on one tiny model.

    Args:
        architecture: the description to change.
        model: the model to try them on; None: a tiny one of the first class.
        checks: which checks may reject them.
        limit: how many mutants to try; None: all.
        config: config fields of the tiny model.
    """
    hf_model = tiny_model(architecture, **config) if model is None else model
    original = Subject(hf_model, inputs_for(hf_model), architecture)
    order = list(checks)
    return [_try(mutant, original, order) for mutant in list(mutants(architecture))[:limit]]


def _try(mutant: Mutant, original: Subject, checks: list[Check]) -> Trial:
    """Try one. The check that rejects it is the first for the next, which is often similar."""
    try:
        subject = Subject(original.hf_model, original.inputs, mutant.architecture)
    except LensbridgeError as error:
        return Trial(mutant, "refused", told(error))
    except Exception as error:  # the resolver should have raised an error of its own
        return Trial(mutant, "refused", f"crash: {told(error)}")
    if subject.unreadable:
        return Trial(mutant, "rejected", subject.unreadable)
    try:
        if are_equal(subject, original):
            return Trial(mutant, "equal")
    except RUN_ERRORS as error:  # a weight that cannot be read
        return Trial(mutant, "rejected", f"crash: {told(error)}")
    for check in checks:
        row = run_check(check, subject)
        if row.status == "failed":
            checks.remove(check)
            checks.insert(0, check)
            return Trial(mutant, "rejected", f"{row.check}: {row.detail}")
    return Trial(mutant, "survived")


def are_equal(one: Subject, other: Subject) -> bool:
    """Whether two descriptions give the same names, values and weights on one model."""
    if one.names != other.names or one.model.weight_names != other.model.weight_names:
        return False
    if _told_of(one) != _told_of(other):
        return False
    return all(_equal(one.clean[name], other.clean[name]) for name in one.names) and all(
        _equal(one.model.weight(name), other.model.weight(name)) for name in one.model.weight_names
    )


def _told_of(subject: Subject) -> tuple[Any, ...]:
    """What is told about the model beside names, values and weights."""
    mlps = [part.mlp for part in subject.parts.values()]
    shared = [mlp.shared for mlp in mlps if isinstance(mlp, MoEPart)]
    acts = [mlp.act for mlp in (*mlps, *shared) if isinstance(mlp, MLPPart | MoEPart)]
    cuts = [mlp.sparsity for mlp in mlps if isinstance(mlp, MLPPart)]
    tables = [mlp.table is None for mlp in mlps if isinstance(mlp, MoEPart)]
    return subject.model.cfg.to_dict(), acts, cuts, tables


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def survivors(
    architecture: Architecture, model: nn.Module | None = None, **config: Any
) -> list[Trial]:
    """The mutants that change a value or a name and are not rejected."""
    return [one for one in trials(architecture, model, **config) if one.outcome == "survived"]


def kill_rate(tried: Iterable[Trial]) -> float:
    """The fraction of mutants with an effect that is refused or rejected."""
    outcomes = [one.outcome for one in tried if one.outcome != "equal"]
    return 1.0 - outcomes.count("survived") / max(len(outcomes), 1)
