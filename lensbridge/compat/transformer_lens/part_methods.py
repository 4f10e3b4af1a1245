"""`PartMethods`: a model's parts as attributes, and what stands in their place."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from lensbridge.compat.transformer_lens.alone import run_attention
from lensbridge.compat.transformer_lens.as_module import INSTEAD, ModuleMethods
from lensbridge.compat.transformer_lens.masks import mask_or_type, refuse_other_mask
from lensbridge.compat.transformer_lens.parameters import with_grad
from lensbridge.compat.transformer_lens.point import HookPoint
from lensbridge.compat.transformer_lens.replacing import Replacements
from lensbridge.compat.transformer_lens.shown import Shown, walk
from lensbridge.compat.transformer_lens.tensors import positions_of
from lensbridge.compat.transformer_lens.tree import Branches, Part, branches_of, part_at
from lensbridge.errors import HookError, InputError, LensbridgeError

_OWN = ("lens", "points", "hf_model", "cfg", "replacements", "hook_dict", "mod_dict", "known_names")
"""Attributes that are never parts of the model."""

_STACKS = ("encoder.", "decoder.")
"""Where the layers of an encoder-decoder are."""


class PartMethods(ModuleMethods):
    """The parts of a model, and modules of the user's in their place.

    Attributes:
        points: the model's own points by name.
        replacements: what stands in the place of parts and points.
        known_names: the names of points at the last `setup()`, if something was replaced since.
    """

    points: Any
    replacements: Replacements
    known_names: Mapping[HookPoint, str] | None = None

    @cached_property
    def branches(self) -> Branches:
        """The names below each path."""
        return branches_of([*self.points, *self.weights.names])

    @cached_property
    def _parts(self) -> dict[str, Part]:
        return {}

    @cached_property
    def shown(self) -> Shown | None:
        """The points as they are found by walking through the model; None if they are its own."""
        children = any(point._modules for point in self.points.made.values())
        changed = self.replacements.hidden or self.replacements.added or children
        if changed:
            return Shown(self)
        for point in self.points.made.values():
            point.name = point.own_name
        return None

    @property
    def hook_dict(self) -> Mapping[str, HookPoint]:  # type: ignore[override]
        """Every point by name."""
        return self.points if self.shown is None else self.shown.points

    @property
    def mod_dict(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Every point and every part by name."""
        return {**self.modules_by_path(), **self.hook_dict}

    def modules_by_path(self) -> dict[str, Any]:
        """Every part, every point, and what stands in their places, by path."""
        parts = {path: self.lookup(path) for path in self.branches if path}
        return {**parts, **dict(walk(self, "", set()))}

    def part(self, path: str) -> Part:
        """The model's own part at a path, also while something else stands there."""
        if path not in self._parts:
            self._parts[path] = Part(self, path)
        return self._parts[path]

    def lookup(self, full: str) -> Any:
        """The weight, point, part or replacement at a path, or None."""
        if full in self.weights:
            return with_grad(self.weights[full](), self.hf_model.parameters())
        if full in self.points:
            point = self.points[full]
            return self.replacements.points.get(point.own_name, point)
        if full in self.replacements:
            return self.replacements[full]
        part = part_at(self, full)
        return mask_or_type(self, full) if part is None else part

    def modules_at(self, path: str, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        """The points of a part and the modules that were added to it, by name."""
        for name, module in walk(self, path, set()):
            yield f"{prefix}.{name}".lstrip("."), module

    def __getattr__(self, name: str) -> Any:
        own = getattr(type(self), name, None)
        if isinstance(own, property) and own.fget is not None:
            return own.fget(self)  # it raised; again, for its own message
        if not name.startswith("_") and name not in _OWN:
            found = self.lookup(name)
            if found is not None:
                return found
        if name in INSTEAD:
            raise AttributeError(f"There is no {name} here. {INSTEAD[name]}")
        lens = self.__dict__.get("lens")
        if lens is not None and not name.startswith("_") and hasattr(lens.native.core, name):
            raise AttributeError(f"There is no {name} here. It is model.lens.hf_model.{name}.")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_place(name):
            self.put(name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_place(name):
            self.take_off(name)
        else:
            super().__delattr__(name)

    def _is_place(self, name: str) -> bool:
        if name.startswith("_") or name in _OWN or "points" not in self.__dict__:
            return False
        return not hasattr(type(self), name) and (name in self.branches or name in self.points)

    # --- what stands in places ----------------------------------------------------------------

    def put(self, full: str, value: Any) -> None:
        """Write a weight, or let a module stand at a path in the runs of this model.

        Raises:
            HookError: nothing can stand there.
        """
        if mask_or_type(self, full) is not None:
            refuse_other_mask(self, full, value)
            return
        if isinstance(value, Tensor):
            self.weights.write({full: value})
            return
        if self.branches.get(full, [""])[0].isdigit():
            raise HookError(f"Layers are replaced one by one: model.{full}[0] = module.")
        self._keep_names()
        self.replacements.put(full, value)
        self._walk_again()

    def take_off(self, full: str) -> None:
        """Let the model's own part or point stand at a path again."""
        self._keep_names()
        self.replacements.take_off(full)
        self._walk_again()

    def _keep_names(self) -> None:
        """Points keep their names until `setup()`."""
        if self.known_names is None:
            points = {} if self.shown is None else self.shown.points
            self.known_names = {point: name for name, point in points.items()}

    def _walk_again(self) -> None:
        self.__dict__.pop("shown", None)

    @property
    def lens_blocks(self) -> set[str]:
        """The paths of the layers."""
        stacks = self.lens.native.stacks
        return {f"{stack.prefix}.{i}" for stack in stacks for i in range(len(stack.blocks))}

    def native_at(self, path: str) -> nn.Module | None:
        """The native module of a part."""
        from lensbridge.compat.transformer_lens.places import place_at

        try:
            return place_at(self.lens.native, path).module
        except LensbridgeError:
            return None

    def call_part(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Run the native module of a part.

        Raises:
            InputError: it cannot be run alone.
        """
        found = self.replacements.call_native(path, *args, **kwargs)
        return self.run_native_part(path, *args, **kwargs) if found is None else found

    def run_native_part(self, path: str, *args: Any, **kwargs: Any) -> Tensor:
        """Run the native module of a part, outside a run of the model.

        Raises:
            InputError: it cannot be run alone.
        """
        if path == "pos_embed":
            return positions_of(self.lens.W_pos, *args, **kwargs)
        if path.startswith(_STACKS):
            return self._run_in_stack(path, *args, **kwargs)
        if path.endswith("attn"):
            return run_attention(self.lens, path, *args, **kwargs)
        parts: Any = self.lens
        for step in path.split("."):
            parts = parts[int(step)] if step.isdigit() else getattr(parts, step)
        return parts(*args, **kwargs)

    def _run_in_stack(self, path: str, *args: Any, **kwargs: Any) -> Tensor:
        native = None if path.endswith("attn") else self.native_at(path)
        if native is None or path in self.lens_blocks:
            raise InputError(
                f"{path} cannot be run alone: its masks and position biases come from the model. "
                f"Run the model and read what is there: model.run_with_cache(..., names_filter="
                f"lambda name: name.startswith({path!r}))."
            )
        return native(*args, **kwargs)
