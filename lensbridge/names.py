"""The one table of points, and everything that turns what a user wrote into canonical names.

The names are TransformerLens's, because papers, notebooks and SAEs use them. Axes: `b` batch,
`p` position, `h` query head, `g` key/value head, `d` d_head, `m` d_model, `f` d_mlp, `v` d_vocab,
`q` query position, `k` key position, `1` a kept axis of size one.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import TypeAlias

from lensbridge.errors import AbsentPointError, UnknownPointError, suggest

ShortName: TypeAlias = tuple[str, int] | tuple[str, int, str]
Name: TypeAlias = str | ShortName
NamesFilter: TypeAlias = (
    Name | Callable[[str], bool] | Sequence["Name | Callable[[str], bool]"] | None
)


@dataclass(frozen=True)
class Point:
    """One kind of point: a row of the table.

    Args:
        name: canonical name, `{i}` for the layer.
        axes: one letter an axis.
        meaning: what the value is.
        found_in: which architectures have it.
        on_request: large or a mere copy, so never part of "cache everything", only when named.
        derived: computed from native tensors; an edit recomputes what depends on it.
    """

    name: str
    axes: str
    meaning: str
    found_in: str = "every"
    on_request: bool = False
    derived: bool = False


def _norm_points(prefix: str, what: str, found_in: str = "every") -> tuple[Point, ...]:
    return (
        Point(
            f"{prefix}.hook_scale",
            "b p 1",
            f"divisor of the {what}: sqrt(variance + eps), or sqrt(mean square + eps) for RMSNorm",
            found_in,
            derived=True,
        ),
        Point(
            f"{prefix}.hook_normalized",
            "b p m",
            f"the {what}'s output before its gain and bias",
            found_in,
            derived=True,
        ),
        Point(f"{prefix}.hook_out", "b p m", f"the {what}'s output", found_in),
    )


def _input_point(letter: str, axes: str, what: str) -> Point:
    return Point(
        f"blocks.{{i}}.hook_{letter}_input",
        axes,
        f"residual stream as read by the {what}s, before the norm, one copy per head",
        "pre-norm attention",
        on_request=True,
        derived=True,
    )


SEQUENTIAL = "blocks whose MLP reads the stream after attention"
ROTARY = "rotary models"
POST_NORM = "blocks with a norm behind the branch (Gemma 2, OLMo 2)"

POINTS: tuple[Point, ...] = (
    Point("hook_embed", "b p m", "token embedding"),
    Point("hook_pos_embed", "b p m", "learned position embedding", "learned absolute positions"),
    Point("blocks.{i}.hook_resid_pre", "b p m", "residual stream at the start of the block"),
    Point(
        "blocks.{i}.hook_attn_in",
        "b p m",
        "residual stream as read by attention, before its norm; an edit leaves the skip alone",
        "pre-norm attention",
        on_request=True,
    ),
    _input_point("q", "b p h m", "query head"),
    _input_point("k", "b p g m", "key head"),
    _input_point("v", "b p g m", "value head"),
    *_norm_points("blocks.{i}.ln1", "attention's input norm"),
    Point("blocks.{i}.attn.hook_q", "b p h d", "queries, after any q norm and before rotary"),
    Point("blocks.{i}.attn.hook_k", "b p g d", "keys, after any k norm and before rotary"),
    Point("blocks.{i}.attn.hook_v", "b p g d", "values"),
    Point("blocks.{i}.attn.hook_rot_q", "b p h d", "queries after rotary", ROTARY),
    Point(
        "blocks.{i}.attn.hook_rot_k",
        "b p g d",
        "keys after rotary; with a key/value cache, those of every position so far",
        ROTARY,
    ),
    Point(
        "blocks.{i}.attn.hook_attn_scores",
        "b h q k",
        "scaled, masked scores before softmax; -inf where masked",
    ),
    Point("blocks.{i}.attn.hook_pattern", "b h q k", "attention probabilities, after softmax"),
    Point("blocks.{i}.attn.hook_z", "b p h d", "pattern-weighted values, per head"),
    Point(
        "blocks.{i}.attn.hook_result",
        "b p h m",
        "per-head write to the residual stream, before b_O",
        on_request=True,
        derived=True,
    ),
    *_norm_points("blocks.{i}.ln1_post", "norm behind attention", POST_NORM),
    Point("blocks.{i}.hook_attn_out", "b p m", "exactly what attention adds to the stream"),
    Point(
        "blocks.{i}.hook_resid_mid",
        "b p m",
        "residual stream between attention and MLP; an edit reaches the skip too",
        SEQUENTIAL,
    ),
    Point(
        "blocks.{i}.hook_mlp_in",
        "b p m",
        "residual stream as read by the MLP, before its norm; an edit leaves the skip alone",
        "pre-norm MLP",
        on_request=True,
    ),
    *_norm_points("blocks.{i}.ln2", "MLP's input norm"),
    Point("blocks.{i}.mlp.hook_pre", "b p f", "before the activation: up, or gate of a gated MLP"),
    Point("blocks.{i}.mlp.hook_pre_linear", "b p f", "linear branch of a gated MLP", "gated MLPs"),
    Point("blocks.{i}.mlp.hook_post", "b p f", "input of the down projection: the neurons"),
    *_norm_points("blocks.{i}.ln2_post", "norm behind the MLP", POST_NORM),
    Point("blocks.{i}.hook_mlp_out", "b p m", "exactly what the MLP adds to the stream"),
    Point("blocks.{i}.hook_resid_post", "b p m", "residual stream at the end of the block"),
    *_norm_points("ln_final", "final norm"),
    Point("hook_logits", "b p v", "logits", "models with a language-model head"),
)

BY_TEMPLATE = {point.name: point for point in POINTS}

_OTHER_LIBRARIES = {
    # TransformerLens's bridge
    "blocks.{i}.hook_in": "blocks.{i}.hook_resid_pre",
    "blocks.{i}.hook_out": "blocks.{i}.hook_resid_post",
    "blocks.{i}.ln1.hook_in": "blocks.{i}.hook_attn_in",
    "blocks.{i}.ln2.hook_in": "blocks.{i}.hook_resid_mid",
    "blocks.{i}.attn.hook_in": "blocks.{i}.ln1.hook_out",
    "blocks.{i}.attn.q.hook_out": "blocks.{i}.attn.hook_q",
    "blocks.{i}.attn.k.hook_out": "blocks.{i}.attn.hook_k",
    "blocks.{i}.attn.v.hook_out": "blocks.{i}.attn.hook_v",
    "blocks.{i}.attn.o.hook_in": "blocks.{i}.attn.hook_z",
    "blocks.{i}.attn.o.hook_out": "blocks.{i}.hook_attn_out",
    "blocks.{i}.mlp.gate.hook_out": "blocks.{i}.mlp.hook_pre",
    "blocks.{i}.mlp.out.hook_in": "blocks.{i}.mlp.hook_post",
    "blocks.{i}.mlp.out.hook_out": "blocks.{i}.hook_mlp_out",
    "embed.hook_out": "hook_embed",
    "pos_embed.hook_out": "hook_pos_embed",
    "unembed.hook_in": "ln_final.hook_out",
    "unembed.hook_out": "hook_logits",
    "hook_unembed": "hook_logits",
    # spellings of older notes
    "blocks.{i}.attn.hook_attn": "blocks.{i}.attn.hook_pattern",
    "blocks.{i}.attn.hook_out": "blocks.{i}.hook_attn_out",
    "blocks.{i}.mlp.hook_in": "blocks.{i}.ln2.hook_out",
    "blocks.{i}.mlp.hook_out": "blocks.{i}.hook_mlp_out",
}

_SHORT = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
    "unembed": "logits",
}

_LAYER_TYPES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}

_LAYER = re.compile(r"\bblocks\.(-?\d+)\.")
_COMPACT = re.compile(r"([a-z_]+?)(\d+)([a-z]+\w*)?")


def template(name: str) -> str:
    """The row of the table that a full name belongs to.

    Example:
        >>> template("blocks.11.attn.hook_q")
        'blocks.{i}.attn.hook_q'
    """
    return _LAYER.sub("blocks.{i}.", name)


def layer_of(name: str) -> int | None:
    """The layer in a full name, or None for a point outside the blocks."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


@cache
def _short_templates() -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for point in POINTS:
        *_, last = point.name.split(".")
        rows.setdefault(last.removeprefix("hook_"), []).append(point.name)
        rows.setdefault(last, []).append(point.name)
    return rows


def expand_short(name: str, layer: int | None = None, kind: str | None = None) -> str:
    """The full name for a short one.

    Args:
        name: `resid_post`, `q`, `pattern`, `scale`, or a compact `k6`, `scale4ln1`.
        layer: the layer; None for a point outside the blocks.
        kind: what the point sits in where the name alone does not tell: `ln1`, `attn`, `mlp`.

    Raises:
        UnknownPointError: no point has this short name.

    Source: the short names of TransformerLens's `get_act_name`.

    Example:
        >>> expand_short("q", 3), expand_short("scale", 4, "ln1"), expand_short("embed")
        ('blocks.3.attn.hook_q', 'blocks.4.ln1.hook_scale', 'hook_embed')
    """
    if layer is None and (compact := _COMPACT.fullmatch(name)) and name not in _short_templates():
        return expand_short(compact[1], int(compact[2]), compact[3])
    rows = _short_templates().get(_SHORT.get(name, name), [])
    rows = [row for row in rows if row.startswith("blocks.") == (layer is not None)]
    if part := _LAYER_TYPES.get(kind or "", kind):
        rows = [row for row in rows if f".{part}." in row]
    if len(rows) == 1:
        return rows[0].replace("{i}", str(layer))
    asked = ", ".join(repr(part) for part in (name, layer, kind) if part is not None)
    if rows:
        raise UnknownPointError(
            f"({asked}) could be {' or '.join(rows)}; say which as the third part."
        )
    raise UnknownPointError(
        f"There is no point ({asked}).{suggest(name, _short_templates())}"
        f"{'' if layer is not None else ' Points inside blocks need a layer: (name, layer).'}"
    )


@dataclass(frozen=True)
class Vocabulary:
    """The names of one model: what it has, and why it lacks what it lacks.

    Args:
        names: every canonical name, in data-flow order.
        absent: template -> reason, for rows of the table that this architecture lacks.
        n_layers: for negative layers and messages.
        gated: whether `mlp.in` of other libraries is the linear branch here.
    """

    names: tuple[str, ...]
    absent: dict[str, str]
    n_layers: int
    gated: bool = False

    def canonical(self, name: Name) -> str:
        """The canonical name of what the user wrote.

        Raises:
            UnknownPointError: no such name, with the nearest ones.
            AbsentPointError: this model has no such point, with the reason.
        """
        return self._canonical(name)

    def _canonical(self, name: Name) -> str:
        if name in self._name_set:
            return str(name)
        full = name if isinstance(name, str) else expand_short(*name)
        full = _LAYER.sub(self._positive, full)
        full = self._alias(full)
        if full in self._name_set:
            return full
        if isinstance(name, str) and _looks_short(full):
            return self._canonical(expand_short(full))
        raise self._missing(full)

    @cached_property
    def _name_set(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _by_row(self) -> dict[str, list[str]]:
        rows: dict[str, list[str]] = {}
        for name in self.names:
            rows.setdefault(template(name), []).append(name)
        return rows

    @cached_property
    def _everything(self) -> list[str]:
        return [name for name in self.names if not _on_request(name)]

    def _positive(self, found: re.Match[str]) -> str:
        layer = int(found[1])
        positive = layer + self.n_layers if layer < 0 else layer
        if not 0 <= positive < self.n_layers:
            raise UnknownPointError(
                f"There is no layer {layer}: this model has {self.n_layers} layers, "
                f"0 to {self.n_layers - 1} (or -{self.n_layers} to -1)."
            )
        return f"blocks.{positive}."

    def _alias(self, full: str) -> str:
        row = template(full)
        if row == "blocks.{i}.mlp.in.hook_out":
            row_canonical = f"blocks.{{i}}.mlp.hook_{'pre_linear' if self.gated else 'pre'}"
        elif row == "blocks.{i}.ln2.hook_in" and row not in self.absent:
            row_canonical = (
                "blocks.{i}.hook_mlp_in"
                if "blocks.{i}.hook_resid_mid" in self.absent
                else "blocks.{i}.hook_resid_mid"
            )
        elif row == "ln_final.hook_in":
            return f"blocks.{self.n_layers - 1}.hook_resid_post"
        else:
            row_canonical = _OTHER_LIBRARIES.get(row, row)
        return row_canonical.replace("{i}", str(layer_of(full)))

    def _missing(self, full: str) -> UnknownPointError | AbsentPointError:
        reason = self.absent.get(template(full))
        if reason:
            return AbsentPointError(f"This model has no {full}: {reason}.")
        near = [name for name in self.names if layer_of(name) == layer_of(full)]
        return UnknownPointError(
            f"There is no point {full!r}.{suggest(full, near)} "
            "model.hook_names lists them all, model.explain(name) describes one."
        )

    def select(self, names_filter: NamesFilter) -> list[str]:
        """The canonical names that a filter asks for, in data-flow order.

        Args:
            names_filter: None (all but the points that come only when named), a name, a short name
                (`("q", 3)`, or `"q"` for all layers), a glob, a callable on canonical names, or a
                sequence of these. A callable that would take any last word on the same path
                did not ask for a point that comes only when named.

        Raises:
            UnknownPointError: a name, short name or glob that matches nothing.
            AbsentPointError: a point that this architecture lacks.
        """
        if names_filter is None:
            return self._everything
        wanted = self._wanted(names_filter)
        if not wanted and callable(names_filter):
            raise UnknownPointError(
                "The filter takes no point of this model. model.hook_names lists them all."
            )
        return [name for name in self.names if name in wanted]

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
        if text in self._name_set:
            return [text]
        if _is_glob(text):
            return self._globbed(text)
        rows = [] if "." in text else _short_templates().get(_SHORT.get(text, text), [])
        return [name for row in rows for name in self._by_row.get(row, [])] or [
            self.canonical(text)
        ]

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


def _looks_short(text: str) -> bool:
    if "." in text or text in BY_TEMPLATE:
        return False
    return text in _short_templates() or text in _SHORT or _COMPACT.fullmatch(text) is not None


def names_points(asked: NamesFilter) -> bool:
    """Whether a filter names its points one by one, so that each of them must be there.

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
    return BY_TEMPLATE[template(name)].on_request


def _asked_for(name: str, accepts: Callable[[str], bool]) -> bool:
    path, _, _ = name.rpartition(".")
    return not _on_request(name) or not accepts(f"{path}.hook_")
