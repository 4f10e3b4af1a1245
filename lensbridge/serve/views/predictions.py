"""The likeliest tokens at a position, and how two runs of it differ."""

from typing import Any

import torch
from torch import Tensor

from lensbridge.serve.questions import Predictions
from lensbridge.serve.subject import Prompt, Subject
from lensbridge.serve.views.python import assigned, at, printed, program
from lensbridge.serve.worker import Job


@torch.no_grad()
def predictions(subject: Subject, asked: Predictions, job: Job) -> dict[str, Any]:
    """The likeliest tokens at a position, and how expected each token of the prompt was."""
    prompt = subject.read(asked.prompt)
    position = prompt.position(asked.position)
    whole = subject.model(prompt.given)[0].float()
    logits = whole[position]
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
        "expected": _expected(subject, prompt, whole),
        "python": _python(subject, prompt, position, len(top.indices)),
    }


def _expected(subject: Subject, prompt: Prompt, logits: Tensor) -> list[float] | None:
    """The probability of each token after the first; None for models that see it already."""
    if not subject.model.native.predicts_next:
        return None
    ids = torch.tensor(prompt.ids[1:], device=logits.device).unsqueeze(-1)
    read = logits[:-1]
    chances: list[float] = (read.gather(-1, ids)[:, 0] - read.logsumexp(-1)).exp().tolist()
    return chances


def _python(subject: Subject, prompt: Prompt, position: int, count: int) -> str:
    ids = "model.to_tokens(prompt)[0].tolist()" if subject.has_tokenizer else "prompt"
    expected = (
        f"ids = {ids}",
        "expected = [float(chances[i, token]) for i, token in enumerate(ids[1:])]",
    )
    return program(
        subject,
        assigned("prompt", prompt),
        at(prompt, position),
        "chances = model(prompt)[0].detach().float().softmax(-1)  # position, token",
        f"top = chances[position].topk({count})",
        "for chance, token in zip(top.values.tolist(), top.indices.tolist()):",
        f'    print(f"{{chance:7.2%}}", {printed(subject, "token")})',
        *(expected if subject.model.native.predicts_next else ()),
    )


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
