"""nnsight: traces over the model's own modules, and over the lines of their code (`source`).

nnsight has no names of its own for points, so each place is a path in the family's model. A
user finds it with `print(model)` and `print(module.source)`.
"""

# ruff: noqa: RET504  a name in a trace is what the trace leaves behind

from collections.abc import Callable, Sequence
from typing import Any

from nnsight import TransformersModel
from torch import Tensor

from benchmarks.comparison.families import HEADS, Family
from benchmarks.comparison.outcomes import NotOffered
from benchmarks.comparison.tokenizer import demo_tokenizer
from benchmarks.comparison.tools.base import Change, Opened, Place, Tool

EAGER = "the model must run eager attention, whose code has a line for it"


class Trace(Opened):
    """`TransformersModel(model)`."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__(model, family)
        self.traced = TransformersModel(model, tokenizer=demo_tokenizer())

    def points(self) -> tuple[str, ...]:
        middle = self.family.middle is not None
        return tuple(one for one in super().points() if one != "resid_mid" or middle)

    def prepare(self, places: Sequence[Place]) -> None:
        """What a user must do before a trace of such places."""
        if any(kind == "pattern" for kind, _ in places):
            self.model.set_attn_implementation("eager")
            self.notes.append(EAGER)

    def spot(self, place: Place) -> tuple[Any, str]:
        """What to read or write inside a trace: something with `.input` or `.output`."""
        kind, layer = place
        part = {"z": "out", "pattern": "attn"}.get(kind, "block")
        module = self.traced.get(self.family.path(part, layer))
        if kind == "pattern":
            calls = module.source.attention_interface_1
            return calls.source.nn_functional_dropout_0, "output"
        if kind == "resid_mid":
            if self.family.middle is None:
                raise NotOffered("the branches run in parallel: there is no stream between them")
            return getattr(module.source, self.family.middle), "output"
        return module, "output" if kind == "resid_post" else "input"

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        more = {} if mask is None else {"attention_mask": mask}
        with self.traced.trace(ids, **more):
            logits = self.traced.output.logits.save()
        return logits

    def read(self, ids: Tensor, places: Sequence[Place]) -> tuple[Tensor, list[Tensor]]:
        self.prepare(places)
        with self.traced.trace(ids):
            values: Any = list().save()  # noqa: C408
            spots = [self.spot(place) for place in places]  # before the model runs past them
            for spot, side in spots:
                values.append(getattr(spot, side))
            logits = self.traced.output.logits.save()
        return logits, [
            self._as_heads(place, one) for place, one in zip(places, values, strict=True)
        ]

    def edit(self, ids: Tensor, place: Place, change: Change) -> Tensor:
        self.prepare([place])
        with self.traced.trace(ids):
            spot, side = self.spot(place)
            setattr(spot, side, change(getattr(spot, side)))
            logits = self.traced.output.logits.save()
        return logits

    def gradient(self, ids: Tensor, place: Place, scalar: Callable[[Tensor], Tensor]) -> Tensor:
        with self.traced.trace(ids):
            spot, side = self.spot(place)
            value = getattr(spot, side)
            with scalar(self.traced.output.logits).backward():
                grad = value.grad.save()
        return grad

    def generate(self, ids: Tensor, place: Place, change: Change, new: int, **how: Any) -> Tensor:
        with self.traced.generate(ids, max_new_tokens=new, do_sample=False, **how) as tracer:
            for _ in tracer.iter[:new]:
                spot, side = self.spot(place)
                setattr(spot, side, change(getattr(spot, side)))
            result = tracer.result.save()
        return result

    def misspell(self, ids: Tensor) -> object:
        with self.traced.trace(ids):
            value = self.traced.get(self.family.path("block", 0) + "z").output.save()
        return value

    def misspell_among(self, ids: Tensor) -> object:
        with self.traced.trace(ids):
            right = self.traced.get(self.family.path("block", 0)).output.save()
            value = self.traced.get(self.family.path("block", 0) + "z").output.save()
        return right, value

    def _as_heads(self, place: Place, value: Tensor) -> Tensor:
        return value.unflatten(-1, (HEADS, -1)) if place[0] == "z" else value


TOOL = Tool("nnsight", "nnsight", Trace)
