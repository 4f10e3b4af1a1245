"""Where a stage is in its pipeline, what it has, and what the others have."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.distributed as distributed
from torch import nn

from lensbridge.native.parts import ResolvedModel


@dataclass(frozen=True)
class Place:
    """One stage among the stages of a pipeline.

    Args:
        stage: PyTorch's object for it.
        model: the name of the model's class; stages of one pipeline have the same.
    """

    stage: Any
    model: str

    @property
    def index(self) -> int:
        """The number of the stage."""
        return int(self.stage.stage_index)

    @property
    def count(self) -> int:
        """How many stages there are."""
        return int(self.stage.num_stages)

    def __str__(self) -> str:
        return f"stage {self.index} of {self.count} (rank {self._rank(self.index)})"

    def publish(self, parts: list[str]) -> None:
        """Tell the other stages what this one has. Nobody waits for it."""
        _store().set(self._key(self.index), json.dumps(parts))

    def holder(self, part: str) -> str:
        """Which stage has a part of the model, as a clause, as far as they have told."""
        for index in range(self.count):
            if part in self._published(index):
                return f"stage {index} (rank {self._rank(index)}) has {part}"
        others = [one for one in range(self.count) if one != self.index]
        if len(others) == 1:
            return f"stage {others[0]} (rank {self._rank(others[0])}) may have {part}"
        return f"another stage may have {part}"

    def _published(self, index: int) -> list[str]:
        store, key = _store(), self._key(index)
        return json.loads(store.get(key)) if store.check([key]) else []

    def _rank(self, index: int) -> int:
        return distributed.get_global_rank(self._group, self.stage.stage_index_to_group_rank[index])

    def _key(self, index: int) -> str:
        group = self._group.group_name
        return f"lensbridge/stages/{group}/{self.model}/{self.count}/{index}"

    @property
    def _group(self) -> Any:
        return self.stage.group or distributed.group.WORLD


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()


class Part(NamedTuple):
    """A part of a model that one stage has.

    Args:
        what: it is, in words.
        module: of the whole model.
        names: how the names of its points and weights begin.
    """

    what: str
    module: nn.Module
    names: tuple[str, ...]


def parts_of(native: ResolvedModel) -> list[Part]:
    """The parts of a model, from its inputs to its outputs."""
    main = native.main
    found: list[tuple[str, Any, tuple[str, ...]]] = [
        ("the embedding", main.embed, ("hook_embed", "embed.")),
        ("the positions", main.pos_embed, ("hook_pos_embed", "pos_embed.")),
        ("the norm of embeddings", main.ln_embed and main.ln_embed.module, ("ln_embed.",)),
    ]
    for i, block in enumerate(main.blocks):
        found.append((layer(i), block.module, (f"{main.prefix}.{i}.",)))
    found.append(("the final norm", main.ln_final and main.ln_final.module, ("ln_final.",)))
    found.append(
        ("the head", native.unembed and native.unembed.module, ("hook_logits", "unembed."))
    )
    return [Part(*one) for one in found if one[1] is not None]


def layer(number: int) -> str:
    """A layer in words."""
    return f"layer {number}"
