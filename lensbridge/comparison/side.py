"""The two models of a comparison, and whether they can be compared."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from lensbridge.errors import InputError
from lensbridge.loading import load
from lensbridge.model import LensModel

_SIZES = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp")


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Args:
        model: the model.
        name: what it is called in tables.
        without: a context in which it is meant: with its adapters switched off, say.
    """

    model: LensModel
    name: str
    without: Callable[[], AbstractContextManager[Any]] = nullcontext


def sides_of(a: Any, b: Any) -> tuple[Side, Side]:
    """The two models, loaded, and checked to be of one architecture.

    Two lenses on one model whose weights have adapters are the base, with the adapters switched
    off, and the adapted model.

    Raises:
        InputError: the same model twice, or two architectures.
    """
    one, other = (given if isinstance(given, LensModel) else load(given) for given in (a, b))
    if one.native.core is other.native.core:
        return _adapted(one, other)
    _check_architecture(one, other)
    names = [_name(given, model) for given, model in ((a, one), (b, other))]
    if names[0] == names[1]:
        names = [f"{name} ({letter})" for name, letter in zip(names, "ab", strict=True)]
    return Side(one, names[0]), Side(other, names[1])


def _adapted(one: LensModel, other: LensModel) -> tuple[Side, Side]:
    off = next((o for o in map(_switch, (one.hf_model, other.hf_model)) if o is not None), None)
    if off is None:
        raise InputError(
            "a and b are the same model object. Load the second model too; or, to compare a base "
            "with its adapters, pass the PEFT model."
        )
    base, adapted = Side(one, "base", off), Side(other, "adapted")
    if _switch(one.hf_model) is not None and _switch(other.hf_model) is None:
        return Side(one, "adapted"), Side(other, "base", off)
    return base, adapted


def _switch(hf_model: nn.Module) -> Callable[[], AbstractContextManager[Any]] | None:
    """What switches the adapters of a PEFT model off; None for other models."""
    found = getattr(hf_model, "disable_adapter", None)
    return found if callable(found) and hasattr(hf_model, "peft_config") else None


def _name(given: Any, model: LensModel) -> str:
    return given if isinstance(given, str) else model.cfg.model_name


def _check_architecture(one: LensModel, other: LensModel) -> None:
    specs = [model.native.architecture.name for model in (one, other)]
    if specs[0] != specs[1]:
        raise InputError(
            f"a is read as '{specs[0]}' and b as '{specs[1]}': weights and layers of two "
            "architectures do not correspond. Compare a model with its own fine-tune."
        )
    differ = [
        f"{name} {getattr(one.cfg, name)} and {getattr(other.cfg, name)}"
        for name in _SIZES
        if getattr(one.cfg, name) != getattr(other.cfg, name)
    ]
    if differ:
        raise InputError(
            f"a and b have different sizes ({', '.join(differ)}), so their weights do not "
            "correspond. Compare a model with its own fine-tune."
        )


def check_tokenizers(one: LensModel, other: LensModel) -> None:
    """Refuse two tokenizers that give a token different ids. Tokens that only one has are fine.

    Raises:
        InputError: with tokens whose ids differ.
    """
    known = [model.tokens.tokenizer for model in (one, other)]
    if any(tokenizer is None for tokenizer in known):
        return
    first, second = (tokenizer.get_vocab() for tokenizer in known)
    differ = [token for token in first if token in second and first[token] != second[token]]
    shared = len(first.keys() & second.keys())
    if differ or 2 * shared < min(len(first), len(second)):
        shown = [f"{token!r} is {first[token]} and {second[token]}" for token in differ[:3]]
        told = "; ".join(shown) or f"only {shared} tokens are in both"
        raise InputError(
            f"The tokenizers of a and b differ ({told}), so their predictions are of different "
            "tokens and cannot be compared. Leave prompts out to compare the weights."
        )
