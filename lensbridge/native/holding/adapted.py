"""Layers of PEFT around a layer of the model: LoRA, DoRA, IA3, retrained modules."""

from torch import nn

from lensbridge.native.holding.kinds import Held

_AROUND = ("base_layer", "original_module")


def found(module: nn.Module, name: str) -> Held | None:
    """How a weight is held if PEFT adapts its layer, otherwise None."""
    if any(inner in module._modules for inner in _AROUND):
        return Held(
            "adapted",
            f"adapted by PEFT ({_method(module)}): it is made of several parameters",
            "Merge the adapter first (merge_and_unload()), or write to its parameters in "
            "model.hf_model.",
            "by running the module",
        )
    return None


def _method(module: nn.Module) -> str:
    """What the adapter is called: LoRA from `peft.tuners.lora.layer`."""
    package = type(module).__module__.split(".")
    name = package[2] if package[:2] == ["peft", "tuners"] and len(package) > 2 else ""
    return {"lora": "LoRA", "ia3": "IA3", "adalora": "AdaLoRA"}.get(name, type(module).__name__)
