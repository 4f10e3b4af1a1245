"""Edits of a run: the predictions with them and without them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lensbridge.errors import InputError
from lensbridge.interventions import Mean, Scale, Swap, Zero
from lensbridge.interventions.intervention import Intervention
from lensbridge.serve.literals import literal
from lensbridge.serve.questions import Edit, Edits
from lensbridge.serve.subject import Prompt, Subject
from lensbridge.serve.views.predictions import change, logits_at
from lensbridge.serve.views.python import assigned, at, program
from lensbridge.serve.worker import Job

SITES = {
    "head": "z",
    "attn": "attn_out",
    "mixer": "mixer_out",
    "mlp": "mlp_out",
    "stream": "resid_pre",
    "neuron": "post",
}
"""The point of each part that can be edited."""

_NUMBERED = {"head": "heads", "neuron": "neurons"}


@torch.no_grad()
def edits(subject: Subject, asked: Edits, job: Job) -> dict[str, Any]:
    """The likeliest tokens before and after some edits."""
    prompt = subject.read(asked.prompt)
    position = prompt.position(asked.position)
    written = _Written(subject, prompt, asked.edits)
    interventions = [written.intervention(one) for one in asked.edits]
    before = logits_at(subject, prompt.given, position)
    target = subject.target(asked.target, before)
    job.check()
    after = subject.model.run_with_interventions(prompt.given, interventions)[0, position].float()
    return {
        "tokens": prompt.labels,
        "position": position,
        "target": subject.token(target),
        "rows": change(subject, before, after, asked.k, target),
        "python": program(
            subject,
            assigned("prompt", prompt),
            at(prompt, position),
            *written.lines,
            "edits = [",
            *[f"    {one}," for one in written.edits],
            "]",
            "before = model(prompt)[0, position].detach()",
            "after = model.run_with_interventions(prompt, edits)[0, position].detach()",
            "print((after - before).abs().max())",
            imports=f"from lensbridge.interventions import {', '.join(sorted(written.kinds))}",
        ),
    }


@dataclass
class _Written:
    """Interventions, and the Python that makes them.

    Attributes:
        lines: Python that reads what patches take their values from.
        edits: Python of each intervention.
        kinds: the classes that it names.
    """

    subject: Subject
    prompt: Prompt
    asked: Sequence[Edit]
    lines: list[str] = field(default_factory=list)
    edits: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    _sources: dict[str, tuple[str, Prompt, Any]] = field(default_factory=dict)

    def intervention(self, edit: Edit) -> Intervention:
        """The intervention of an edit.

        Raises:
            InputError: the edit lacks what its part or action needs, or the prompt the position.
        """
        site = _site(edit)
        place = self._place(edit)
        if edit.action == "zero":
            return self._made(Zero, [site], place)
        if edit.action == "mean":
            return self._made(Mean, [site], {"over": "all", **place})
        if edit.action == "scale":
            return self._made(Scale, [site, edit.factor], place)
        name, source, cache = self._source(edit)
        if edit.position is not None:
            taken = edit.position if edit.source_position is None else edit.source_position
            place["source_positions"] = source.position(taken)
        return self._made(Swap, [site, cache], place, names=[literal(site), name])

    def _made(
        self, kind: Any, values: Sequence[Any], place: dict[str, Any], names: Any = None
    ) -> Intervention:
        written = [*(names or map(literal, values)), *[f"{key}={place[key]!r}" for key in place]]
        self.kinds.add(kind.__name__)
        self.edits.append(f"{kind.__name__}({', '.join(written)})")
        return kind(*values, **place)

    def _place(self, edit: Edit) -> dict[str, Any]:
        place: dict[str, Any] = {}
        counted = _NUMBERED.get(edit.part)
        if (counted is None) != (edit.index is None):
            raise InputError(
                f"An edit of {'a ' + edit.part if counted else edit.part!r} needs "
                f"{'the number of the ' + edit.part if counted else 'no number'}."
            )
        if counted is not None:
            place[counted] = edit.index
        if edit.position is not None:
            place["positions"] = self.prompt.position(edit.position)
        return place

    def _source(self, edit: Edit) -> tuple[str, Prompt, Any]:
        """The prompt that a patch takes its values from, under a name, and its activations.

        Raises:
            InputError: the edit has no such prompt.
        """
        text = edit.source
        if not text:
            raise InputError("A patch needs a second prompt, which its values are taken from.")
        if text not in self._sources:
            source, name = self.subject.read(text), f"source_{len(self._sources)}"
            sites = list(dict.fromkeys(_site(one) for one in self.asked if one.source == text))
            model = self.subject.model
            with torch.no_grad():
                _, cache = model.run_with_cache(source.given, names_filter=sites, return_type=None)
            self._sources[text] = (name, source, cache)
            self.lines += [
                f"_, {name} = model.run_with_cache(",
                f"    {literal(source.given)}, names_filter={literal(sites)}",
                ")",
            ]
        return self._sources[text]


def _site(edit: Edit) -> tuple[str, int]:
    return (SITES[edit.part], edit.layer)
