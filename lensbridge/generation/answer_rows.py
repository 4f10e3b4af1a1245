"""Prompts and answers as rows of ids: each answer after its prompt."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.chat import is_chat
from lensbridge.inputs.prompts import plain_input
from lensbridge.inputs.tokens import as_ids


@dataclass(frozen=True)
class AnswerRow:
    """One answer after its prompt.

    Args:
        ids: of both.
        start: where the answer begins.
        text: the answer, where it is text.
    """

    ids: list[int]
    start: int
    text: str | None


def answer_rows(
    model: HookedModel, prompts: Any, answers: Any, prepend_bos: bool | None
) -> tuple[list[AnswerRow], Any]:
    """Rows in one list, and their shape: None for one answer, how many, or how many of each prompt.

    Raises:
        InputError: an empty answer, or answers that do not fit the prompts.
    """
    given = plain_input(prompts)
    fronts = _fronts(model, given, prepend_bos)
    texts = [given] if isinstance(given, str) else given
    alone = _is_one_prompt(given)
    groups, shape = _grouped(answers, len(fronts), alone)
    rows = []
    for i, (front, some) in enumerate(zip(fronts, groups, strict=True)):
        text = texts[i] if isinstance(texts, list | tuple) and isinstance(texts[i], str) else None
        rows += [_row(model, front, text, answer) for answer in some]
    return rows, shape


def _fronts(model: HookedModel, given: Any, prepend_bos: bool | None) -> list[list[int]]:
    """The ids of each prompt, without padding."""
    prepared = model.prepare(given, prepend_bos=prepend_bos)
    if prepared.tokens is None:
        raise InputError("Prompts are text, ids or messages of a chat here, not embeddings.")
    if prepared.mask is None:
        return [list(row) for row in prepared.tokens.tolist()]
    pairs = zip(prepared.tokens, prepared.mask.bool(), strict=True)
    return [list(row[real].tolist()) for row, real in pairs]


def _is_one_prompt(given: Any) -> bool:
    if isinstance(given, str) or is_chat(given):
        return True
    if isinstance(given, Tensor):
        return given.ndim == 1
    return isinstance(given, Sequence) and isinstance(given[0], Integral)


def _is_one_answer(given: Any) -> bool:
    """Whether this is one answer: text, or a row of ids."""
    if isinstance(given, str):
        return True
    if isinstance(given, Tensor):
        return given.ndim == 1
    return isinstance(given, Sequence) and bool(given) and isinstance(given[0], Integral)


def _grouped(answers: Any, prompts: int, alone: bool) -> tuple[list[list[Any]], Any]:
    """The answers of each prompt, and the shape of the result.

    Raises:
        InputError: they do not fit the prompts.
    """
    if _is_one_answer(answers):
        return [[answers]] * prompts, None if alone else prompts
    if not isinstance(answers, Iterable):
        raise InputError(f"Answers are texts or rows of ids, or lists of these, not {answers!r}.")
    given = list(answers)
    if not given:
        raise InputError("There are no answers to score.")
    if all(map(_is_one_answer, given)):
        if alone:
            return [given], len(given)
        if len(given) != prompts:
            raise InputError(
                f"There are {len(given)} answers and {prompts} prompts. Pass one answer for each "
                "prompt, or a list of answers for each."
            )
        return [[one] for one in given], prompts
    groups = [list(some) for some in given]
    if len(groups) != prompts or not all(groups):
        raise InputError(
            f"There are {len(groups)} lists of answers and {prompts} prompts: pass a list with at "
            "least one answer for each prompt."
        )
    return groups, tuple(map(len, groups))


def _row(model: HookedModel, front: list[int], prompt: str | None, answer: Any) -> AnswerRow:
    """An answer after a prompt, whose ids are known.

    In the text of both, the tokens of the answer are what follows those of the prompt. Where the
    two would share a token there, the answer is tokenized by itself.
    """
    if not isinstance(answer, str):
        ids = as_ids(answer).tolist()
        return AnswerRow([*front, *_some(ids, answer)], len(front), None)
    own = model.tokens.encode(answer, prepend_bos=False).ids[0].tolist() if answer else []
    row = [*front, *_some(own, answer)]
    if prompt is not None:
        bare = model.tokens.encode(prompt, prepend_bos=False).ids[0].tolist()
        both = model.tokens.encode(prompt + answer, prepend_bos=False).ids[0].tolist()
        if both[: len(bare)] == bare and len(both) > len(bare):
            row = [*front, *both[len(bare) :]]
    return AnswerRow(row, len(front), answer)


def _some(ids: list[int], answer: Any) -> list[int]:
    if not ids:
        raise InputError(f"The answer {answer!r} has no tokens.")
    return ids
