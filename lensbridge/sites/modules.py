"""Points at the input and the output of a model's own modules, under their own paths.

A name is the module's path, `.hook_in` or `.hook_out`, and where more is meant than the first
tensor of every call, which call (`relu@1.hook_out`: the second) and which tensor
(`lstm.hook_out.1.0`).
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.backends.mha import get_fastpath_enabled, set_fastpath_enabled

from lensbridge.sites.call import Call, Chain, Phase, Stage
from lensbridge.sites.habits import Habits
from lensbridge.sites.leaves import Key, Keys, at, leaves, with_leaf
from lensbridge.sites.site import PointInfo, Site

_NAME = re.compile(
    r"(?:(?P<path>.+?)(?:@(?P<call>\d+))?\.)?hook_(?P<side>in|out)(?:\.(?P<keys>.+))?"
)
UNKNOWN = "?"
"""The axes of a point that no run has passed yet."""

_FAST = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


class Parts(NamedTuple):
    """The parts of a name.

    Args:
        path: of the module; "" is the whole model.
        call: which call of it; None: every call.
        side: "in" or "out".
        keys: which tensor; none: the first.
    """

    path: str
    call: int | None
    side: str
    keys: Keys

    @classmethod
    def of(cls, name: str) -> "Parts | None":
        """Read a name; None for what is none.

        Example:
            >>> Parts.of("lstm@1.hook_out.1.0")
            Parts(path='lstm', call=1, side='out', keys=(1, 0))
        """
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        keys = (found["keys"] or "").split(".") if found["keys"] else ()
        call = None if found["call"] is None else int(found["call"])
        return cls(found["path"] or "", call, found["side"], tuple(map(_key, keys)))

    @property
    def plain(self) -> str:
        """The name of the point without call and keys."""
        return f"{self.path}.hook_{self.side}" if self.path else f"hook_{self.side}"


def _key(text: str) -> Key:
    return int(text) if text.isdigit() else text


def of_call(name: str, nth: int) -> str:
    """The name of a point in one call of its module, for a cache: the first call has no number.

    Example:
        >>> of_call("relu.hook_out", 0), of_call("relu.hook_out", 2)
        ('relu.hook_out', 'relu@2.hook_out')
    """
    parts = Parts.of(name)
    if nth == 0 or parts is None or parts.call is not None or not parts.path:
        return name
    return f"{parts.path}@{nth}{name[len(parts.path) :]}"


@dataclass
class Seen:
    """What runs showed of the points.

    Args:
        ranks: how many axes the value of each point has.
        lacking: why a point had no tensor, where its module was called.
    """

    ranks: dict[str, int] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ModuleSite(Site):
    """The input or the output of a module.

    An edit of an input gives the module another one; an edit of an output is what everything reads
    that gets it from the module.
    """

    parts: Parts
    module: nn.Module
    habits: Habits
    seen: Seen = field(repr=False)
    is_inside_kernel: bool = False

    remembers: ClassVar[bool] = True

    @property
    def axes(self) -> str:
        """The axes of its values, once a run has shown how many there are."""
        rank = self.seen.ranks.get(self.name)
        return UNKNOWN if rank is None else " ".join(self.letters(rank))

    def letters(self, rank: int) -> tuple[str, ...]:
        """One letter for each axis of a value of so many axes."""
        return self.habits.letters(self.module, rank, not self.parts.keys)

    def _stages(self) -> list[Stage]:
        phase: Phase = "input" if self.parts.side == "in" else "output"
        return [Stage(self.module, phase, 0, self._act)]

    def _act(self, call: Call, chain: Chain) -> None:
        counted = call.memory.get(("calls", self.name), 0)
        call.memory["calls", self.name] = counted + 1
        if self.parts.call not in (None, counted):
            return
        whole = _given(call) if self.parts.side == "in" else call.output
        keys = self._keys(whole)
        value = None if keys is None else at(whole, keys)
        if keys is None or not isinstance(value, Tensor):
            self.seen.lacking[self.name] = self._lack(whole)
            return
        self.seen.ranks[self.name] = value.ndim
        new = chain.run(value)
        if new is not None:
            _put(call, self.parts.side, with_leaf(whole, keys, _laid_out_like(value, new)))

    def _keys(self, whole: Any) -> Keys | None:
        """The keys of the tensor; None if there is no tensor."""
        if not self.parts.keys:
            return next((keys for keys, _ in leaves(whole)), None)
        if self.parts.side == "out":
            return self.parts.keys
        first, *rest = self.parts.keys
        place = self._argument(first, whole)
        return None if place is None else (*place, *rest)

    def _argument(self, key: Key, whole: tuple[Any, Any]) -> Keys | None:
        """Where an argument is, by its number or its name."""
        args, kwargs = whole
        if isinstance(key, int):
            return (0, key) if key < len(args) else None
        if key in kwargs:
            return (1, key)
        names = list(inspect.signature(self.module.forward).parameters)
        passed = key in names and names.index(key) < len(args)
        return (0, names.index(key)) if passed else None

    def _lack(self, whole: Any) -> str:
        """Why there is no tensor."""
        kind, what = type(self.module).__name__, "was given" if self.parts.side == "in" else "gave"
        there = [".".join(map(str, keys)) for keys, _ in leaves(whole)]
        if there == [""]:
            return f"{kind} {what} one tensor, so there is no more than {self.parts.plain}"
        if self.parts.keys and there:
            many = f", ... ({len(there)})" if len(there) > 6 else ""
            return f"{kind} {what} no such tensor; there are {', '.join(there[:6])}{many}"
        return f"{kind} {what} no tensor"

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        """PyTorch's fused transformer layers call none of the modules inside them."""
        return _without_fast_path() if self.is_inside_kernel else None


def _laid_out_like(value: Tensor, new: Tensor) -> Tensor:
    """A copy of a new value, in the memory layout of the old one.

    It is a copy because a later module may write into it, and a hook may have returned a tensor
    that its user keeps. Kernels round differently in another layout.
    """
    return torch.empty_like(value).copy_(new)


def _given(call: Call) -> tuple[Any, Any]:
    return call.args, call.kwargs


def _put(call: Call, side: str, whole: Any) -> None:
    if side == "in":
        call.args, call.kwargs = whole
    else:
        call.output = whole
    call.replaced = True


@contextmanager
def _without_fast_path() -> Iterator[None]:
    before = get_fastpath_enabled()
    set_fastpath_enabled(False)
    try:
        yield
    finally:
        set_fastpath_enabled(before)


@dataclass
class ModuleSites(Mapping[str, Site]):
    """The sites of a model's own modules: two for each, and on request those of one call or tensor.

    Args:
        model: whose modules; they are looked at when the first name is asked for.
    """

    model: nn.Module
    seen: Seen = field(default_factory=Seen)
    made: dict[str, Site] = field(default_factory=dict)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Path -> module, for all that have a forward; a module may have several paths."""
        every = self.model.named_modules(remove_duplicate=False)
        return {path: one for path, one in every if has_forward(one)}

    @cached_property
    def habits(self) -> Habits:
        """What the modules have in common."""
        return Habits.of(self.model)

    @property
    def names(self) -> list[str]:
        """The names of the first tensor of every call, the whole model's first and last.

        A module that is at several paths is listed under the first.
        """
        first = {one: path for path, one in reversed(self.modules.items()) if path}
        paths = [path for path, one in self.modules.items() if path and first[one] == path]
        inside = [f"{path}.hook_{side}" for path in paths for side in ("in", "out")]
        return ["hook_in", *inside, "hook_out"]

    def __getitem__(self, name: str) -> Site:
        site = self.made.get(name) or self._make(name)
        if site is None:
            raise KeyError(name)
        return site

    def _make(self, name: str) -> Site | None:
        parts = Parts.of(name)
        if parts is None or parts.path not in self.modules:
            return None
        module, kind = self.modules[parts.path], type(self.modules[parts.path]).__name__
        side = "input" if parts.side == "in" else "output"
        where = f"{parts.path or 'the model'} ({kind}), {side}"
        formula = "as it is" if not parts.keys else f"the tensor at {list(parts.keys)}"
        formula += "" if parts.call is None else f", in call {parts.call}"
        info = PointInfo(name, UNKNOWN, where, formula, frozenset({name}))
        inside = any(isinstance(one, _FAST) for one in self._around(parts.path))
        self.made[name] = ModuleSite(info, parts, module, self.habits, self.seen, inside)
        return self.made[name]

    def _around(self, path: str) -> Iterator[nn.Module]:
        while path:
            path = path.rpartition(".")[0]
            if path in self.modules:
                yield self.modules[path]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.made or self._make(name) is not None)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def has_forward(module: nn.Module) -> bool:
    """Whether a module can be called: lists and dictionaries of modules cannot."""
    return getattr(module.forward, "__func__", module.forward) is not nn.Module.forward
