"""Steering: a text continued with the direction between two texts, and without it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.generation.options import ends, generation_config
from lensbridge.interventions import Steer, steering_vector
from lensbridge.model import LensModel
from lensbridge.serve.literals import literal
from lensbridge.serve.questions import Steering
from lensbridge.serve.subject import Prompt, Subject
from lensbridge.serve.views.predictions import change, logits_at
from lensbridge.serve.views.python import assigned, program
from lensbridge.serve.worker import Job

_STEP = 4
"""Tokens that are generated at once. Between two steps other questions are answered."""


def steering(subject: Subject, asked: Steering, job: Job) -> Iterator[dict[str, Any]]:
    """One event with the next tokens, several with what is generated, and one at the end."""
    model = subject.model
    prompt, positive, negative = map(subject.read, (asked.prompt, asked.positive, asked.negative))
    count = _new_tokens(subject, asked, prompt)
    with torch.no_grad():
        pair = [positive.given], [negative.given]
        vector = steering_vector(model, *pair, ("resid_post", asked.layer))
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
    texts = {"plain": _Text(model, prompt.ids, []), "steered": _Text(model, prompt.ids, [steer])}
    for made in range(0, count, _STEP):
        for side, text in texts.items():
            new = text.grow(min(_STEP, count - made), job)
            if new:
                yield {"type": "text", "side": side, "labels": [subject.label(one) for one in new]}
    yield {"type": "end"}


def _new_tokens(subject: Subject, asked: Steering, prompt: Prompt) -> int:
    """How many tokens to generate.

    Raises:
        InputError: more than the page generates, or than the context has room for.
    """
    most, context = subject.limits.max_new_tokens, subject.model.cfg.n_ctx
    if asked.new_tokens > most:
        raise InputError(f"This page generates {most} tokens at most, not {asked.new_tokens}.")
    if context is not None and len(prompt.ids) + asked.new_tokens > context:
        raise InputError(
            f"The prompt has {len(prompt.ids)} tokens and {asked.new_tokens} new ones are asked "
            f"for; the context is {context}. Shorten the prompt, or ask for fewer."
        )
    return asked.new_tokens


class _Text:
    """A text that is continued a few tokens at a time, with the likeliest ones."""

    def __init__(self, model: LensModel, ids: list[int], interventions: list[Steer]) -> None:
        self.model = model
        self.ids = list(ids)
        self.interventions = interventions
        self.ends = ends(generation_config(model.native.core, model.tokens, {}, True))
        self.has_ended = False

    def grow(self, count: int, job: Job) -> list[int]:
        """The next tokens, up to the end of the text."""
        if self.has_ended:
            return []
        found = self.model.generate(
            torch.tensor([self.ids]),
            count,
            do_sample=False,
            verbose=False,
            return_type="tokens",
            interventions=self.interventions,
            streamer=_Told(job),
        )
        new: list[int] = found[0, len(self.ids) :].tolist()
        self.ids += new
        self.has_ended = len(new) < count or new[-1] in self.ends
        return new


class _Told:
    """A streamer of transformers that ends a generation whose job is cancelled."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def put(self, value: Tensor) -> None:
        """More tokens."""
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
