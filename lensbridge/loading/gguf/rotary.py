"""The scaling of rotary positions that a GGUF file states and transformers' reader leaves out.

Llama 3.1 and 3.2, the larger Gemma 3 and models with a context stretched by YaRN have one. Without
it every attention score is another than in the model that was converted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lensbridge.errors import LoadError
from lensbridge.loading.gguf.reader import value_of

_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What all models of Meta with this scaling have; a file holds only what follows from it."""
_YARN_OWN = ("attn_factor", "yarn_log_multiplier", "yarn_beta_fast", "yarn_beta_slow")
"""Settings of YaRN for which transformers' defaults would not do."""


def rotary_of(reader: Any, config: Callable[[], Any], name: str) -> dict[str, Any]:
    """`rope_parameters=` for `from_pretrained`; nothing where transformers has it right.

    Args:
        reader: the file's header.
        config: returns the config that transformers makes from the file.
        name: of the file.

    Raises:
        LoadError: the file states a scaling that is not known here.
    """
    stated = _Stated.of(reader)
    plain = None if stated is None else getattr(config(), "rope_parameters", None)
    if stated is None or plain is None:
        return {}
    nested = plain.get("full_attention")
    base = plain if nested is None else nested
    if base.get("rope_type", "default") != "default":
        return {}
    scaled = {**base, **stated.parameters(base, name)}
    return {"rope_parameters": scaled if nested is None else {**plain, "full_attention": scaled}}


@dataclass(frozen=True)
class _Stated:
    """What a file says about the scaling.

    Args:
        kind: its name in llama.cpp.
        factor: by which the context is stretched.
        context: how long it was before.
        own: other settings of it.
        divisors: of the frequencies, where the file lists them.
        lists: tensors of factors that depend on the length of the input.
    """

    kind: str
    factor: float | None
    context: int | None
    own: tuple[str, ...]
    divisors: Any
    lists: tuple[str, ...]

    @classmethod
    def of(cls, reader: Any) -> "_Stated | None":
        """What the header states, if it is anything."""
        prefix = f"{value_of(reader, 'general.architecture')}.rope.scaling."
        tensors = {one.name: one.data for one in reader.tensors if one.name.startswith("rope_")}
        found = cls(
            value_of(reader, f"{prefix}type") or "none",
            value_of(reader, f"{prefix}factor"),
            value_of(reader, f"{prefix}original_context_length"),
            tuple(key for key in _YARN_OWN if f"{prefix}{key}" in reader.fields),
            tensors.pop("rope_freqs.weight", None),
            tuple(tensors),
        )
        scaled = found.kind != "none" or found.lists or found.divisors is not None
        return found if scaled else None

    def parameters(self, base: dict[str, Any], name: str) -> dict[str, Any]:
        """The fields of `rope_parameters` that say the same.

        Raises:
            LoadError: there are none.
        """
        if self.divisors is not None and self.kind == "none" and not self.lists:
            found = {**_LLAMA3, "factor": float(np.max(self.divisors))}
            if np.allclose(_divisors(base["rope_theta"], found, self.divisors.size), self.divisors):
                return found
        elif self.factor and self.divisors is None and not self.lists:
            found = {"rope_type": self.kind, "factor": self.factor}
            if self.kind == "linear":
                return found
            if self.kind == "yarn" and self.context and not self.own:
                return {**found, "original_max_position_embeddings": self.context}
        raise LoadError(
            f"{name!r} scales its rotary positions ({self}) in a way that transformers' reader of "
            "GGUF leaves out, so that attention would be wrong. Load the model in safetensors."
        )

    def __str__(self) -> str:
        listed = () if self.divisors is None else ("rope_freqs.weight",)
        return ", ".join((f"type {self.kind}", *self.own, *listed, *self.lists))


def _divisors(theta: float, scaling: dict[str, Any], count: int) -> Any:
    """By what Llama 3's scaling divides each frequency.

    Source: `apply_scaling` of meta-llama/llama-models, models/llama3/model.py
    """
    frequency = theta ** -(np.arange(count) / count)
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * np.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - kept) / scaling["factor"] + kept)
