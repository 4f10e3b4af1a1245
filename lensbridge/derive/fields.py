"""Finds the config field of a size or factor by its value; names only rank the candidates."""

import re
from typing import Any

from lensbridge.derive.formulas import Formulas
from lensbridge.native.settings import PlainSettings

_HINTS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "layer", "depth"),
    "d_model": ("hidden_size", "d_model", "n_embd", "embed", "hidden", "dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "attention_heads", "head"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "kv"),
    "vocab": ("vocab_size", "vocab"),
    "context": (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "position",
        "ctx",
        "block_size",
        "context",
        "seq",
        "max_len",
    ),
}
_REQUIRED = ("layers", "d_model", "heads")


class Fields:
    """The numbers in a config.

    Args:
        config: a HuggingFace config or a part of one.
        side: "encoder" or "decoder": whose fields come first in the config of an encoder-decoder;
            otherwise "".

    `alternatives` are, for each formula that was chosen, the others with the same value.
    """

    def __init__(self, config: Any, side: str = "") -> None:
        self.config = config
        self.side = side
        self.alternatives: dict[str, tuple[str, ...]] = {}
        hinted = [hints[0] for hints in _HINTS.values()]
        names = [*config.to_dict(), *config.attribute_map, *hinted]
        self.values = {name: value for name in names if (value := self._read(name)) is not None}

    def _read(self, name: str) -> Any:
        try:
            return getattr(self.config, name)
        except Exception:  # a config may raise anything for a field that layers differ in
            return None

    def holding(self, role: str, value: int) -> str | None:
        """The field for a size, the one with the most likely name; None if none has the value.

        For sizes that a description must have, a field with any name is taken.
        """
        fits = [
            name
            for name, held in self.values.items()
            if isinstance(held, int) and not isinstance(held, bool) and held == value
        ]
        if role not in _REQUIRED or isinstance(self.config, PlainSettings):
            fits = [name for name in fits if self._rank(role, name) < len(_HINTS[role])]
        return min(fits, key=lambda name: self._rank(role, name), default=None)

    def listing(self, values: list[int | None]) -> str | None:
        """The field with a list of these numbers, one for each layer; None stands for any."""
        for name, held in self.values.items():
            if not isinstance(held, (list, tuple)) or len(held) != len(values):
                continue
            if all(one in (None, other) for one, other in zip(values, held, strict=True)):
                return name
        return None

    def _rank(self, role: str, name: str) -> float:
        hints = _HINTS[role]
        plain = name.replace(f"{self.side}_", "") if self.side else name
        other = {"encoder": "decoder", "decoder": "encoder"}.get(self.side)
        if other and f"{other}_" in name:
            return len(hints)
        exact = [i - 0.5 * (plain != name) for i, hint in enumerate(hints) if plain == hint]
        part = [i + 0.5 for i, hint in enumerate(hints) if hint in plain and len(hint) > 1]
        return min(exact or part, default=len(hints))

    def number(self, value: float, tolerance: float = 1e-3, by_layers: bool = True) -> float | str:
        """A factor as a config field, an expression over fields, or else the number.

        Args:
            value: the factor.
            tolerance: how far from it the value of an expression may be, relative to it.
            by_layers: whether it can depend on the number of layers.
        """
        found = Formulas(self.values, tolerance).of(value, by_layers)
        if not found:
            return round(value, 6)
        chosen, *others = found
        rivals = {
            self._without_aliases(one.text): one.text
            for one in reversed(others)
            if one.rank <= chosen.rank + (chosen.rank > 0)
        }
        rivals.pop(self._without_aliases(chosen.text), None)
        if rivals:
            self.alternatives[chosen.text] = tuple(reversed(rivals.values()))
        return chosen.text

    def _without_aliases(self, formula: str) -> str:
        """A formula with the config's own names of fields."""
        own = dict(self.config.attribute_map)
        return re.sub(r"[^\W\d]\w*", lambda name: str(own.get(name[0], name[0])), formula)

    def numbers(self) -> dict[str, float]:
        """Every field whose value is a number above zero."""
        return {
            name: float(held)
            for name, held in self.values.items()
            if isinstance(held, (int, float)) and not isinstance(held, bool) and held > 0
        }

    def activation(self, wanted: set[str]) -> str | None:
        """The field whose value is one of these activations."""
        fits = [name for name, held in self.values.items() if held in tuple(wanted)]
        return min(fits, key=lambda name: (name != "hidden_act", "act" not in name), default=None)
