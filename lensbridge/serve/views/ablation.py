"""Ablation: the change of a token's logit when one head or MLP at a time is set to zero."""

from collections.abc import Iterator
from typing import Any

import torch

from lensbridge.interventions import Zero
from lensbridge.interventions.intervention import Intervention
from lensbridge.serve.questions import Ablation
from lensbridge.serve.subject import Prompt, Subject
from lensbridge.serve.views.python import assigned, at, program, token
from lensbridge.serve.views.sweeping import check_cells, swept
from lensbridge.serve.worker import Job


def ablation(subject: Subject, asked: Ablation, job: Job) -> Iterator[dict[str, Any]]:
    """One event with the axes, one for every few cells, and one at the end."""
    prompt = subject.read(asked.prompt)
    position = prompt.position(asked.position)
    with torch.no_grad():
        logits, cache = subject.model.run_with_cache(
            prompt.given, names_filter=lambda name: name.endswith(("hook_z", "hook_mlp_out"))
        )
    row = logits[0, position].float()
    target = subject.target(asked.target, row)
    base = float(row[target])
    heads = {i: cache["z", i].shape[2] for i in _layers(subject, cache, "z")}
    mlps = _layers(subject, cache, "mlp_out")
    places = [(i, head) for i, count in heads.items() for head in range(count)]
    places += [(i, None) for i in mlps]
    places.sort(key=lambda place: (place[0], place[1] is None, place[1] or 0))
    check_cells(subject, len(places))
    yield {
        "type": "start",
        "tokens": prompt.labels,
        "position": position,
        "target": subject.token(target),
        "logit": base,
        "layers": subject.model.cfg.n_layers,
        "heads": max(heads.values(), default=0),
        "mlp": bool(mlps),
        "cells": [[layer, head] for layer, head in places],
        "python": _python(subject, prompt, position, target, places),
    }
    cells = [_edit(layer, head) for layer, head in places]
    for start, values in swept(subject, prompt.given, cells, lambda x: x[0, position, target], job):
        yield {"type": "cells", "start": start, "values": [value - base for value in values]}
    yield {"type": "end"}


def _layers(subject: Subject, cache: Any, point: str) -> list[int]:
    prefix = subject.model.native.main.prefix
    ending = {"z": "attn.hook_z", "mlp_out": "hook_mlp_out"}[point]
    count = subject.model.cfg.n_layers
    return [i for i in range(count) if f"{prefix}.{i}.{ending}" in cache]


def _edit(layer: int, head: int | None) -> Intervention:
    return Zero(("mlp_out", layer)) if head is None else Zero(("z", layer), heads=head)


def _listed(places: list[tuple[int, int | None]]) -> str:
    """The places as Python, in short where every layer has the same."""
    layers = list(dict.fromkeys(layer for layer, _ in places))
    first = [head for layer, head in places if layer == layers[0]]
    heads = [head for head in first if head is not None]
    within = f"range({len(heads)})" if None not in first else f"(*range({len(heads)}), None)"
    alike = places == [(layer, head) for layer in range(len(layers)) for head in first]
    short = f"[(layer, head) for layer in range({len(layers)}) for head in {within}]"
    return short if alike else repr(places)


def _python(
    subject: Subject,
    prompt: Prompt,
    position: int,
    target: int,
    places: list[tuple[int, int | None]],
) -> str:
    return program(
        subject,
        assigned("prompt", prompt),
        at(prompt, position),
        token(subject, "answer", target),
        f"places = {_listed(places)}  # layer, head; None is the MLP",
        "edits = [",
        '    Zero(("mlp_out", layer)) if head is None else Zero(("z", layer), heads=head)',
        "    for layer, head in places",
        "]",
        "result = model.sweep(",
        "    prompt, edits, lambda logits: logits[0, position, answer], baseline=True",
        ")",
        "effect = result.effect()",
        "print(places[int(effect.argmin())], float(effect.min()))",
        imports="from lensbridge.interventions import Zero",
    )
