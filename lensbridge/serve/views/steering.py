"""Steering: a text continued with the direction between two texts, and without it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.interventions import steering_vector
from lensbridge.serve.literals import literal
from lensbridge.serve.questions import Steering
from lensbridge.serve.subject import Prompt, Subject
from lensbridge.serve.views.predictions import change, logits_at
from lensbridge.serve.views.python import assigned, program
from lensbridge.serve.worker import Job


def steering(subject: Subject, asked: Steering, job: Job) -> Iterator[dict[str, Any]]:
    """One event with the next tokens, one for every generated token, and one at the end."""
    model = subject.model
    prompt, positive, negative = map(subject.read, (asked.prompt, asked.positive, asked.negative))
    count = _new_tokens(subject, asked, prompt)
    with torch.no_grad():
        vector = steering_vector(model, *_rows(positive, negative), ("resid_post", asked.layer))
        steer = vector.at(strength=asked.strength)
        before = logits_at(subject, prompt.given, -1)
        after = model.run_with_interventions(prompt.given, [steer])[0, -1].float()
    yield {
        "type": "start",
        "tokens": prompt.labels,
        "norm": float(vector.vector.norm()),
        "rows": change(subject, before, after, asked.k, int(before.argmax())),
        "new_tokens": count,
        "python": _python(subject, asked, prompt, positive, negative, count),
    }
    for side, interventions in (("plain", []), ("steered", [steer])):
        told = _Told(job)
        found = model.generate(
            prompt.given,
            count,
            do_sample=False,
            verbose=False,
            return_type="tokens",
            interventions=interventions,
            streamer=told,
        )
        new = found[0, len(prompt.ids) :].tolist()
        yield {"type": "text", "side": side, "labels": [subject.label(one) for one in new]}
    yield {"type": "end"}


def _rows(positive: Prompt, negative: Prompt) -> tuple[Any, Any]:
    """Each text as a list of one."""
    return [positive.given], [negative.given]


def _new_tokens(subject: Subject, asked: Steering, prompt: Prompt) -> int:
    """How many tokens to generate.

    Raises:
        InputError: more than the page generates.
    """
    most = subject.limits.max_new_tokens
    if asked.new_tokens > most:
        raise InputError(f"This page generates {most} tokens at most, not {asked.new_tokens}.")
    return asked.new_tokens


class _Told:
    """A streamer of transformers that ends a generation whose job is cancelled."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def put(self, value: Tensor) -> None:
        self.job.check()

    def end(self) -> None:
        """The text is complete."""


def _python(
    subject: Subject,
    asked: Steering,
    prompt: Prompt,
    positive: Prompt,
    negative: Prompt,
    count: int,
) -> str:
    return program(
        subject,
        assigned("prompt", prompt),
        f"positive = {literal([positive.given])}",
        f"negative = {literal([negative.given])}",
        f'steer = steering_vector(model, positive, negative, ("resid_post", {asked.layer}))',
        f"steer = steer.at(strength={asked.strength!r})",
        "before = model(prompt)[0, -1].detach()",
        "after = model.run_with_interventions(prompt, [steer])[0, -1].detach()",
        'options = {"do_sample": False, "verbose": False, "return_type": "tokens"}',
        f"plain = model.generate(prompt, {count}, **options)",
        f"steered = model.generate(prompt, {count}, interventions=[steer], **options)",
        *(
            ["print(model.to_string(plain[0]))", "print(model.to_string(steered[0]))"]
            if subject.has_tokenizer
            else ["print(plain[0], steered[0])"]
        ),
        imports="from lensbridge.interventions import steering_vector",
    )
