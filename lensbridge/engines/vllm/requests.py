"""Requests: the rows of a prepared input as vLLM runs them, and their values as a batch again."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lensbridge.engines.vllm.workers import Workers
from lensbridge.errors import ContextLengthError, UnsupportedError
from lensbridge.inputs.prepare import Prepared


@dataclass(frozen=True)
class Request:
    """One row of a batch.

    Args:
        ids: its tokens, without padding.
        first: the column of the first of them.
        row: its number.
        rows: how many rows the batch has.
        program: what is done to it, as `program.to_text` gives it.
    """

    ids: list[int]
    first: int
    row: int
    rows: int
    program: str


def rows_of(prepared: Prepared) -> list[tuple[list[int], int]]:
    """The tokens of each row and the column of the first.

    Raises:
        UnsupportedError: embeddings, or a mask with padding between tokens.
    """
    if prepared.tokens is None:
        raise UnsupportedError("The vLLM engine takes text or token ids, and no embeddings.")
    found = []
    mask = prepared.mask
    for row, ids in enumerate(prepared.tokens.tolist()):
        real = [True] * len(ids) if mask is None else mask[row].bool().tolist()
        first, count = real.index(True), sum(real)
        if not all(real[first : first + count]):
            raise UnsupportedError(
                f"Row {row} has padding between its tokens, and vLLM runs tokens that follow one "
                "another. Pad before or after the text."
            )
        found.append((ids[first : first + count], first))
    return found


@dataclass
class Runner:
    """Runs requests on an `LLM`, as many at a time as it can begin in one pass.

    Args:
        workers: of the `LLM`.
        sampling: the class `SamplingParams` of vLLM.
    """

    workers: Workers
    sampling: Any
    _config: Any = field(init=False)

    def __post_init__(self) -> None:
        self._config = self.workers.llm.llm_engine.vllm_config

    def run(
        self, requests: Sequence[Request], **sampling: Any
    ) -> list[tuple[list[int], dict[str, Tensor]]]:
        """What each request generated, and what was kept of it.

        Args:
            requests: what is run.
            sampling: options of vLLM's `SamplingParams`.

        Raises:
            ContextLengthError: a text is too long.
            InputError: an intervention does not fit the model.
        """
        self._check_length(requests, sampling["max_tokens"])
        return [one for group in self._groups(requests) for one in self._run(group, sampling)]

    def _check_length(self, requests: Sequence[Request], new: int) -> None:
        most = self._config.model_config.max_model_len
        longest = max(len(one.ids) for one in requests)
        if longest + new > most:
            raise ContextLengthError(
                f"A text of {longest} tokens and {new} new ones are more than the {most} positions "
                "of this LLM (vLLM always makes one new token). Make it with a larger "
                "max_model_len, if the model has one."
            )

    def _groups(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Requests that fit into one pass, so that no prompt is cut which would fit whole."""
        scheduler = self._config.scheduler_config
        tokens, many = scheduler.max_num_batched_tokens, scheduler.max_num_seqs
        group: list[Request] = []
        for one in requests:
            used = sum(len(other.ids) for other in group)
            if group and (used + len(one.ids) > tokens or len(group) == many):
                yield group
                group = []
            group.append(one)
        yield group

    def _run(
        self, requests: Sequence[Request], sampling: Mapping[str, Any]
    ) -> list[tuple[list[int], dict[str, Tensor]]]:
        names = {text: uuid.uuid4().hex for text in dict.fromkeys(r.program for r in requests)}
        keys = [uuid.uuid4().hex for _ in requests]
        kept: dict[str, dict[str, Tensor]] = {key: {} for key in keys}
        try:
            for text, name in names.items():
                self.workers.ask("define", program=name, text=text)
            outputs = self.workers.llm.generate(
                [_prompt(one.ids, key) for one, key in zip(requests, keys, strict=True)],
                [
                    self.sampling(**sampling, extra_args={"lensbridge": _tag(one, key, names)})
                    for one, key in zip(requests, keys, strict=True)
                ],
                use_tqdm=False,
            )
        finally:
            tensors = self._taken(names, requests, keys)
        for name, value in tensors.items():
            key, _, label = name.partition("|")
            kept[key][label] = value
        made = [list(output.outputs[0].token_ids) for output in outputs]
        return list(zip(made, kept.values(), strict=True))

    def _taken(
        self, names: Mapping[str, str], requests: Sequence[Request], keys: Sequence[str]
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        pairs = list(zip(requests, keys, strict=True))
        for text, name in names.items():
            own = [key for one, key in pairs if one.program == text]
            found |= self.workers.ask("take", program=name, keys=own)[1]
        return found


def _prompt(ids: list[int], key: str) -> dict[str, Any]:
    """A prompt whose keys and values no other request reads, and that reads no other's."""
    return {"prompt_token_ids": ids, "cache_salt": key}


def _tag(one: Request, key: str, names: Mapping[str, str]) -> dict[str, Any]:
    return {"program": names[one.program], "key": key, "row": one.row, "rows": one.rows}


def batched(requests: Sequence[Request], values: Sequence[Tensor], width: int) -> Tensor:
    """Values of all rows in one tensor, zeros at padding.

    Shapes: `[pos, ...]` of each row -> `[batch, pos, ...]`
    """
    whole = values[0].new_zeros((len(requests), width, *values[0].shape[1:]))
    for one, value in zip(requests, values, strict=True):
        count = len(one.ids)
        whole[one.row, one.first : one.first + count] = value[:count]
    return whole


def ids_of(prepared: Prepared) -> Tensor:
    """The ids of an input.

    Raises:
        UnsupportedError: it has none.
    """
    if prepared.tokens is None:
        raise UnsupportedError("The vLLM engine takes text or token ids, and no embeddings.")
    return prepared.tokens.to(torch.long)
