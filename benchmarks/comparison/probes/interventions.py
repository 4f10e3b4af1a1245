"""pyvene."""

import tempfile
from typing import Any

import pyvene
import torch

from benchmarks.comparison.families import build
from benchmarks.comparison.outcomes import Outcome, gap, is_true
from benchmarks.comparison.probes import models, offered
from benchmarks.comparison.probes.models import CLEAN, CORRUPTED

IDS, OTHERS = {"input_ids": CLEAN}, {"input_ids": CORRUPTED}


def _edited(model: Any, component: str, given: dict[str, Any]) -> Outcome:
    plain = model(**given).logits
    one = {"component": component, "intervention": lambda base, source: torch.rand_like(base)}
    out = pyvene.IntervenableModel([one], model)(given)[1].logits
    return is_true(gap(out, plain) > 1e-4, "the edit has no effect")


def _any() -> Outcome:
    model = torch.nn.Sequential(torch.nn.Linear(5, 10), torch.nn.Linear(10, 2))
    one = {"component": "0.output", "intervention": lambda base, source: base * 0}
    out = pyvene.IntervenableModel([one], model)({"input": torch.rand(1, 5)})[1]
    return is_true(gap(out[0], model[1].bias) < 1e-6, "off")


def _vanilla(model: Any) -> Any:
    how = {"component": "block_output", "intervention_type": pyvene.VanillaIntervention}
    return pyvene.IntervenableModel(pyvene.IntervenableConfig([{"layer": 0, **how}]), model)


def _saved() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        _vanilla(models.gpt2()).save(folder)
        return str(pyvene.IntervenableModel.load(folder, models.gpt2()))


def _das() -> Any:
    how = {
        "layer": 0,
        "component": "block_output",
        "low_rank_dimension": 2,
        "intervention_type": pyvene.LowRankRotatedSpaceIntervention,
    }
    with torch.enable_grad():
        model = pyvene.IntervenableModel([how], models.gpt2())
        out = model(IDS, [OTHERS], {"sources->base": 2})[1]
        models.metric(out.logits).backward()
    trained = [one for one in model.get_trainable_parameters() if one.grad is not None]
    return is_true(bool(trained), "no gradient reaches the rotation")


def _noise() -> Any:
    how = {"component": "block_input", "intervention_type": pyvene.NoiseIntervention}
    model = pyvene.IntervenableModel([{"layer": 0, "max_number_of_units": 4, **how}], models.gpt2())
    return model(IDS, unit_locations={"base": [0, 1, 2, 3]})[1].logits


PROBES = {
    "any_module": _any,
    "remote": lambda: offered(hasattr(pyvene, "IntervenableNdifModel"), "no such class"),
    "save": _saved,
    "das": _das,
    "interchange": lambda: _vanilla(models.gpt2())(IDS, [OTHERS], {"sources->base": 2})[1].logits,
    "causal_trace": _noise,
    "state_space": lambda: _edited(models.mamba(), "backbone.layers[0].output", IDS),
    "router": lambda: _edited(build("mixtral"), "model.layers[0].mlp.gate.input", IDS),
    "vision": lambda: _edited(
        models.vit(), "vit.layers[0].output", {"pixel_values": models.image()}
    ),
    "new_class": lambda: _edited(build("opt"), "model.decoder.layers[0].output", IDS),
}
