"""Activation patching between two prompts: where is what they differ in?"""

from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Runs:
    """Runs of two prompts.

    Args:
        clean: the prompt whose activations are patched in.
        corrupted: the prompt that they are patched into.
        points: layer -> the point that is patched.
        cache: the activations of the clean run.
        clean_logits: of the clean run.
        corrupted_logits: of the other.
        answer: the token that the clean prompt is for.
        wrong: the token that the corrupted prompt is for.
    """

    clean: Prompt
    corrupted: Prompt
    points: dict[int, str]
    cache: Any
    clean_logits: Tensor
    corrupted_logits: Tensor
    answer: int
    wrong: int

    def difference(self, logits: Tensor) -> Tensor:
        """The logit of one answer minus that of the other."""
        return logits[0, -1, self.answer] - logits[0, -1, self.wrong]

    def places(self, what: str) -> list[tuple[int, int]]:
        """Layer and position (or head) of every patch."""
        axis = 2 if what == "z" else 1
        widths = {layer: self.cache[point].shape[axis] for layer, point in self.points.items()}
        return [(layer, i) for layer, width in widths.items() for i in range(width)]


def comparison(subject: Subject, asked: Comparison, job: Job) -> Iterator[dict[str, Any]]:
    """One event with the axes, one for every few cells, and one at the end.

    A value is the share of the difference that a patch brings back: 0 is the corrupted run, 1 the
    clean one.
    """
    runs = _run(subject, asked)
    best, worst = (
        float(runs.difference(one)) for one in (runs.clean_logits, runs.corrupted_logits)
    )
    _check_difference(subject, runs.answer, runs.wrong, best - worst)
    points, places = runs.points, runs.places(asked.what)
    check_cells(subject, len(places))
    yield {
        "type": "start",
        "tokens": runs.corrupted.labels,
        "clean_tokens": runs.clean.labels,
        "answer": subject.token(runs.answer),
        "wrong": subject.token(runs.wrong),
        "clean": best,
        "corrupted": worst,
        "layers": subject.model.cfg.n_layers,
        "columns": max(i for _, i in places) + 1,
        "cells": [list(place) for place in places],
        "python": _python(subject, asked, runs),
    }
    cells = [(points[layer], _index(asked.what, i), runs.cache) for layer, i in places]
    for start, values in swept(subject, runs.corrupted.given, cells, runs.difference, job):
        shares = [(value - worst) / (best - worst) for value in values]
        yield {"type": "cells", "start": start, "values": shares}
    yield {"type": "end"}


def _run(subject: Subject, asked: Comparison) -> _Runs:
    """Both prompts, run without a patch.

    Raises:
        InputError: they cannot be compared, or no layer has the point.
    """
    clean, corrupted = subject.read(asked.clean), subject.read(asked.corrupted)
    _check_lengths(clean, corrupted)
    points = subject.points(asked.what)
    if not points:
        raise InputError(f"No layer of this model has {asked.what}.")
    with torch.no_grad():
        logits, cache = subject.model.run_with_cache(clean.given, names_filter=[*points.values()])
        others = subject.model(corrupted.given)
    answer, wrong = _tokens(subject, asked, logits[0, -1], others[0, -1])
    return _Runs(clean, corrupted, points, cache, logits, others, answer, wrong)


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


def _python(subject: Subject, asked: Comparison, runs: _Runs) -> str:
    return program(
        subject,
        assigned("clean", runs.clean),
        assigned("corrupted", runs.corrupted),
        token(subject, "answer", runs.answer),
        token(subject, "wrong", runs.wrong),
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
