"""nnsight, where it is installed: many invocations of one trace share a batch."""

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import lensbridge
from benchmarks.specimens import Specimen

NAME = "nnsight, one batch of invocations"


def installed() -> bool:
    """Whether nnsight can be imported."""
    return find_spec("nnsight") is not None


class Batched:
    """Patches of the residual stream, as many as there are in one forward pass."""

    def __init__(self, one: Specimen) -> None:
        self.one = one
        self.layers = one.lens.native.main.path

    @cached_property
    def model(self) -> Any:
        """nnsight around the model; it wants a tokenizer, which ids do not need."""
        from nnsight import LanguageModel

        tokenizer = lensbridge.load("demo").tokens.tokenizer
        return LanguageModel(self.one.hf, tokenizer=tokenizer)

    def run(self, cells: Sequence[tuple[int, int]], clean: Sequence[Tensor]) -> Tensor:
        """Last logits of each cell: a layer and a position that get the clean stream.

        Shapes: clean `[batch, pos, d_model]` of each layer -> `[cell, batch, d_vocab]`.
        """
        model, ids, layers = self.model, self.one.ids, self.layers
        with torch.no_grad(), model.trace() as tracer:
            saved: Any = list[Tensor]().save()  # type: ignore[attr-defined]
            for layer, pos in cells:
                with tracer.invoke(ids):
                    model.get(f"{layers}.{layer}").input[:, pos, :] = clean[layer][:, pos, :]
                    saved.append(model.lm_head.output[:, -1])
        return torch.stack(list(saved))
