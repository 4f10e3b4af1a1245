"""Names of points: full, short and compact ones, and what a full name contains.

The rows of the table are in `table.py`.
"""

import re
from functools import cache
from typing import TypeAlias

from lensbridge.errors import UnknownPointError, suggest
from lensbridge.points.spellings import SHORT_ALIASES
from lensbridge.points.table import BY_TEMPLATE, POINTS

ShortName: TypeAlias = tuple[str, int] | tuple[str, int, str]
"""`("q", 5)` or, where the short name is not enough, `("scale", 1, "ln1")`."""

Name: TypeAlias = str | ShortName
"""A point in any accepted spelling."""

_LAYER_TYPES = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}

LAYER = re.compile(r"^((?:[a-z]+\.)?blocks|encoder|decoder)\.(-?\d+)\.")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_STEP = re.compile(r"\.mixer\.hook_(?!in$|out$)\w+$")
_SPLICED = re.compile(r"^.+\.(?=hook_sae_)")
_TOWER = re.compile(r"^[a-z]+\.(?=hook_|ln_)")
_COMPACT = re.compile(r"([a-z_]+?)(\d+)([a-z]+\w*)?")


def template(name: str) -> str:
    """The row of the table to which a full name belongs.

    Example:
        >>> template("blocks.11.attn.hook_q"), template("encoder.ln_final.hook_out")
        ('blocks.{i}.attn.hook_q', 'ln_final.hook_out')
    """
    if ".hook_sae_" in name:
        return _SPLICED.sub("{point}.", name)
    row, layers = LAYER.subn("blocks.{i}.", name)
    if not layers:
        rest = _TOWER.sub("", name)
        return rest if rest in BY_TEMPLATE and name not in BY_TEMPLATE else name
    return _STEP.sub(".mixer.hook_{step}", _EXPERT.sub(".experts.{e}.", row))


def stack_of(name: str) -> str:
    """The stack in the full name of a layer's point, or "" for a point outside the layers.

    Example:
        >>> stack_of("vision.blocks.0.hook_resid_pre"), stack_of("ln_final.hook_out")
        ('vision.blocks', '')
    """
    found = LAYER.match(name)
    return found[1] if found else ""


def layer_of(name: str) -> int | None:
    """The layer in a full name, or None for a point outside the layers."""
    found = LAYER.match(name)
    return int(found[2]) if found else None


def is_before_layers(name: str) -> bool:
    """Whether a full name is of a point of the embedding, which runs before all layers.

    Example:
        >>> is_before_layers("hook_pos_embed"), is_before_layers("ln_final.hook_out")
        (True, False)
    """
    return name.startswith(("hook_embed", "hook_pos_embed", "ln_embed."))


@cache
def _short_templates(by_full_name: bool = False) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for point in POINTS:
        if point.by_full_name and not by_full_name:
            continue
        *_, last = point.name.split(".")
        rows.setdefault(last.removeprefix("hook_"), []).append(point.name)
        rows.setdefault(last, []).append(point.name)
    return rows


def rows_of_short(name: str) -> list[str]:
    """The rows of the table that a short name can mean.

    Example:
        >>> rows_of_short("q"), rows_of_short("no such thing")
        (['blocks.{i}.attn.hook_q'], [])
    """
    return _short_templates().get(SHORT_ALIASES.get(name, name), [])


def short_of(name: str) -> ShortName | None:
    """The short name of a point in a layer, from its full name; None where there is none.

    Example:
        >>> short_of("blocks.5.attn.hook_q"), short_of("blocks.1.ln2.hook_scale")
        (('q', 5), ('scale', 1, 'ln2'))
        >>> short_of("hook_embed"), short_of("encoder.0.attn.hook_q")
        (None, None)
    """
    layer = layer_of(name)
    if layer is None:
        return None
    path, _, last = name.rpartition(".hook_")
    shorts: tuple[ShortName, ...] = ((last, layer), (last, layer, path.rpartition(".")[2]))
    return next((short for short in shorts if _means(short, name)), None)


def _means(short: ShortName, name: str) -> bool:
    try:
        return expand_short(*short) == name
    except UnknownPointError:
        return False


def short_names() -> list[str]:
    """Every short name: `q`, `resid_post`, `hook_resid_post`, ..."""
    return [*_short_templates(), *SHORT_ALIASES]


def is_short(text: str) -> bool:
    """Whether a text is a short name (`q`) or a compact one (`q5`) rather than a full name."""
    if "." in text or text in BY_TEMPLATE:
        return False
    return bool(rows_of_short(text)) or _COMPACT.fullmatch(text) is not None


def expand_short(name: str, layer: int | None = None, kind: str | None = None) -> str:
    """The full name for a short one.

    Args:
        name: `resid_post`, `q`, `pattern`, `scale`, or a compact `k6`, `scale4ln1`.
        layer: the layer; None for a point outside the blocks.
        kind: the part that has the point, where the name is not enough: `ln1`, `attn`, `mlp`.

    Raises:
        UnknownPointError: no point has this short name.

    Source: the short names of TransformerLens's `get_act_name`.

    Example:
        >>> expand_short("q", 3), expand_short("scale", 4, "ln1"), expand_short("embed")
        ('blocks.3.attn.hook_q', 'blocks.4.ln1.hook_scale', 'hook_embed')
    """
    if layer is None and (compact := _COMPACT.fullmatch(name)) and not rows_of_short(name):
        return expand_short(compact[1], int(compact[2]), compact[3])
    part = _LAYER_TYPES.get(kind or "", kind)
    rows = rows_of_short(name) or _short_templates(True).get(name, [])
    if part:
        named = _short_templates(True).get(SHORT_ALIASES.get(name, name), [])
        inside = [row for row in named if f".{part}." in f".{row}"]
        rows = [row for row in inside if f".{part}.hook_" in f".{row}"] or inside
    rows = [row for row in rows if row.startswith("blocks.") == (layer is not None)]
    if len(rows) == 1:
        return rows[0].replace("{i}", str(layer))
    asked = ", ".join(repr(part) for part in (name, layer, kind) if part is not None)
    if rows:
        raise UnknownPointError(
            f"({asked}) could be {' or '.join(rows)}; say which, as in ('scale', 0, 'ln1')."
        )
    if layer is None and (named := rows_of_short(name)):
        raise UnknownPointError(
            f"{name!r} means {' or '.join(named)}, so each layer has one. Say which: ({name!r}, 0)."
        )
    raise UnknownPointError(f"There is no point ({asked}).{suggest(name, _short_templates())}")
