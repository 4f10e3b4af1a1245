"""Look-ups of what a description names in the modules of a model; errors say what there is."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from lensbridge.errors import suggest
from lensbridge.native.linear import Linear
from lensbridge.native.multiplier import Constant, Multiplier
from lensbridge.native.norm import Norm, affine_names
from lensbridge.native.product import Product
from lensbridge.native.resolve.config_reader import ConfigReader
from lensbridge.native.settings import settings_of
from lensbridge.native.wrappers import named_parts, unwrapped
from lensbridge.spec import NormKind, Norms, Scale

_KINDS: dict[type[nn.Module], NormKind] = {nn.LayerNorm: "LN", nn.RMSNorm: "RMS"}

_EPS_NAMES = ("eps", "variance_epsilon", "epsilon", "norm_eps")


@dataclass(frozen=True)
class Finder(ConfigReader):
    """The modules and tensors of one model, and its config.

    Args:
        products: parameters that were found as projections, by their module and name.
    """

    products: dict[tuple[nn.Module, str], Product] = field(default_factory=dict)

    @cached_property
    def parts(self) -> dict[str, nn.Module]:
        """Every module of the model by its path, without the wrappers in between."""
        return dict(named_parts(self.core))

    def find(self, parent: nn.Module, path: str, where: str) -> nn.Module:
        """The module at a dotted path; "" is the parent itself.

        A parameter with three axes, `[d_model, head, d_head]`, is a projection too.
        """
        here = parent
        for name in path.split(".") if path else ():
            children = {key: unwrapped(one) for key, one in here.named_children()}
            held = here._parameters.get(name)
            if name not in children and held is not None and held.ndim == 3:
                here = self.products.setdefault((here, name), Product(here, name))
                continue
            if name not in children:
                raise self.mismatch(
                    f"{where} has no module '{path}': {type(here).__name__} has "
                    f"{', '.join(children) or 'no modules'}.{suggest(name, children)}"
                )
            here = children[name]
        return here

    def top(self, path: str) -> nn.Module:
        """A module from the top; a bare base model has no base prefix."""
        return self.find(self.core, self.unprefixed(path), type(self.core).__name__)

    def has(self, path: str) -> bool:
        """Whether there is a module at a path from the top."""
        return self.unprefixed(path) in self.parts

    def optional_top(self, path: str | None) -> nn.Module | None:
        """A module from the top, or None where there is none."""
        return None if path is None or not self.has(path) else self.top(path)

    def unprefixed(self, path: str) -> str:
        """A path without the base prefix, in a bare base model."""
        first, _, rest = path.partition(".")
        prefix = getattr(self.core, "base_model_prefix", None)
        last = str(prefix).rpartition(".")[2]  # MllamaTextModel's is "language_model.model"
        return rest if rest and first == last and first not in self.core._modules else path

    def path_of(self, module: nn.Module) -> str:
        """The dotted path of a module."""
        return next(path for path, one in self.parts.items() if one is unwrapped(module))

    def linear(self, module: nn.Module, where: str) -> Linear:
        """A module as a projection."""
        stored: Any = getattr(module, "base_layer", module)
        if hasattr(stored, "in_features") and hasattr(stored, "out_features"):
            return Linear(module, False, int(stored.in_features), int(stored.out_features))
        if hasattr(stored, "nf") and hasattr(stored, "nx"):  # transformers' Conv1D
            return Linear(module, True, int(stored.nx), int(stored.nf))
        if hasattr(stored, "input_size") and hasattr(stored, "output_size"):  # vLLM's
            return Linear(module, False, int(stored.input_size), int(stored.output_size))
        weight = stored._parameters.get("weight")
        if weight is not None and weight.ndim == 2 and not isinstance(stored, nn.Embedding):
            return Linear(module, False, *reversed(weight.shape))  # a class of its own
        raise self.mismatch(f"'{where}' ({type(module).__name__}) does not look like a projection.")

    def norm(self, module: nn.Module, spec: Norms, width: int, where: str) -> Norm:
        """A module as a norm, or the norm inside it with the gate of its output."""
        inner = None if spec.inner is None else dict(named_parts(module)).get(spec.inner)
        if inner is not None:
            norm = self.norm(inner, replace(spec, inner=None), width, f"{where}.{spec.inner}")
            gate = None if spec.gate is None else self.find(module, spec.gate, where)
            return replace(norm, module=module, inner=inner, gate=gate)
        if isinstance(module, nn.Identity):
            raise self.mismatch(f"'{where}' is an Identity, so there is no norm.")
        kind = next((said for cls, said in _KINDS.items() if isinstance(module, cls)), spec.kind)
        if kind != spec.kind:
            raise self.mismatch(
                f"'{where}' is an nn.{type(module).__name__}, and the description says "
                f"Norms(kind={spec.kind!r})."
            )
        gain, bias = affine_names(module)
        others = sorted(module._parameters.keys() - {gain, bias})
        if others:
            raise self.mismatch(
                f"'{where}' ({type(module).__name__}) has parameters that are neither a gain nor a "
                f"bias: {', '.join(others)}. Leave the norm out of the description."
            )
        if spec.eps is not None:
            eps = self.scale(spec.eps)
        else:
            found = [getattr(module, name) for name in _EPS_NAMES if hasattr(module, name)]
            if not found or found[0] is None:
                raise self.mismatch(
                    f"'{where}' ({type(module).__name__}) does not look like a norm: it has no "
                    "eps. If it is one, say Norms(eps=...)."
                )
            eps = float(found[0])
        return Norm(module, spec.kind, eps, width, spec.unit_offset, gain, bias)

    def tensor(self, module: nn.Module, path: str, where: str) -> tuple[nn.Module, str]:
        """The module that has a parameter or buffer, and the name of it there."""
        parent, _, name = path.rpartition(".")
        owner = self.find(module, parent, where)
        if name not in owner._parameters and name not in owner._buffers:
            held = [*owner._parameters, *owner._buffers]
            raise self.mismatch(
                f"{where} has no tensor '{path}': {type(owner).__name__} has "
                f"{', '.join(held) or 'none'}.{suggest(name, held)}"
            )
        return owner, name

    def held(self, module: nn.Module, path: str | None) -> tuple[nn.Module, str] | None:
        """The same for a parameter; None where the module does not have it."""
        parent, _, name = (path or "").rpartition(".")
        owner = dict(named_parts(module)).get(parent)
        if owner is None or owner._parameters.get(name) is None:
            return None
        return owner, name

    def optional_tensor(self, path: str | None) -> tuple[nn.Module, str] | None:
        """A tensor from the top, or None where there is none."""
        if path is None:
            return None
        parent, _, name = self.unprefixed(path).rpartition(".")
        owner = self.parts.get(parent)
        if owner is None or (name not in owner._parameters and name not in owner._buffers):
            return None
        return owner, name

    def embed_scale(self, spec: Scale | None) -> Multiplier:
        """What the token embedding is multiplied by: a scale, or a buffer of the model."""
        held = self.optional_tensor(spec) if isinstance(spec, str) and "." in spec else None
        return Multiplier(self.scale(spec)) if held is None else Multiplier(held=(held,))

    def multiplier(
        self, layer: nn.Module, spec: Scale | None, where: str, index: int = 0
    ) -> Multiplier:
        """What a branch's output is multiplied by: a scale, parameters of the block, or both.

        Args:
            layer: the block.
            spec: as it is described.
            where: the place, for errors.
            index: which layer it is.
        """
        factors = spec.split(" * ") if isinstance(spec, str) else []
        own = {*layer._modules, *layer._parameters, *layer._buffers}
        held = [one for one in factors if _inside_tanh(one).split(".")[0] in own]
        for one in factors:
            self._expect_known(one, own, where)
        if not held:
            return Multiplier(self.scale(spec, index))
        numbers = [self.scale(one, index) for one in factors if one not in held]
        tensors = tuple(self.tensor(layer, _inside_tanh(one), where) for one in held)
        found = zip(held, tensors, strict=True)
        bounded = frozenset(tensor for one, tensor in found if one != _inside_tanh(one))
        return Multiplier(math.prod(numbers, start=1.0), tensors, bounded)

    def _expect_known(self, factor: str, own: Iterable[str], where: str) -> None:
        """Require that a factor that is a single name is a part of the layer or a config field."""
        name = _inside_tanh(factor)
        if not name.isidentifier() or name in own or name == "layer_index":
            return
        if self.optional(name) is None:
            known = [*own, *settings_of(self.core).to_dict()]
            raise self.mismatch(
                f"{where}: the config ({type(self.config).__name__}) has no '{name}', and the "
                f"layer has no such part; a scale names it.{suggest(name, known)}"
            )

    def constant(self, layer: nn.Module, spec: str | None, where: str, index: int) -> Constant:
        """What is added to the stream beside a branch: products of parameters, joined by +."""
        if spec is None:
            return Constant()
        said = {one: self.multiplier(layer, one, where, index) for one in spec.split(" + ")}
        for text, product in said.items():
            if not product.held:
                raise self.mismatch(f"{where}: '{text}' in sum_bias is no parameter of the layer.")
        return Constant(tuple(said.values()))

    def divided(self, whole: int, parts: int, path: str, where: str) -> int:
        """The size of one of so many parts of a projection's output.

        Raises:
            ArchitectureMismatchError: it is no whole number.
        """
        if whole % parts:
            raise self.mismatch(
                f"{where}: the output of '{path}' is {whole}, which is not a multiple of {parts}."
            )
        return whole // parts

    def expect(self, where: str, what: str, side: str, found: float, wanted: float) -> None:
        """Require that a size is as described.

        Raises:
            ArchitectureMismatchError: it is not.
        """
        if found != wanted:
            raise self.mismatch(
                f"{where}: the {side} of '{what}' is {found}, and the description says {wanted}."
            )


def _inside_tanh(factor: str) -> str:
    """`tanh(gate)` -> `gate`; any other factor as it is."""
    bare = factor.removeprefix("tanh(")
    return factor if bare == factor else bare.removesuffix(")")
