"""Ablation: the change of a token's logit when one head, MLP or mixer at a time is set to zero."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch

from lensbridge.cache import ActivationCache
from lensbridge.interventions import Zero
from lensbridge.interventions.intervention import Intervention
from lensbridge.serve.literals import literal
from lensbridge.serve.questions import Ablation
from lensbridge.serve.subject import Prompt, Subject
from lensbridge.serve.views.python import assigned, at, program, token
from lensbridge.serve.views.sweeping import check_cells, swept
from lensbridge.serve.worker import Job

Part: TypeAlias = "int | str"
"""The number of a head, or the short name of the point where a mixer or an MLP writes."""

_WHOLE = {"mixer_out": "mixer", "mlp_out": "MLP"}


def ablation(subject: Subject, asked: Ablation, job: Job) -> Iterator[dict[str, Any]]:
    """One event with the axes, one for every few cells, and one at the end."""
    prompt = subject.read(asked.prompt)
    position = prompt.position(asked.position)
    with torch.no_grad():
        logits, cache = subject.model.run_with_cache(prompt.given, names_filter=_is_ablated)
    row = logits[0, position].float()
    target = subject.target(asked.target, row)
    base = float(row[target])
    places = _places(subject, cache)
    check_cells(subject, len(places))
    columns = sorted({part for _, part in places}, key=_order)
    yield {
        "type": "start",
        "tokens": prompt.labels,
        "position": position,
        "target": subject.token(target),
        "logit": base,
        "layers": subject.model.cfg.n_layers,
        "columns": [_column(part) for part in columns],
        "cells": [[layer, columns.index(part)] for layer, part in places],
        "python": _python(subject, prompt, position, target, places),
    }
    cells = [_edit(layer, part) for layer, part in places]
    for start, values in swept(subject, prompt.given, cells, lambda x: x[0, position, target], job):
        yield {"type": "cells", "start": start, "values": [value - base for value in values]}
    yield {"type": "end"}


def _is_ablated(name: str) -> bool:
    return name.endswith(("attn.hook_z", "hook_mixer_out", "hook_mlp_out"))


def _places(subject: Subject, cache: ActivationCache) -> list[tuple[int, Part]]:
    """Each layer with each of its parts."""
    prefix, found = subject.model.native.main.prefix, list[tuple[int, Part]]()
    for layer in range(subject.model.cfg.n_layers):
        name = f"{prefix}.{layer}.attn.hook_z"
        heads = cache[name].shape[2] if name in cache else 0
        found += [(layer, head) for head in range(heads)]
        found += [(layer, one) for one in _WHOLE if f"{prefix}.{layer}.hook_{one}" in cache]
    return found


def _order(part: Part) -> tuple[bool, int, str]:
    return (False, part, "") if isinstance(part, int) else (True, 0, part)


def _column(part: Part) -> dict[str, Any]:
    """A column of the map: its name, and the part that an edit of it is for."""
    if isinstance(part, int):
        return {"label": f"head {part}", "part": "head", "index": part}
    return {"label": _WHOLE[part], "part": part.removesuffix("_out")}


def _edit(layer: int, part: Part) -> Intervention:
    if isinstance(part, int):
        return Zero(("z", layer), heads=part)
    return Zero((part, layer))


def _listed(places: list[tuple[int, Part]]) -> str:
    """The places as Python, in short where every layer has the same."""
    layers = len({layer for layer, _ in places})
    first = [part for layer, part in places if layer == places[0][0]]
    heads = sum(isinstance(part, int) for part in first)
    names = [literal(part) for part in first[heads:]]
    within = f"({', '.join([f'*range({heads})', *names])},)" if names else f"range({heads})"
    if places == [(layer, part) for layer in range(layers) for part in first]:
        return f"[(layer, part) for layer in range({layers}) for part in {within}]"
    return literal(places)


def _python(
    subject: Subject,
    prompt: Prompt,
    position: int,
    target: int,
    places: list[tuple[int, Part]],
) -> str:
    return program(
        subject,
        assigned("prompt", prompt),
        at(prompt, position),
        token(subject, "answer", target),
        f"places = {_listed(places)}",
        "edits = [",
        '    Zero(("z", layer), heads=part) if isinstance(part, int) else Zero((part, layer))',
        "    for layer, part in places",
        "]",
        "result = model.sweep(",
        "    prompt, edits, lambda logits: logits[0, position, answer], baseline=True",
        ")",
        "effect = result.effect()",
        "print(places[int(effect.argmin())], float(effect.min()))",
        imports="from lensbridge.interventions import Zero",
    )
