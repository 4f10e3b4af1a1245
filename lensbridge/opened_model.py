"""OpenedModel: a HuggingFace model with its parts found and named, kept up with as it changes."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lensbridge.elsewhere.hinted import instead
from lensbridge.elsewhere.model import MODEL, OPENING
from lensbridge.elsewhere.opening import OpeningNames
from lensbridge.errors import (
    ArchitectureMismatchError,
    LensbridgeError,
    UnsupportedArchitectureError,
    suggest,
)
from lensbridge.hooks.carrying import refuse_to_pickle
from lensbridge.hooks.engine import Engine
from lensbridge.hooks.methods import HookMethods
from lensbridge.hooks.tree import tree_of
from lensbridge.inputs.methods import TextMethods
from lensbridge.inputs.prepare import Preparer
from lensbridge.inputs.tokens import Tokens
from lensbridge.native.config import LensConfig, config_of
from lensbridge.native.fsdp import name_modules
from lensbridge.native.methods import TorchMethods
from lensbridge.native.parts import ResolvedModel
from lensbridge.native.pieces import refuse_copies
from lensbridge.native.resolve import GIVEN, chosen_again, resolve
from lensbridge.native.settings import kernel_of
from lensbridge.native.structure import Structure
from lensbridge.native.wrappers import unwrapped
from lensbridge.points.names import rows_of_short
from lensbridge.points.point_names import PointNames
from lensbridge.sites.wiring import sites_of, vocabulary_of
from lensbridge.sites.wiring.index import SiteIndex
from lensbridge.spec import Architecture
from lensbridge.weights.circuits import CircuitMethods
from lensbridge.weights.components import Components
from lensbridge.weights.methods import WeightMethods
from lensbridge.weights.view import PointsHere

if TYPE_CHECKING:
    from typing_extensions import Self


class OpenedModel(
    HookMethods, WeightMethods, TextMethods, CircuitMethods, TorchMethods, metaclass=OpeningNames
):
    """A model, its points and weights by name; what `HookedModel` runs.

    Attributes:
        hf_model: the model itself, the very object.
        native: its parts.
        engine: its points, and who listens at them.
        tokens: its tokenizer with the rules for BOS and padding.
        preparer: turns inputs into calls of it.
    """

    def __init__(
        self,
        hf_model: nn.Module,
        find_tokenizer: Callable[[], Any],
        architecture: Architecture | None = None,
        source: str = GIVEN,
    ) -> None:
        self.hf_model = unwrapped(hf_model)
        self.tokens = Tokens(find_tokenizer)
        self._description = architecture, source
        self._cfg: tuple[Any, LensConfig] | None = None
        self.engine = Engine(self.hf_model, {}, ())
        self._look()
        me = weakref.ref(self)  # so that hooks and tools do not keep a lens alive
        self.engine.follow = lambda: (lens := me()) is not None and lens.follow()
        weakref.finalize(self, self.engine.close)

    def __repr__(self) -> str:
        cfg, spec = self.cfg, self.native.architecture
        over = f", overriding '{spec.overrides}'" if spec.overrides else ""
        if self.native.rivals:
            over += f"; also claimed by {', '.join(self.native.rivals)}, not in use"
        return (
            f"{type(self).__name__}({cfg.original_architecture} {cfg.model_name!r}, "
            f"{cfg.n_layers} layers, d_model {cfg.d_model}, read as '{spec.name}' from "
            f"{cfg.plugin}{over})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: facts, and the points as a tree."""
        return tree_of(type(self).__name__, self.native, self.cfg, self.engine.sites).fragment()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            own = getattr(type(self), name, None)
            if isinstance(own, property):
                return own.fget(self)  # it raised; again, for its own message
            raise AttributeError(self._without(name))

    def _without(self, name: str) -> str:
        """What to write instead of an attribute that a lens does not have."""
        kind, native = type(self).__name__, self.__dict__.get("native")
        told = f"A {kind} has no attribute {name!r}."
        if native is None or name.startswith("_"):
            return told
        if name in MODEL:
            there = hasattr(native.core, name) and name not in ("config", *OPENING)
            own = f" The HuggingFace model has one: model.hf_model.{name}." if there else ""
            return f"{told}{instead(name, MODEL)}{own}"
        if name in vars(self.cfg):
            return f"{told} It is a size or a choice: model.cfg.{name}."
        if hasattr(native.core, name):
            return (
                f"{told} The HuggingFace model has one: model.hf_model.{name}. Here weights are "
                "model.blocks[0].attn.W_Q, and activations have names: model.hook_names."
            )
        if name in self.vocabulary.index or rows_of_short(name):
            return f"{told} It is a point: model.run_with_cache(input, {name!r})."
        public = [one for one in dir(type(self)) if not one.startswith("_")]
        hint = suggest(name, public) or " The HuggingFace model itself is model.hf_model."
        return f"{told}{hint}"

    def _look(self) -> None:
        """Find every part of the model as it is now."""
        native = self._resolved()
        self._refuse_new_code(native)
        sites, vocabulary = self._points(native)
        self.engine.move_to(sites, tuple({self.hf_model, native.core}), native.sharding)
        self.native = native
        name_modules(native.paths)
        self.vocabulary = vocabulary
        me = weakref.ref(self)
        points = PointsHere(
            f"{native.main.prefix}.",
            lambda: _alive(me()).vocabulary.names,
            lambda name: _alive(me()).explain(name),
        )
        self._components = Components(
            native, lambda layer, resid: _alive(me())._run_block(layer, resid), points
        )
        self.preparer = Preparer(native, self.tokens, native.calling.accepted)
        head = () if native.unembed is None else (native.unembed.module,)
        tables = (native.main.embed, native.main.pos_embed, *head)
        self._structure = Structure.of(self.hf_model, [one for one in tables if one is not None])

    def _resolved(self) -> ResolvedModel:
        """The parts of the model as it is now."""
        return resolve(self.hf_model, *self._description)

    def _points(self, native: ResolvedModel) -> tuple[SiteIndex, PointNames]:
        """Where its points are, and what they are called."""
        sites = sites_of(native)
        return sites, vocabulary_of(native, sites)

    def _refuse_new_code(self, native: ResolvedModel) -> None:
        """Code that came after the model was loaded has not been checked."""
        before = self.__dict__.get("native")
        known = () if before is None else {one.what for one in before.overrides}
        new = [one for one in native.overrides if before is not None and one.what not in known]
        if new:
            raise ArchitectureMismatchError(
                f"{new[0]}, and whether '{native.architecture.name}' describes that is checked "
                "only at load."
            )

    def follow(self) -> bool:
        """Take in modules that were replaced since the model was last looked at.

        Adapters that were injected or merged, resized embeddings and exchanged layers are found in
        the next run, or when names or weights are asked for.

        Returns:
            Whether there were any.

        Raises:
            ArchitectureMismatchError: the description does not fit the model as it is now.
        """
        if self._structure.holds:
            return False
        try:
            self._look()
        except (ArchitectureMismatchError, UnsupportedArchitectureError) as error:
            changes = self._structure.changes()
            more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
            raise ArchitectureMismatchError(
                f"The model was changed after it was loaded ({'; '.join(changes[:3])}{more}), and "
                f"it is not as described any more: {error} Undo the change, or load the model "
                "again: lensbridge.load(hf_model)."
            ) from error
        return True

    @property
    def components(self) -> Components:
        """Every part under the field's names, and every weight by name."""
        self.follow()
        return self._components

    # --- copies ------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A lens on a copy of the model. Hooks are not copied."""
        self.engine.compilable.refuse_copies()
        refuse_copies(self.native.sharding)
        return self._on(deepcopy(self.hf_model, memo))

    def __copy__(self) -> Self:
        """Another lens on the same model. Hooks are not copied."""
        return self._on(self.hf_model)

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle holds: the model, its tokenizer and its description.

        Raises:
            HookError: there are hooks.
        """
        refuse_to_pickle(self.engine)
        self.engine.compilable.refuse_copies()
        refuse_copies(self.native.sharding)
        return {
            "hf_model": self.hf_model,
            "tokenizer": self.tokens.tokenizer,
            "default_prepend_bos": self.tokens.default_prepend_bos,
            "description": self._description,
            "read_as": (self.native.architecture, self.native.plugin),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        tokenizer = state["tokenizer"]
        description = chosen_again(state["hf_model"], state["description"], state["read_as"])
        type(self).__init__(self, state["hf_model"], lambda: tokenizer, *description)
        self.tokens.default_prepend_bos = state["default_prepend_bos"]

    def _on(self, hf_model: nn.Module) -> Self:
        """A lens like this one on another model."""
        other = type(self)(hf_model, self.tokens.find, *self._description)
        other.tokens.default_prepend_bos = self.tokens.default_prepend_bos
        return other

    @property
    def cfg(self) -> LensConfig:
        """Sizes and choices under the field's names; `cfg.hf` is the HuggingFace config."""
        self.follow()
        bos = self.tokens.default_prepend_bos
        state = (self.native, self.device, self.dtype, bos, kernel_of(self.native.core))
        if self._cfg is None or self._cfg[0] != state:
            self._cfg = state, config_of(self.native, bos, self.device)
        return self._cfg[1]

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.preparer.device

    @property
    def architecture(self) -> Architecture:
        """The description that the model is read with."""
        return self.native.architecture

    @abstractmethod
    def _run_block(self, layer: int, resid: Tensor) -> Tensor:
        """The stream after one layer."""


def _alive(model: OpenedModel | None) -> OpenedModel:
    if model is None:
        raise LensbridgeError("The model that this layer is of was dropped: keep it in a variable.")
    return model
