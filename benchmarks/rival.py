"""TransformerLens, where it is installed."""

import copy
from importlib import import_module
from importlib.util import find_spec
from typing import Any

NAME = "TransformerLens"


def installed() -> bool:
    """Whether TransformerLens can be imported."""
    return find_spec("transformer_lens") is not None


def build(model: Any) -> Any | None:
    """TransformerLens's bridge on a model, which it takes apart; None where it is not installed."""
    if not installed():
        return None
    builder = import_module("transformer_lens.model_bridge.sources._bridge_builder")
    config = copy.deepcopy(model.config)
    return builder.build_bridge_from_module(model, type(model).__name__, hf_config=config).eval()
