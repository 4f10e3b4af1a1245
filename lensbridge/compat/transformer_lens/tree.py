"""A model's parts as modules: `model.blocks[0].attn.W_Q`, `model.ln_final.hook_scale`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, overload

from torch import nn

from lensbridge.errors import WeightError, suggest

Branches: TypeAlias = dict[str, list[str]]
"""Path -> the names one step below it."""

_OF_THE_MODULE = ("training", "forward")
"""Attributes of a part that are its own as a torch module."""


class Rooted(Protocol):
    """The model that parts belong to."""

    @property
    def branches(self) -> Branches:
        """The names below each path."""

    def lookup(self, full: str) -> Any:
        """The weight, point, part or replacement at a path, or None."""

    def part(self, path: str) -> "Part":
        """The model's own part at a path."""

    def put(self, full: str, value: Any) -> None:
        """Write a weight, or let a module stand at a path."""

    def take_off(self, full: str) -> None:
        """Let the model's own part or point stand at a path again."""

    def native_at(self, path: str) -> nn.Module | None:
        """The native module of a part."""

    def call_part(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """Run the native module at a path."""

    def state_of(self, path: str) -> dict[str, Any]:
        """The weights of a part, by their names in it."""

    def load_state_of(self, path: str, state: Mapping[str, Any], strict: bool) -> None:
        """Write the weights of a part."""

    def modules_at(self, path: str, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        """The points of a part and the modules that were added to it, by name."""


class Part(nn.Module):
    """One part of a model: its points, its weights and the parts inside it.

    Setting a weight (`part.W_Q = value`) writes into the model. Setting a part or a point
    (`block.mlp = wrapper`) lets that stand there in the runs of this model; `del block.mlp` or
    setting the old one takes it off again. Calling a part runs its native module.
    """

    def __init__(self, model: Rooted, path: str) -> None:
        self.__dict__.update(_model=model, _path=path)
        super().__init__()

    @property
    def path(self) -> str:
        """Where it is in its model: `blocks.0.mlp`."""
        return str(self.__dict__["_path"])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self._path}.{name}"
        found = self._model.lookup(full)
        if found is None:
            raise WeightError(f"There is no {full}.{suggest(name, dir(self))}")
        return found

    def __getitem__(self, index: int | slice) -> Any:
        """A layer by its number, where other parts stand beside the layers: `model.encoder[0]`."""
        steps = [name for name in self._model.branches[self._path] if name.isdigit()]
        if not steps:
            raise TypeError(f"{self._path} is one part, without numbers.")
        layers = [self._model.lookup(f"{self._path}.{i}") for i in sorted(map(int, steps))]
        return Parts(self._model, self._path, layers)[index]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            self._shadow_forward(value)
        elif name in _OF_THE_MODULE or name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self._model.put(f"{self._path}.{name}", value)

    def __delattr__(self, name: str) -> None:
        if name == "forward":
            self._shadow_forward(None)
        else:
            self._model.take_off(f"{self._path}.{name}")

    def _shadow_forward(self, function: Callable[..., Any] | None) -> None:
        """Let a function be what this part computes, as `part.forward = function` asks."""
        own = function is None or getattr(function, "__self__", None) is self
        if own:
            self.__dict__.pop("forward", None)
            self._model.take_off(self._path)
        else:
            self.__dict__["forward"] = function
            self._model.put(self._path, self)

    @property
    def has_own_call(self) -> bool:
        """Whether calling it does more than running the native module."""
        hooks = (self._forward_hooks, self._forward_pre_hooks)
        back = (self._backward_hooks, self._backward_pre_hooks)
        return "forward" in self.__dict__ or any((*hooks, *back))

    def __dir__(self) -> list[str]:
        return sorted(self._model.branches[self._path])

    def __repr__(self) -> str:
        return f"{self._path}: {', '.join(dir(self))}"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the native module."""
        return self._model.call_part(self._path, *args, **kwargs)

    # --- as a torch module --------------------------------------------------------------------

    @property
    def _parameters(self) -> dict[str, nn.Parameter | None]:
        """The native module's own, so that what holds a part has them."""
        native = self._model.native_at(self._path)
        return {} if native is None else dict(native.named_parameters())

    @_parameters.setter
    def _parameters(self, value: Any) -> None:
        """Set by torch, to nothing."""

    def named_modules(
        self, memo: set[Any] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """This part, its points, and the modules that were added to it."""
        seen = set() if memo is None else memo
        for name, module in [(prefix, self), *self._model.modules_at(self._path, prefix)]:
            if module not in seen or not remove_duplicate:
                seen.add(module)
                yield name, module

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Part":
        native = self._model.native_at(self._path)
        if native is not None:
            native._apply(fn, recurse)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Its weights under TransformerLens's names: `W_Q`, `ln1.w`.

        Inside the state of another module they are left out: they are in the model's own.
        """
        destination = kwargs.get("destination", args[0] if args else None)
        return self._model.state_of(self._path) if destination is None else destination

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> None:
        """Write weights into the model, under the names that `state_dict` gives.

        Raises:
            WeightError: with `strict`, weights that are missing or that the part does not have.
        """
        self._model.load_state_of(self._path, state_dict, strict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Part":
        model: Rooted = memo.get(id(self._model), self._model)
        return model.part(self._path)

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        """PyTorch's: the hook acts in the runs of this model."""
        return self._with_hook(super().register_forward_hook, *args, **kwargs)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        """PyTorch's: the hook acts in the runs of this model."""
        return self._with_hook(super().register_forward_pre_hook, *args, **kwargs)

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> Any:
        """PyTorch's: the hook acts in the runs of this model."""
        return self._with_hook(super().register_full_backward_hook, *args, **kwargs)

    def register_full_backward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        """PyTorch's: the hook acts in the runs of this model."""
        return self._with_hook(super().register_full_backward_pre_hook, *args, **kwargs)

    def _with_hook(self, register: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        handle = register(*args, **kwargs)
        try:
            self._model.put(self._path, self)
        except Exception:
            handle.remove()
            raise
        return handle


class Parts:
    """Layers by number: `model.blocks[-1]`, `len(model.blocks)`."""

    def __init__(self, model: Rooted, path: str, parts: list[nn.Module]) -> None:
        self._model, self._path, self._parts = model, path, parts

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> "Parts": ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Parts(self._model, self._path, self._parts[index])
        return self._parts[index]

    def __getattr__(self, name: str) -> Any:
        """A layer by its name in a path, as PyTorch's `ModuleList` has it."""
        if name.isdigit() and int(name) < len(self._parts):
            return self._parts[int(name)]
        raise AttributeError(name)

    def __setitem__(self, index: int, value: Any) -> None:
        self._model.put(self._name(index), value)

    def __delitem__(self, index: int) -> None:
        self._model.take_off(self._name(index))

    def _name(self, index: int) -> str:
        """The path of the layer in the model, also of a slice's."""
        return f"{self._path}.{range(len(self._parts))[index]}"

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parts)

    def __repr__(self) -> str:
        return f"{len(self)} layers"


def branches_of(names: Iterable[str]) -> Branches:
    """The names below each path of some names.

    Example:
        >>> branches_of(["blocks.0.attn.W_Q", "hook_embed"])
        {'blocks': ['0'], 'blocks.0': ['attn'], 'blocks.0.attn': ['W_Q'], '': ['hook_embed']}
    """
    found: dict[str, dict[str, None]] = {}
    for name in names:
        path = ""
        for step in name.split("."):
            if path or "." not in name:
                found.setdefault(path, {})[step] = None
            path = f"{path}.{step}".lstrip(".")
    return {path: list(below) for path, below in found.items()}


def part_at(model: Rooted, full: str) -> "Part | Parts | None":
    """The model's own part at a path, or the list of layers there."""
    below = model.branches.get(full)
    if below is None:
        return None
    if all(step.isdigit() for step in below):
        layers = [model.lookup(f"{full}.{i}") for i in sorted(map(int, below))]
        return Parts(model, full, layers)
    return model.part(full)
