"""pyvene: at named components of the models that it knows, at module paths of others."""

from collections.abc import Sequence
from typing import Any

import pyvene
import torch
from pyvene.models.intervenable_modelcard import type_to_module_mapping
from torch import Tensor

from benchmarks.comparison.families import HEADS
from benchmarks.comparison.outcomes import NotOffered
from benchmarks.comparison.tools.base import Change, Opened, Place, Tool

COMPONENTS = {
    "resid_pre": "block_input",
    "resid_post": "block_output",
    "z": "attention_value_output",
    "pattern": "attention_weight",
}
PATHS = {"resid_pre": ("block", "input"), "resid_post": ("block", "output"), "z": ("out", "input")}


class Interventions(Opened):
    """`IntervenableModel` with collecting interventions and functions."""

    def points(self) -> tuple[str, ...]:
        return ("resid_pre", "resid_post", "z")

    def at(self, place: Place) -> dict[str, Any]:
        """Where an intervention is."""
        kind, layer = place
        known = type_to_module_mapping.get(type(self.model), {})
        if COMPONENTS.get(kind) in known:
            return {"layer": layer, "component": COMPONENTS[kind]}
        if kind not in PATHS:
            raise NotOffered(f"no component for {kind} on this model")
        part, side = PATHS[kind]
        path = self.family.path(part, layer).replace(f".{layer}", f"[{layer}]")
        return {"component": f"{path}.{side}"}

    def model_with(self, *interventions: dict[str, Any]) -> Any:
        """The model with interventions."""
        return pyvene.IntervenableModel(list(interventions), self.model)

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.model_with()(_inputs(ids, mask), output_original_output=True)[0].logits

    def read(self, ids: Tensor, places: Sequence[Place]) -> tuple[Tensor, list[Tensor]]:
        known = type(self.model) in type_to_module_mapping
        logits, values = self._collect(ids, places) if known else self._listen(ids, places)
        return logits, [_as_heads(place, one) for place, one in zip(places, values, strict=True)]

    def _collect(self, ids: Tensor, places: Sequence[Place]) -> tuple[Tensor, list[Tensor]]:
        """With `CollectIntervention`, at all positions."""
        how = {"intervention_type": pyvene.CollectIntervention, "max_number_of_units": ids.shape[1]}
        model = self.model_with(*({**self.at(place), **how} for place in places))
        (_, values), out = model(_inputs(ids), unit_locations={"base": list(range(ids.shape[1]))})
        return out.logits, values

    def _listen(self, ids: Tensor, places: Sequence[Place]) -> tuple[Tensor, list[Tensor]]:
        """With functions that keep what they see: collecting needs a model that pyvene knows."""
        kept: list[Tensor] = []

        def keep(base: Tensor, source: object) -> Tensor:
            kept.append(base.clone())
            return base

        model = self.model_with(*({**self.at(place), "intervention": keep} for place in places))
        return model(_inputs(ids))[1].logits, kept

    def edit(self, ids: Tensor, place: Place, change: Change) -> Tensor:
        model = self.model_with(
            {**self.at(place), "intervention": lambda base, source: change(base)}
        )
        if torch.is_grad_enabled():
            model.enable_model_gradients()
            self.model.eval()  # that call also switches to training
        return model(_inputs(ids))[1].logits

    def generate(self, ids: Tensor, place: Place, change: Change, new: int, **how: Any) -> Tensor:
        model = self.model_with(
            {**self.at(place), "intervention": lambda base, source: change(base)}
        )
        return model.generate(
            _inputs(ids), intervene_on_prompt=True, max_new_tokens=new, do_sample=False, **how
        )[1]

    def misspell(self, ids: Tensor) -> object:
        collect = {"intervention_type": pyvene.CollectIntervention}
        return self.model_with({"layer": 0, "component": "block_outptu", **collect})(_inputs(ids))

    def misspell_among(self, ids: Tensor) -> object:
        collect = {"intervention_type": pyvene.CollectIntervention}
        right = {**self.at(("resid_post", 0)), **collect}
        wrong = {"layer": 1, "component": "block_outptu", **collect}
        return self.model_with(right, wrong)(_inputs(ids))


def _inputs(ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    return {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}


def _as_heads(place: Place, value: Tensor) -> Tensor:
    return value.unflatten(-1, (HEADS, -1)) if place[0] == "z" else value


TOOL = Tool("pyvene", "pyvene", Interventions)
