"""The likeliest tokens at a position, and how two runs of it differ."""

from typing import Any

import torch
from torch import Tensor

from lensbridge.serve.questions import Predictions
from lensbridge.serve.subject import Subject
from lensbridge.serve.views.python import assigned, at, printed, program
from lensbridge.serve.worker import Job


def predictions(subject: Subject, asked: Predictions, job: Job) -> dict[str, Any]:
    """The likeliest tokens at a position, with their probabilities and logits."""
    prompt = subject.read(asked.prompt)
    position = prompt.position(asked.position)
    logits = logits_at(subject, prompt.given, position)
    top = logits.topk(min(asked.k, len(logits)))
    chances = logits.softmax(-1)
    return {
        "tokens": prompt.labels,
        "position": position,
        "rows": [
            {
                **subject.token(one),
                "probability": float(chances[one]),
                "logit": float(logits[one]),
            }
            for one in top.indices.tolist()
        ],
        "entropy": float(torch.special.entr(chances).sum()),
        "python": program(
            subject,
            assigned("prompt", prompt),
            at(prompt, position),
            "logits = model(prompt)[0, position].detach().float()",
            f"top = logits.softmax(-1).topk({len(top.indices)})",
            "for probability, token in zip(top.values.tolist(), top.indices.tolist()):",
            f'    print(f"{{probability:7.2%}}", {printed(subject, "token")})',
        ),
    }


@torch.no_grad()
def logits_at(subject: Subject, given: Any, position: int) -> Tensor:
    """Logits of one position. Shapes: `[d_vocab]`, float32"""
    return subject.model(given)[0, position].float()


def change(
    subject: Subject, before: Tensor, after: Tensor, k: int, also: int
) -> list[dict[str, Any]]:
    """The likeliest tokens of two runs, and one more, with both probabilities and logits.

    Args:
        subject: the model.
        before: logits of the first run, `[d_vocab]`.
        after: of the second.
        k: how many tokens of each run.
        also: a token that is told in any case.
    """
    k = min(k, len(before))
    told = [*before.topk(k).indices.tolist(), *after.topk(k).indices.tolist(), also]
    first, second = before.softmax(-1), after.softmax(-1)
    told = sorted(set(told), key=lambda one: -max(float(first[one]), float(second[one])))
    return [
        {
            **subject.token(one),
            "probability": [float(first[one]), float(second[one])],
            "logit": [float(before[one]), float(after[one])],
        }
        for one in told
    ]
