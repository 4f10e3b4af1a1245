"""Which points a filter matches in TransformerLens, where large points depend on a flag."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.point import NamesFilter
from lensbridge.compat.transformer_lens.spellings import SPELLED, spelled, unspelled
from lensbridge.points.point_names import PointNames

_FLAGS = {
    "hook_result": "use_attn_result",
    "hook_head_out": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}
"""The last word of a point -> the flag with which caches have it although it is not named."""

_BESIDES = re.compile(r"(^|\.)ln\w*\.hook_out$")
"""Points that TransformerLens does not have: outputs of norms."""


@dataclass(frozen=True)
class Selection:
    """The points of one model, with its flags as they are now."""

    vocabulary: PointNames
    cfg: HookedTransformerConfig

    def names(self, asked: NamesFilter) -> list[str]:
        """The canonical names that a filter matches, in data-flow order.

        Args:
            asked: None for all, a name, a filter on names, or a list of these. Names may be short,
                or globs.

        Raises:
            UnknownPointError: an unknown name, or a filter that matches nothing.
        """
        if asked is None:
            chosen = set(self._usual())
        elif callable(asked):
            chosen = set(self._taken(asked))
        else:
            items = [asked] if isinstance(asked, str) else list(asked)
            chosen = {name for item in items for name in self._named(item)}
        index = self.vocabulary.index
        listed = {unspelled(name, index) for name in chosen}
        return [name for name in index if name in listed]

    def _usual(self) -> list[str]:
        plain = [name for name in self.vocabulary.select(None) if not _is_besides(name)]
        return [*plain, *self._flagged()]

    def _flagged(self) -> list[str]:
        flags = vars(self.cfg)
        return [
            name
            for name in self.vocabulary.index
            if flags.get(_FLAGS.get(name.rpartition(".")[2], ""), False)
        ]

    def _taken(self, accepts: Callable[[str], bool]) -> list[str]:
        def accepts_spelled(name: str) -> bool:
            return bool(accepts(spelled(name)))

        chosen = [name for name in self.vocabulary.select(accepts_spelled) if not _is_besides(name)]
        flagged = [name for name in self._flagged() if accepts(spelled(name))]
        return [*chosen, *flagged]

    def _named(self, item: str | Callable[[str], bool]) -> list[str]:
        if callable(item):
            return self._taken(item)
        return self.vocabulary.select(unspelled(item, self.vocabulary.index))


def _is_besides(name: str) -> bool:
    return _BESIDES.search(name) is not None and name not in SPELLED
