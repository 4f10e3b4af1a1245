"""TransformerLens builds models from these; here HuggingFace's own modules compute."""

from typing import Any


def __getattr__(name: str) -> Any:
    if not name[0].isupper():  # what tools ask of every module
        raise AttributeError(name)
    raise ImportError(
        f"There is no {name} here: layers are HuggingFace's modules. model.blocks[0].attn and its "
        "like have points and weights and can be called, and HookedTransformer(cfg) makes a model."
    )
