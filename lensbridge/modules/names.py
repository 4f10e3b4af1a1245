"""The names of the points of a plain module: paths of modules, not the field's vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lensbridge.errors import AbsentPointError, UnknownPointError, suggest
from lensbridge.points.names import Name, is_short, template
from lensbridge.points.point_names import NamesFilter, PointNames
from lensbridge.points.table import BY_TEMPLATE
from lensbridge.sites.modules import Parts

_MARKS = "*?["
_OTHER = {"input": "hook_in", "output": "hook_out"}


@dataclass(frozen=True, repr=False)
class ModuleNames(PointNames):
    """The names of the points of a plain module.

    Args:
        kind: the class of the module.
    """

    kind: str = "The module"

    def __repr__(self) -> str:
        return f"ModuleNames({len(self.names)} names)"

    def canonical(self, name: Name) -> str:
        """The name of a point; the path of a module alone means its output. nnsight's spellings,
        `conv1.input` and `conv1.output`, are accepted.

        Raises:
            UnknownPointError: there is no such name; the message has similar ones.
            AbsentPointError: the name is one of a transformer's points.
        """
        if isinstance(name, str):
            path, _, last = name.rpartition(".")
            other = f"{path}.{_OTHER[last]}" if last in _OTHER else name
            for full in (name, f"{name}.hook_out", other.removeprefix(".")):
                if self._has(full):
                    return full
        raise self._missing(name if isinstance(name, str) else f"{tuple(name)!r}")

    def _has(self, name: str) -> bool:
        if name in self.index:
            return True
        parts = Parts.of(name)  # a cache that was unpickled knows the plain names only
        return isinstance(self.index, tuple) and parts is not None and parts.plain in self.index

    def _missing(self, full: str) -> UnknownPointError | AbsentPointError:
        if template(full) in BY_TEMPLATE or is_short(full) or full.startswith("("):
            return AbsentPointError(
                f"There is no {full}: {self.kind} is opened as a plain module, so its points are "
                f"the inputs and outputs of its modules, such as {self._example!r}. "
                "model.hook_names lists them."
            )
        return UnknownPointError(
            f"There is no point {full!r}.{suggest(full, self.names)} The points of {self.kind} are "
            f"the inputs and outputs of its modules, such as {self._example!r}; what a forward "
            "computes between them has no name. model.hook_names lists them all."
        )

    @property
    def _example(self) -> str:
        inside = [name for name in self.names if name.endswith(".hook_out")]
        return inside[0] if inside else "hook_out"

    def select(self, names_filter: NamesFilter) -> list[str]:
        """The names that a filter selects, in the order in which the modules are registered.

        Args:
            names_filter: None (the first tensor at the input and output of every module), a name,
                the path of a module, a glob, a function of names, or a sequence of these. Points
                of one call or of a further tensor have to be named.

        Raises:
            UnknownPointError: a name, glob or function that matches nothing.
            AbsentPointError: the name is one of a transformer's points.
        """
        if names_filter is None:
            return list(self.names)
        found = list(dict.fromkeys(self._chosen(names_filter)))
        if not found:
            raise UnknownPointError(
                "The filter selects no point of this model. model.hook_names lists them all."
            )
        order = {name: i for i, name in enumerate(self.names)}
        last = len(order)
        return sorted(found, key=lambda name: order.get(_plain(name), last))

    def _chosen(self, asked: NamesFilter) -> Sequence[str]:
        if asked is None:
            return self.names
        if callable(asked):
            return [name for name in self.names if asked(name)]
        if isinstance(asked, str):
            return self._globbed(asked) if self._is_glob(asked) else [self.canonical(asked)]
        if len(asked) > 1 and isinstance(asked[1], int):
            raise self._missing(f"{tuple(asked)!r}")
        return [name for one in asked for name in self._chosen(one)]  # type: ignore[arg-type]

    def _is_glob(self, asked: str) -> bool:
        return asked not in self.index and any(mark in asked for mark in _MARKS)

    def _globbed(self, pattern: str) -> list[str]:
        found = [name for name in self.names if fnmatchcase(name, pattern)]
        if not found:
            raise UnknownPointError(
                f"No point matches {pattern!r}. Names end with .hook_in or .hook_out; "
                "model.hook_names lists them all."
            )
        return found


def _plain(name: str) -> str:
    parts = Parts.of(name)
    return name if parts is None else parts.plain
