"""How likely a model holds given answers to prompts: log-probabilities of several tokens."""

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import ContextLengthError, InputError
from lensbridge.generation.answer_rows import AnswerRow, answer_rows
from lensbridge.hooked_model import HookedModel
from lensbridge.interventions.callbacks import acting
from lensbridge.interventions.running import Interventions, edited

Normalize: TypeAlias = "bool | Literal['tokens', 'characters']"
"""What a log-probability is divided by: nothing, the number of tokens (True), or of characters."""


@torch.no_grad()
def answer_logprobs(
    model: HookedModel,
    prompts: Any,
    answers: Any,
    *,
    interventions: Interventions = (),
    per_token: bool = False,
    normalize: Normalize = False,
    prepend_bos: bool | None = None,
    batch_size: int = 32,
) -> Any:
    """The log-probability of each answer after its prompt: the sum over the tokens of the answer.

    Interventions and hooks of a context act too. Prompt and answer are one text for them:
    `positions` from 0 on count the prompt's tokens first, and -1 is the last token of the answer.

    Args:
        model: the model.
        prompts: a prompt or a list of prompts: texts, ids, messages of a chat.
        answers: texts (with the space in front that they have in the text) or rows of ids. A list
            has one answer for each prompt, or several for a single prompt; a list of lists has
            several for each prompt.
        interventions: those of `lensbridge.interventions`, in force in these runs.
        per_token: the log-probability of each token of an answer instead of their sum.
        normalize: divide the sum by the number of tokens (True or "tokens") or of "characters".
        prepend_bos: BOS before the prompt; None means the default.
        batch_size: how many answers run together, padded to one length.

    Shapes: `[]`, `[answer]` or `[prompt, answer]`, with NaN where a prompt has fewer answers than
        another; per token, lists of that shape with a tensor `[token]` for each answer.

    Units: nats

    Raises:
        InputError: an empty answer, a number of answers that does not fit the prompts, or a model
            that does not predict the next token of its input.
        ContextLengthError: prompt and answer are longer than the context.

    Example:
        >>> import lensbridge
        >>> model = lensbridge.load("demo")
        >>> prompt = "The Eiffel Tower is in the city of"
        >>> model.answer_logprobs(prompt, [" Paris.", " Rome."]).argmax()
        tensor(0)
        >>> [one.shape for one in model.answer_logprobs(prompt, [" Paris."], per_token=True)]
        [torch.Size([2])]
    """
    _check(model, per_token, normalize, batch_size)
    rows, shape = answer_rows(model, prompts, answers, prepend_bos)
    _check_length(rows, model.native.sizes.n_ctx)
    found: list[Tensor] = []
    with edited(model, acting(interventions)):
        for first in range(0, len(rows), batch_size):
            found += _scored(model, rows[first : first + batch_size])
    if per_token:
        return _nested(found, shape)
    return _table([_whole(*pair, normalize) for pair in zip(found, rows, strict=True)], shape)


def _check(model: HookedModel, per_token: bool, normalize: Any, batch_size: Any) -> None:
    if not model.native.predicts_next:
        raise InputError(
            f"{type(model.native.core).__name__} does not predict the next token of its input, so "
            "an answer has no log-probability as its continuation."
        )
    if normalize not in (False, True, "tokens", "characters"):
        raise InputError(f"normalize is a bool, 'tokens' or 'characters', not {normalize!r}.")
    if per_token and normalize:
        raise InputError("normalize is of the sum over the tokens: leave it out with per_token.")
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise InputError(f"batch_size is 1 or more, not {batch_size!r}.")


def _check_length(rows: Sequence[AnswerRow], limit: int | None) -> None:
    for row in rows:
        if limit is not None and len(row.ids) > limit:
            raise ContextLengthError(
                f"A prompt of {row.start} tokens and an answer of {len(row.ids) - row.start} are "
                f"more than the context of {limit}."
            )


def _scored(model: HookedModel, rows: Sequence[AnswerRow]) -> list[Tensor]:
    """The log-probability of each token of some answers, which run as one batch."""
    width = max(len(row.ids) for row in rows)
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
    same = bool(mask.all())
    logits = model.forward({"input_ids": ids, **({} if same else {"attention_mask": mask})})
    return [_of_row(logits[i], row) for i, row in enumerate(rows)]


def _of_row(logits: Tensor, row: AnswerRow) -> Tensor:
    """Shapes: `[pos, d_vocab]` -> `[token of the answer]`"""
    told = logits[row.start - 1 : len(row.ids) - 1]
    wide = told if told.dtype == torch.float64 else told.float()
    chosen = torch.tensor(row.ids[row.start :], device=logits.device)
    return wide.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]


def _whole(per_token: Tensor, row: AnswerRow, normalize: Normalize) -> Tensor:
    total = per_token.sum()
    if not normalize:
        return total
    if normalize != "characters":
        return total / len(per_token)
    if row.text is None:
        raise InputError("normalize='characters' is for answers that are text; these are ids.")
    return total / len(row.text)


def _table(values: Sequence[Tensor], shape: Any) -> Tensor:
    """Numbers in the shape of the answers; NaN where a row is shorter than another."""
    if shape is None:
        return values[0]
    if isinstance(shape, int):
        return torch.stack(list(values))
    table = values[0].new_full((len(shape), max(shape)), torch.nan)
    for row, some in zip(table, _nested(values, shape), strict=True):
        row[: len(some)] = torch.stack(some)
    return table


def _nested(values: Sequence[Any], shape: Any) -> Any:
    """A flat list in the shape of the answers."""
    if shape is None:
        return values[0]
    if isinstance(shape, int):
        return list(values)
    return list(_cut(values, shape))


def _cut(values: Sequence[Any], lengths: Sequence[int]) -> Iterator[list[Any]]:
    start = 0
    for length in lengths:
        yield list(values[start : start + length])
        start += length
