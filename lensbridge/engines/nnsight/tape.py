"""Tape: the calls of modules in one pass on tensors without values, to be played again.

What an edit changes has no influence on shapes, so the passes of a sweep differ only in what hooks
do. The model runs once for each input, and then its calls are played: only hooks run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map


@dataclass(eq=False)
class Call:
    """One call of a module: what it was given, and what it gave once it is over."""

    module: nn.Module
    args: Any
    kwargs: Any
    output: Any = None


@dataclass(eq=False)
class Tape:
    """The calls inside one pass, in order.

    Args:
        events: each call at its beginning, and again at its end.
        output: what the model returned.
    """

    events: list[tuple[Call, bool]] = field(default_factory=list)
    output: Any = None

    @classmethod
    def of(cls, model: nn.Module, inputs: Mapping[str, Any]) -> Tape:
        """The tape of a pass.

        Args:
            model: on tensors without values.
            inputs: keywords of its forward.
        """
        tape = cls()
        with tape._listening(model):
            tape.output = type(model).forward(model, **inputs)
        return tape

    @contextmanager
    def _listening(self, model: nn.Module) -> Iterator[None]:
        open_calls: list[Call] = []

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            open_calls.append(Call(module, args, kwargs))
            self.events.append((open_calls[-1], True))

        def end(module: nn.Module, args: Any, output: Any) -> None:
            call = open_calls.pop()
            call.output = output
            self.events.append((call, False))

        inside = [module for module in model.modules() if module is not model]
        handles = [one.register_forward_pre_hook(begin, with_kwargs=True) for one in inside]
        handles += [one.register_forward_hook(end) for one in inside]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def play(self) -> Any:
        """Call the hooks that are on the modules now; gives what the model returns."""
        given: dict[int, tuple[Any, Any]] = {}
        for call, begins in self.events:
            if not (call.module._forward_pre_hooks or call.module._forward_hooks):
                continue
            if begins:
                given[id(call)] = _before(call)
            else:
                _after(call, *given.pop(id(call)))
        return _fresh(copy(self.output))


def _before(call: Call) -> tuple[Any, Any]:
    module, args, kwargs = call.module, _fresh(call.args), _fresh(call.kwargs)
    for key, hook in list(module._forward_pre_hooks.items()):
        with_kwargs = key in module._forward_pre_hooks_with_kwargs
        changed: Any = hook(module, args, kwargs) if with_kwargs else hook(module, args)
        if changed is not None and with_kwargs:
            args, kwargs = changed
        elif changed is not None:
            args = changed if isinstance(changed, tuple) else (changed,)
    return args, kwargs


def _after(call: Call, args: Any, kwargs: Any) -> None:
    module, output = call.module, _fresh(call.output)
    for key, hook in list(module._forward_hooks.items()):
        more = (kwargs,) if key in module._forward_hooks_with_kwargs else ()
        changed = hook(module, args, *more, output)
        output = output if changed is None else changed


def _fresh(tree: Any) -> Any:
    """Values with objects of their own, because a recorder knows values by the object."""
    return tree_map(_alias, tree)


def _alias(value: Any) -> Any:
    return value.detach() if isinstance(value, FakeTensor) else value


def is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two inputs are the same."""
    return one.keys() == other.keys() and all(
        _equal(value, other[key]) for key, value in one.items()
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.shape == other.shape and bool((one == other).all())
    return type(one) is type(other) and bool(one == other)
