"""The names of one model: from what a user wrote to canonical names, and filters of names."""

import re
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TypeAlias

from lensbridge.errors import AbsentPointError, UnknownPointError, suggest
from lensbridge.points.names import (
    LAYER,
    Name,
    expand_short,
    is_short,
    layer_of,
    rows_of_short,
    short_names,
    stack_of,
    template,
)
from lensbridge.points.spellings import OTHER_SPELLINGS
from lensbridge.points.table import BY_TEMPLATE

NamesFilter: TypeAlias = (
    Name | Callable[[str], bool] | Sequence["Name | Callable[[str], bool]"] | None
)
"""A name, a short name, a glob, a function of canonical names, or a list of these; None is all."""


def nowhere(name: str) -> str | None:
    """Where a point is that this process does not have, in a model that is all in one process."""
    return None


@dataclass(frozen=True, repr=False)
class PointNames:
    """The names of the points of one model, and why it lacks others.

    Args:
        index: every canonical name, in data-flow order.
        absent: template -> reason, for rows of the table that this model lacks.
        depths: the prefix of each stack -> its number of layers; the main stack comes first.
        gated: whether `mlp.in` of other libraries is the linear branch here.
        main_names: other prefixes that mean the main stack.
        elsewhere: where a point of this model is, if not in this process.
        native: names of the model's own modules; they are accepted, but not listed.
    """

    index: Collection[str]
    absent: dict[str, str]
    depths: dict[str, int]
    gated: bool = False
    main_names: frozenset[str] = frozenset({"blocks"})
    elsewhere: Callable[[str], str | None] = nowhere  # caches are pickled with it
    native: Container[str] = ()

    def __repr__(self) -> str:
        stacks = ", ".join(f"{n} {prefix}" for prefix, n in self.depths.items())
        return f"PointNames({len(self.names)} names; {stacks})"

    def canonical(self, name: Name) -> str:
        """The canonical name for what the user wrote.

        Raises:
            UnknownPointError: there is no such name; the message has similar ones.
            AbsentPointError: this model has no such point; the message says why.
        """
        if name in self.index:
            return str(name)
        full = name if isinstance(name, str) else expand_short(*name)
        full = LAYER.sub(self._positive, full)
        full = self._alias(full)
        if full in self.index:
            return full
        if isinstance(name, str) and is_short(full):
            return self.canonical(expand_short(full))
        if name in self.native:
            return str(name)
        raise self._missing(full)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every canonical name, in data-flow order."""
        return tuple(self.index)

    @cached_property
    def _by_row(self) -> dict[str, list[str]]:
        rows: dict[str, list[str]] = {}
        for name in self.names:
            rows.setdefault(template(name), []).append(name)
        return rows

    @cached_property
    def _everything(self) -> list[str]:
        return [name for name in self.names if not _on_request(name)]

    @cached_property
    def _main(self) -> str:
        return next(iter(self.depths))

    def _positive(self, found: re.Match[str]) -> str:
        stack, layer = found[1], int(found[2])
        if stack not in self.depths:
            if stack not in self.main_names:
                return found[0]  # no such stack: an unknown name
            stack = self._main
        count = self.depths[stack]
        positive = layer + count if layer < 0 else layer
        if not 0 <= positive < count:
            raise UnknownPointError(
                f"There is no layer {layer}: {stack} has {count} layers, "
                f"0 to {count - 1} (or -{count} to -1)."
            )
        return f"{stack}.{positive}."

    def _alias(self, full: str) -> str:
        host, mark, last = full.partition(".hook_sae_")
        if mark:
            return f"{self.canonical(host)}{mark}{last}"
        if full == "ln_final.hook_in":
            return f"{self._main}.{self.depths[self._main] - 1}.hook_resid_post"
        full = full.removeprefix(f"{self._main}.") if layer_of(full) is None else full
        row = template(full)
        other = self._other_spellings.get(row)
        if other is None:
            return full
        return other.replace("blocks.{i}", f"{stack_of(full)}.{layer_of(full)}")

    @cached_property
    def _other_spellings(self) -> dict[str, str]:
        """The names of other libraries; two of them depend on the architecture."""
        linear = "pre_linear" if self.gated else "pre"
        mid = "mlp_in" if "blocks.{i}.hook_resid_mid" in self.absent else "resid_mid"
        return {
            **OTHER_SPELLINGS,
            "blocks.{i}.mlp.in.hook_out": f"blocks.{{i}}.mlp.hook_{linear}",
            "blocks.{i}.ln2.hook_in": f"blocks.{{i}}.hook_{mid}",
        }

    def _missing(self, full: str) -> UnknownPointError | AbsentPointError:
        where = self.elsewhere(full)
        if where:
            return AbsentPointError(f"{full} is not in this process: {where}.")
        reason = self.absent.get(template(full))
        if reason:
            return AbsentPointError(f"This model has no {full}: {reason}.")
        others = [layer_of(name) for name in self._by_row.get(template(full), [])]
        if template(full) in BY_TEMPLATE and others and layer_of(full) not in others:
            return AbsentPointError(
                f"This model has no {full}: that layer is of another kind. Layers {others} have it."
            )
        near = [name for name in self.names if layer_of(name) == layer_of(full)]
        if "." not in full:
            rows = self._by_row.keys()
            near += [one for one in short_names() if not rows.isdisjoint(rows_of_short(one))]
        return UnknownPointError(
            f"There is no point {full!r}.{suggest(full, near)} "
            "model.hook_names lists them all, model.explain(name) describes one."
        )

    def select(self, names_filter: NamesFilter) -> list[str]:
        """The canonical names that a filter selects, in data-flow order.

        Args:
            names_filter: None (all points except those that have to be named), a name, a short name
                (`("q", 3)`, or `"q"` for all layers), a glob, a function of canonical names, or a
                sequence of these. A glob or function selects a point that has to be named only if
                it depends on the last part of the name.

        Raises:
            UnknownPointError: a name, short name, glob or function that matches nothing.
            AbsentPointError: a point that this model lacks.
        """
        if names_filter is None:
            return self._everything
        wanted = self._wanted(names_filter)
        if not wanted and callable(names_filter):
            raise UnknownPointError(
                "The filter selects no point of this model. model.hook_names lists them all."
            )
        native = sorted(name for name in wanted if name not in self.index)
        return [*(name for name in self.names if name in wanted), *native]

    def _wanted(self, asked: NamesFilter) -> set[str]:
        if asked is None:
            return set(self._everything)
        if callable(asked):
            return {name for name in self.names if asked(name) and _asked_for(name, asked)}
        if isinstance(asked, str):
            return set(self._spelled(asked))
        if _is_short(asked):
            return {self.canonical(asked)}  # type: ignore[arg-type]
        return {name for item in asked for name in self._wanted(item)}  # type: ignore[arg-type]

    def _spelled(self, text: str) -> Iterable[str]:
        if text in self.index:
            return [text]
        if _is_glob(text):
            return self._globbed(text)
        rows = [] if "." in text else rows_of_short(text)
        found = [name for row in rows for name in self._by_row.get(row, [])]
        in_layers = [row for row in rows if row.startswith("blocks.")]
        if in_layers and not found:
            reasons = dict.fromkeys(self.absent[row] for row in in_layers if row in self.absent)
            why = f": {', '.join(reasons)}" if reasons else ""
            raise AbsentPointError(f"No layer of this model has {text!r}{why}.")
        return found or [self.canonical(text)]

    def _globbed(self, pattern: str) -> list[str]:
        found = [
            name
            for name in self.names
            if fnmatchcase(name, pattern)
            and _asked_for(name, lambda other: fnmatchcase(other, pattern))
        ]
        if not found:
            raise UnknownPointError(
                f"No point matches {pattern!r}. model.hook_names lists them all."
            )
        return found


def names_points(asked: NamesFilter) -> bool:
    """Whether a filter names its points one by one, so that each of them has to be passed.

    Example:
        >>> names_points("blocks.0.hook_resid_pre"), names_points("blocks.*.hook_resid_pre")
        (True, False)
    """
    if isinstance(asked, str):
        return not _is_glob(asked)
    if asked is None or callable(asked):
        return False
    return _is_short(asked) or all(names_points(one) for one in asked)  # type: ignore[arg-type]


def _is_glob(text: str) -> bool:
    return any(sign in text for sign in "*?[")


def _is_short(asked: object) -> bool:
    return isinstance(asked, tuple) and len(asked) in (2, 3) and isinstance(asked[1], int)


def _on_request(name: str) -> bool:
    return ".experts." in name or BY_TEMPLATE[template(name)].on_request


def _asked_for(name: str, accepts: Callable[[str], bool]) -> bool:
    path, _, _ = name.rpartition(".")
    return not _on_request(name) or not accepts(f"{path}.hook_")
