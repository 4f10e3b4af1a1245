"""Activation patching between two prompts: where is what they differ in?"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.serve.questions import Comparison
from lensbridge.serve.subject import Prompt, Subject
from lensbridge.serve.views.python import assigned, program, token
from lensbridge.serve.views.sweeping import check_cells, swept
from lensbridge.serve.worker import Job

_FUNCTIONS = {
    "resid_pre": "get_act_patch_resid_pre",
    "attn_out": "get_act_patch_attn_out",
    "mlp_out": "get_act_patch_mlp_out",
    "z": "get_act_patch_attn_head_out_all_pos",
}

_CALLS = {
    what: (
        f"result = patching.{function}(",
        "    model, corrupted, cache, difference, baseline=True",
        ")",
    )
    for what, function in _FUNCTIONS.items()
} | {
    "mixer_out": (
        "result = patching.generic_activation_patch(",
        "    model,",
        "    corrupted,",
        "    cache,",
        "    difference,",
        "    patching.layer_pos_patch_setter,",
        '    "mixer_out",',
        '    ["layer", "pos"],',
        "    baseline=True,",
        ")",
    )
}
"""The call of each kind of patching, in Python."""

_TOO_CLOSE = 1e-3
"""Logit differences that are closer than this say nothing when one is divided by the other."""


def comparison(subject: Subject, asked: Comparison, job: Job) -> Iterator[dict[str, Any]]:
    """One event with the axes, one for every few cells, and one at the end.

    A value is the share of the difference that a patch brings back: 0 is the corrupted run, 1 the
    clean one.
    """
    clean, corrupted = subject.read(asked.clean), subject.read(asked.corrupted)
    _check_lengths(clean, corrupted)
    points = subject.points(asked.what)
    if not points:
        raise InputError(f"No layer of this model has {asked.what}.")
    with torch.no_grad():
        clean_logits, cache = subject.model.run_with_cache(
            clean.given, names_filter=[*points.values()]
        )
        corrupted_logits = subject.model(corrupted.given)
    answer, wrong = _tokens(subject, asked, clean_logits[0, -1], corrupted_logits[0, -1])

    def difference(logits: Tensor) -> Tensor:
        return logits[0, -1, answer] - logits[0, -1, wrong]

    best, worst = float(difference(clean_logits)), float(difference(corrupted_logits))
    _check_difference(subject, answer, wrong, best - worst)
    widths = {i: cache[point].shape[2 if asked.what == "z" else 1] for i, point in points.items()}
    places = [(layer, i) for layer, width in widths.items() for i in range(width)]
    check_cells(subject, len(places))
    yield {
        "type": "start",
        "tokens": corrupted.labels,
        "clean_tokens": clean.labels,
        "answer": subject.token(answer),
        "wrong": subject.token(wrong),
        "clean": best,
        "corrupted": worst,
        "layers": subject.model.cfg.n_layers,
        "columns": max(widths.values()),
        "cells": [list(place) for place in places],
        "python": _python(subject, asked, clean, corrupted, answer, wrong),
    }
    cells = [(points[layer], _index(asked.what, i), cache) for layer, i in places]
    for start, values in swept(subject, corrupted.given, cells, difference, job):
        shares = [(value - worst) / (best - worst) for value in values]
        yield {"type": "cells", "start": start, "values": shares}
    yield {"type": "end"}


def _check_lengths(clean: Prompt, corrupted: Prompt) -> None:
    if len(clean.ids) != len(corrupted.ids):
        raise InputError(
            "Both prompts must have the same number of tokens, so that each token has a partner. "
            f"The clean prompt has {len(clean.ids)}: {' '.join(clean.labels)}. The corrupted one "
            f"has {len(corrupted.ids)}: {' '.join(corrupted.labels)}."
        )
    if clean.ids == corrupted.ids:
        raise InputError("Both prompts are the same. Change one fact in the corrupted prompt.")


def _index(what: str, i: int) -> tuple[Any, ...]:
    everywhere = slice(None)
    return (everywhere, everywhere, i) if what == "z" else (everywhere, i)


def _tokens(
    subject: Subject, asked: Comparison, clean: Tensor, corrupted: Tensor
) -> tuple[int, int]:
    """The tokens of the clean and of the corrupted prompt's answer."""
    answer, wrong = subject.target(asked.answer, clean), subject.target(asked.wrong, corrupted)
    if answer == wrong:
        raise InputError(
            f"Both answers are {subject.label(answer)}. Name two tokens, whose logits are "
            "compared: the answer to the clean prompt, and the answer to the corrupted one."
        )
    return answer, wrong


def _check_difference(subject: Subject, answer: int, wrong: int, gap: float) -> None:
    if abs(gap) < _TOO_CLOSE:
        raise InputError(
            f"{subject.label(answer)} and {subject.label(wrong)} differ by the same logits in both "
            "prompts, so there is nothing to bring back. Name other tokens."
        )


def _python(
    subject: Subject,
    asked: Comparison,
    clean: Prompt,
    corrupted: Prompt,
    answer: int,
    wrong: int,
) -> str:
    return program(
        subject,
        assigned("clean", clean),
        assigned("corrupted", corrupted),
        token(subject, "answer", answer),
        token(subject, "wrong", wrong),
        "",
        "",
        "def difference(logits):",
        "    return logits[0, -1, answer] - logits[0, -1, wrong]",
        "",
        "",
        f'clean_logits, cache = model.run_with_cache(clean, names_filter="{asked.what}")',
        *_CALLS[asked.what],
        "recovered = result.normalized(difference(clean_logits))  # 0: corrupted, 1: clean",
        "print(recovered)",
        imports="from lensbridge import patching",
    )
