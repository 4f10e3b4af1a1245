"""How a plain module is called: the input as a user writes it, and the module in the engine's form.

A tuple holds the positional arguments, a mapping whose keys are names of arguments the keyword
ones; anything else is the first argument. Nothing is converted or moved, but text is made ids if
there is a tokenizer.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.errors import InputError
from lensbridge.hooks.span import Span
from lensbridge.inputs.keywords import unexpected
from lensbridge.inputs.prepare import Prepared
from lensbridge.inputs.prompts import is_text
from lensbridge.inputs.tokens import Tokens
from lensbridge.native.calling import Calling
from lensbridge.native.multiplier import Multiplier
from lensbridge.native.parts import ResolvedModel, Sizes, StackPart
from lensbridge.native.settings import settings_of
from lensbridge.native.wrappers import core_of
from lensbridge.sites.leaves import first_tensor

_ARGS = "*args"
_NO_STACK = "\0"
"""The prefix of a stack that no name of a point begins with."""
_NO_PARTS: dict[str, Any] = {
    "architecture": None,
    "plugin": "no description",
    "rivals": (),
    "overrides": (),
    "towers": (),
    "act_fn": "",
    "unembed": None,
    "returns_logits": True,
    "unembed_bias": None,
    "head_scale": 1.0,
    "logit_scale": 1.0,
    "logit_softcap": None,
    "head_hidden": None,
    "pooler": None,
    "projector": None,
    "main_input": "",
    "logits_axes": "",
    "is_encoder_decoder": False,
    "predicts_next": False,
    "label_kind": None,
    "checkpointers": (),
}
"""What a resolved model says of a description, a head and inputs, where there are none."""


class ModuleParts(ResolvedModel):
    """A plain module in the place of a resolved model: it has no layers, embeddings or head."""

    @classmethod
    def of(cls, root: nn.Module) -> "ModuleParts":
        """The parts of a module, which are all none."""
        core = core_of(root)
        return cls(
            root=root,
            core=core,
            main=_no_layers(core),
            calling=Calling.of(core),
            paths={module: path for path, module in root.named_modules()},
            **_NO_PARTS,
        )

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """Call the module with an input that was prepared."""
        others = {name: value for name, value in inputs.items() if name != _ARGS}
        return self.root(*inputs.get(_ARGS, ()), **others)

    def logits(self, output: Any) -> Tensor:
        """The first tensor in what the module returns.

        Raises:
            InputError: there is none.
        """
        found = first_tensor(output)
        if found is None:
            raise InputError(
                f"{type(self.core).__name__} returned a {type(output).__name__} with no tensor in "
                "it, so there is nothing to measure. Measure activations: gradients(..., at=...)."
            )
        return found


def _no_layers(core: nn.Module) -> StackPart:
    return StackPart(
        prefix=_NO_STACK,
        path="",
        sizes=Sizes(0, 0, 0, 0, 0, 0, 0, None),
        config=settings_of(core),
        embed=None,
        embed_scale=Multiplier(),
        embed_overwritten=False,
        pos_embed=None,
        takes_positions=False,
        residual_axes="",
        ln_embed=None,
        blocks=(),
        ln_final=None,
    )


@dataclass(frozen=True)
class ModulePreparer:
    """Turns inputs of a plain module into calls of it.

    Args:
        native: the module.
        tokens: its tokenizer, if it has one.
        accepted: keywords that its forward takes.
        any_keyword: whether it takes any.
    """

    native: ModuleParts
    tokens: Tokens
    accepted: frozenset[str]
    any_keyword: bool

    @classmethod
    def of(cls, native: ModuleParts, tokens: Tokens) -> "ModulePreparer":
        """For a module, from the signature of its forward."""
        parameters = inspect.signature(native.core.forward).parameters.values()
        positional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
        anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
        skipped = (*positional, inspect.Parameter.VAR_KEYWORD)
        names = frozenset(one.name for one in parameters if one.kind not in skipped)
        return cls(native, tokens, names, anything)

    @property
    def device(self) -> torch.device:
        """Where its first parameter is."""
        first = next(self.native.root.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def prepare(self, given: Any = None, **keywords: Any) -> Prepared:
        """The arguments of a call.

        Raises:
            TypeError: a keyword that the forward does not take.
        """
        for name in keywords:
            if name not in self.accepted and not self.any_keyword:
                raise unexpected(name, type(self.native.core).__name__, self.accepted)
        args, named = self._read(given)
        for name in keywords.keys() & named.keys():
            raise TypeError(f"{name!r} is in the input and beside it: pass it once.")
        return Prepared(None, None, None, None, {_ARGS: args, **named, **keywords})

    def _read(self, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if given is None:
            return (), {}
        if is_text(given) and self.tokens.tokenizer is not None:
            return self._encoded(given)
        if isinstance(given, tuple):
            return given, {}
        if isinstance(given, Mapping) and self._names_arguments(given):
            return (), dict(given)
        return (given,), {}

    def _encoded(self, text: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Text as ids, for a module that was loaded with a tokenizer.

        Raises:
            InputError: texts of different lengths, and the forward takes no mask.
        """
        rows = self.tokens.encode(text)
        ids, mask = rows.ids.to(self.device), rows.mask.to(self.device)
        if bool(mask.all()):
            return (ids,), {}
        if "attention_mask" not in self.accepted:
            raise InputError(
                f"The forward of {type(self.native.core).__name__} has no argument attention_mask, "
                "so texts of different lengths cannot be padded into one batch. Run them one by "
                "one, or cut them to one length."
            )
        return (ids,), {"attention_mask": mask}

    def _names_arguments(self, given: Mapping[Any, Any]) -> bool:
        named = all(isinstance(name, str) for name in given)
        return bool(given) and named and (self.any_keyword or set(given) <= self.accepted)


class WholeRun(Span):
    """A run of the whole module, which has no layers to start or stop at."""

    def __str__(self) -> str:
        return (
            " A point is passed when the model calls the module there and a tensor goes in or "
            "comes out. What a forward computes without calling a module has no point."
        )
