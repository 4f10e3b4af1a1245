"""nnterp: standard names on top of nnsight.

Its documented way is `StandardizedTransformer(path)`. Patterns need
`enable_attention_probs=True`, which loads the model with eager attention.
"""

# ruff: noqa: RET504  a name in a trace is what the trace leaves behind

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from nnterp import StandardizedTransformer
from torch import Tensor

from benchmarks.comparison.families import Family
from benchmarks.comparison.outcomes import NotOffered
from benchmarks.comparison.tokenizer import demo_tokenizer
from benchmarks.comparison.tools.base import Change, Opened, Place, Tool

EAGER = "the model is loaded with eager attention (`enable_attention_probs`)"
NAMES = {"resid_pre": "layers_input", "resid_post": "layers_output"}


class Standard(Opened):
    """`StandardizedTransformer`, on a folder and, for patterns, again on the same folder."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family)
        self.folder = tempfile.TemporaryDirectory()
        model.save_pretrained(self.folder.name)
        demo_tokenizer().save_pretrained(self.folder.name)
        self.how = {"dtype": model.dtype, "device_map": "cpu"}
        self.plain = StandardizedTransformer(model, tokenizer=demo_tokenizer())

    def points(self) -> tuple[str, ...]:
        return ("resid_pre", "resid_post", "pattern")

    def run(self, places: Sequence[Place]) -> Any:
        """The model for a run at some places."""
        for kind, _ in places:
            if kind in ("resid_mid", "z"):
                raise NotOffered(f"no standard name for {kind}; nnsight's own paths reach it")
        if any(kind == "pattern" for kind, _ in places):
            self.notes.append(EAGER)
            return StandardizedTransformer(
                self.folder.name, enable_attention_probs=True, **self.how
            )
        return self.plain

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        more = {} if mask is None else {"attention_mask": mask}
        with self.plain.trace(ids, **more):
            logits = self.plain.logits.save()
        return logits

    def read(self, ids: Tensor, places: Sequence[Place]) -> tuple[Tensor, list[Tensor]]:
        model = self.run(places)
        with model.trace(ids):
            values: Any = list().save()  # noqa: C408
            for kind, layer in places:
                values.append(_named(model, kind)[layer])
            logits = model.logits.save()
        return logits, list(values)

    def edit(self, ids: Tensor, place: Place, change: Change) -> Tensor:
        model = self.run([place])
        kind, layer = place
        with model.trace(ids):
            named = _named(model, kind)
            named[layer] = change(named[layer])
            logits = model.logits.save()
        return logits

    def gradient(self, ids: Tensor, place: Place, scalar: Callable[[Tensor], Tensor]) -> Tensor:
        model = self.run([place])
        kind, layer = place
        with model.trace(ids):
            value = _named(model, kind)[layer]
            with scalar(model.logits).backward():
                grad = value.grad.save()
        return grad

    def generate(self, ids: Tensor, place: Place, change: Change, new: int, **how: Any) -> Tensor:
        model = self.run([place])
        kind, layer = place
        with model.generate(ids, max_new_tokens=new, do_sample=False, **how) as tracer:
            out = list().save()  # noqa: C408
            with tracer.iter[:new]:
                named = _named(model, kind)
                named[layer] = change(named[layer])
            out.append(model.generator.output)
        return out[0]

    def misspell(self, ids: Tensor) -> object:
        with self.plain.trace(ids):
            value = self.plain.layers_outptu[0].save()
        return value

    def misspell_among(self, ids: Tensor) -> object:
        with self.plain.trace(ids):
            right = self.plain.layers_output[0].save()
            value = self.plain.layers_outptu[1].save()
        return right, value


def _named(model: Any, kind: str) -> Any:
    return model.attention_probabilities if kind == "pattern" else getattr(model, NAMES[kind])


TOOL = Tool("nnterp", "nnterp", Standard)
