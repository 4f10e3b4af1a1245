"""The forward pass that is going on: what it was called with, and which columns it computes.

A column is a place on the position axis of the whole run, padding and earlier passes included.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.errors import HookError
from lensbridge.native.calling import named_arguments
from lensbridge.native.kv_cache import cache_in, columns_in


class Progress:
    """Where a run is in its sequence.

    Attributes:
        step: how many passes came before this one; -1 before the first.
        named: what the top-level forward was called with.
        count: columns that it computes.
        prompt: columns that there were after the first pass.
        new: how many more a generation may make at most.
        ends: ids that end a row, while a text is generated.
        examples: of a generation, which may have several rows for each; else None.
    """

    def __init__(self) -> None:
        self.step = -1
        self.named: Mapping[str, Any] = {}
        self.count = self.prompt = self.new = 0
        self._past: int | None = 0
        self.ends: tuple[int, ...] = ()
        self.examples: int | None = None
        self._ended: Tensor | None = None

    @property
    def past(self) -> int:
        """Columns of earlier passes that this one does not compute again.

        Raises:
            HookError: the run does not say how many there are.
        """
        if self._past is None:
            raise HookError(
                "This pass continues a state that does not say how many positions it holds "
                f"({', '.join(self.named)}), so its place in the sequence is not known. Run the "
                "whole text, or generate() from its beginning."
            )
        return self._past

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note what the top-level forward is called with."""
        self.step += 1
        self.named = named_arguments(module, args, kwargs)
        given = self._given()
        count = 0 if given is None else given.shape[1]
        self._past = self._earlier(count)
        self.count = count
        if self.step == 0:
            self.prompt = (self._past or 0) + count
        self._note_ends(given)

    def _given(self, encoder: bool = False) -> Tensor | None:
        """The ids or embeddings whose columns are those of the main stack, or of its encoder."""
        names = ("input_ids", "inputs_embeds")
        decoder = () if encoder else tuple(f"decoder_{name}" for name in names)
        for name in (*decoder, *names):
            given = self.named.get(name)
            if isinstance(given, Tensor) and given.ndim > 1:  # a plain module's may be anything
                return given
        return None

    def ids(self, encoder: bool = False) -> Tensor | None:
        """Ids of this pass, of the main stack or of its encoder; None where there are none."""
        given = self._given(encoder)
        return None if given is None or given.is_floating_point() else given

    def _earlier(self, count: int) -> int | None:
        """Columns before those of a pass of so many; None where nothing tells."""
        held = cache_in(self.named)
        if held is None:
            shrinks = self.examples is not None and self.step > 0 and count < self._whole
            return None if shrinks else 0  # a generation does not start anew
        told = columns_in(held)
        if told is not None:
            return told
        if self.step == 0:  # a generation begins with an empty state
            return 0 if self.examples is not None else None
        return None if self._past is None else self._whole

    @property
    def _whole(self) -> int:
        return (self._past or 0) + self.count

    @property
    def continues(self) -> bool:
        """Whether a cache keeps what was read, so that the next pass reads what comes after.

        Models that keep nothing may be given an empty cache all the same.
        """
        held = cache_in(self.named)
        return held is not None and columns_in(held) != 0

    def _note_ends(self, given: Tensor | None) -> None:
        if not self.ends or given is None or given.is_floating_point():
            self._ended = None if self.step == 0 else self._ended
            return
        new = given[:, max(self.prompt - (self._past or 0), 0) :]
        ended = torch.isin(new, torch.tensor(self.ends, device=new.device)).any(-1)
        earlier = self._ended
        if self._past and self.step and earlier is not None and len(earlier) == len(ended):
            ended = ended | earlier
        self._ended = ended

    def finished(self) -> Tensor:
        """Shapes: `[batch]`, True for rows that an EOS ended in this pass or before it."""
        if self._ended is not None:
            return self._ended
        given = self._given()
        rows = 0 if given is None else len(given)
        return torch.zeros(rows, dtype=torch.bool, device=None if given is None else given.device)

    def mask(self, encoder: bool = False) -> Tensor | None:
        """Shapes: `[batch, column]`, 1 for tokens, of all columns so far; None without one."""
        decodes = "decoder_input_ids" in self.named or "encoder_outputs" in self.named
        found = self.named.get(
            "decoder_attention_mask" if decodes and not encoder else "attention_mask"
        )
        return found if isinstance(found, Tensor) and found.ndim == 2 else None

    def positions(self, encoder: bool = False) -> Tensor:
        """Each token's position in its row.

        Shapes: `[batch, pos]`

        Raises:
            HookError: nothing that the run was given has tokens.
        """
        given = self._given(encoder)
        if given is None:
            raise HookError(
                "This pass was given neither ids nor embeddings, so it is not known where its "
                f"tokens are ({', '.join(self.named) or 'it was given nothing'})."
            )
        batch, count = given.shape[:2]
        past = 0 if encoder else self.past
        if self.named.get("position_ids") is not None and not encoder:
            return torch.as_tensor(self.named["position_ids"]).expand(batch, -1)
        mask = self.mask(encoder)
        if mask is not None:
            return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -count:]
        return torch.arange(past, past + count, device=given.device).expand(batch, -1)
