"""Which model types a tool opens: a sample of the causal language models of transformers."""

import importlib.util
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison.outcomes import first_line, gap
from benchmarks.comparison.tokenizer import demo_tokenizer

RECORD = Path(__file__).resolve().parents[2] / "docs" / "coverage.py"
TASK = "causal language models"
SAMPLE = 40
SECONDS = 60


@cache
def record() -> Any:
    """docs/coverage.py, which builds a tiny model of each type."""
    spec = importlib.util.spec_from_file_location("coverage_record", RECORD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coverage_record"] = module
    spec.loader.exec_module(module)
    return module


def sample() -> list[Any]:
    """Types spread evenly over the alphabet, of those that can be built tiny and read ids alone."""
    known = record().load_record()
    types = [
        kind
        for kind in record().kinds()
        if kind.task == TASK and known.get(kind.key, {}).get("how") not in (None, "not built")
    ]
    step = len(types) / SAMPLE
    return [types[int(index * step)] for index in range(SAMPLE)]


def covers(tool: str) -> dict[str, str]:
    """What comes of each type of the sample with a tool."""
    return {kind.type: _try(kind, WAYS[tool]) for kind in sample()}


def recorded() -> dict[str, Any]:
    """What docs/coverage.json says of all types and of the sample."""
    known = record().load_record()
    chosen = {kind.key for kind in sample()}
    everything = [one for one in known.values() if one["how"] != "not built"]
    tried = [one for one in everything if one.get("transformer_lens", "not tried") != "not tried"]
    return {
        "types": len(everything),
        "lensbridge": sum(bool(one.get("conforms")) for one in everything),
        "lensbridge_of_tried": sum(bool(one.get("conforms")) for one in tried),
        "tried": len(tried),
        "TransformerLens": sum(one["transformer_lens"].startswith("runs") for one in tried),
        "TransformerLens_patterns": sum(one["transformer_lens"] == "runs" for one in tried),
        "sample": {
            known_as.partition("/")[2]: {
                "lensbridge": "named" if one.get("conforms") else one["how"],
                "TransformerLens": one.get("transformer_lens", "not tried"),
            }
            for known_as, one in known.items()
            if known_as in chosen
        },
    }


def _try(kind: Any, way: Callable[[Any, Tensor, Tensor], str]) -> str:
    try:
        with record().limited(SECONDS), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model = record().tiny(kind)
            given = record().inputs_for(model)
            if set(given) != {"input_ids"}:
                return "not tried"
            wanted = model(**given).logits.clone()
            return way(model, given["input_ids"], wanted)
    except Exception as error:
        return f"refused ({first_line(error)})"


def _nnsight(model: Any, ids: Tensor, wanted: Tensor) -> str:
    from nnsight import TransformersModel

    traced = TransformersModel(model, tokenizer=demo_tokenizer())
    with traced.trace(ids):
        logits = traced.output.logits.save()
    return "opens, no names" if gap(logits, wanted) < 1e-4 else "other logits"


def _nnterp(model: Any, ids: Tensor, wanted: Tensor) -> str:
    from nnterp import StandardizedTransformer

    named = StandardizedTransformer(model, tokenizer=demo_tokenizer())
    with named.trace(ids):
        logits = named.logits.save()
    if gap(logits, wanted) >= 1e-4:
        return "other logits"
    with named.trace(ids):
        named.layers_output[0] = named.layers_output[0] * 0.5
        edited = named.logits.save()
    return "named" if gap(edited, wanted) > 1e-4 else "named, edits do nothing"


def _pyvene(model: Any, ids: Tensor, wanted: Tensor) -> str:
    import pyvene
    from pyvene.models.intervenable_modelcard import type_to_module_mapping

    if type(model) not in type_to_module_mapping:
        run = pyvene.IntervenableModel([], model)({"input_ids": ids}, output_original_output=True)
        return "opens, no names" if gap(run[0].logits, wanted) < 1e-4 else "other logits"
    half = {"layer": 0, "component": "block_output", "intervention": lambda base, source: base / 2}
    edited = pyvene.IntervenableModel([half], model)({"input_ids": ids})[1].logits
    return "named" if gap(edited, wanted) > 1e-4 else "named, edits do nothing"


WAYS = {"nnsight": _nnsight, "nnterp": _nnterp, "pyvene": _pyvene}
