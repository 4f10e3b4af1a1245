"""Layers of PEFT around a layer of the model: LoRA, DoRA, IA3, retrained modules."""

from torch import nn

from lensbridge.native.holding.kinds import Held

_AROUND = ("base_layer", "original_module")


def found(module: nn.Module, name: str) -> Held | None:
    """How a weight is held if PEFT adapts its layer, otherwise None."""
    if any(inner in module._modules for inner in _AROUND):
        return Held(
            "adapted",
            f"adapted by PEFT ({type(module).__name__}): it is made of several parameters",
            "Merge the adapter first (merge_and_unload()), or write to its parameters in "
            "model.hf_model.",
            "by running the module",
        )
    return None
