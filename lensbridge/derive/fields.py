"""Finds the config field of a size or factor by its value; names only rank the candidates."""

from collections.abc import Iterator
from math import isclose
from typing import Any

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
    """

    def __init__(self, config: Any, side: str = "") -> None:
        self.config = config
        self.side = side
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

    def number(self, value: float, tolerance: float = 1e-3) -> float | str:
        """A factor as a config field, an expression over fields, or else the number."""
        return next(self._expressions(value, tolerance), round(value, 6))

    def numbers(self) -> dict[str, float]:
        """Every field whose value is a number above zero."""
        return {
            name: float(held)
            for name, held in self.values.items()
            if isinstance(held, (int, float)) and not isinstance(held, bool) and held > 0
        }

    def _expressions(self, value: float, tolerance: float) -> Iterator[str]:
        def same(one: float) -> bool:
            return isclose(one, value, rel_tol=tolerance)

        numbers = self.numbers()
        floats = {name: v for name, v in numbers.items() if isinstance(self.values[name], float)}
        yield from (name for name, v in floats.items() if same(v))
        yield from (name for name, v in self._listed() if same(v) and v != 1)
        yield from (f"1 / {name}" for name, v in floats.items() if same(1 / v) and v != 1)
        sizes = {n: v for n, v in numbers.items() if n not in floats and v > 1}
        ordered = sorted(sizes, key=lambda name: self._rank("d_model", name))
        yield from (f"sqrt({name})" for name in ordered if same(sizes[name] ** 0.5))
        yield from (f"1 / sqrt({name})" for name in ordered if same(sizes[name] ** -0.5))
        layers = sorted(sizes, key=lambda name: self._rank("layers", name))
        for name, v in floats.items():
            yield from (f"{name} / sqrt({size})" for size in layers if same(v / sizes[size] ** 0.5))
            yield from (
                f"{name} * sqrt({size})" for size in ordered if same(v * sizes[size] ** 0.5)
            )
            for other in ordered:
                if same(sizes[other] / v):
                    yield f"{other} / {name}"
                if same(v / sizes[other]):
                    yield f"{name} / {other}"

    def _listed(self) -> Iterator[tuple[str, float]]:
        """The numbers in lists, such as `mlp_multipliers[1]`."""
        for name, held in self.values.items():
            if isinstance(held, (list, tuple)):
                yield from ((f"{name}[{i}]", v) for i, v in enumerate(held) if type(v) is float)

    def activation(self, wanted: set[str]) -> str | None:
        """The field whose value is one of these activations."""
        fits = [name for name, held in self.values.items() if held in tuple(wanted)]
        return min(fits, key=lambda name: (name != "hidden_act", "act" not in name), default=None)
