"""TransformerLens's modules. They are not here: HuggingFace's own modules compute."""

from typing import Any


def __getattr__(name: str) -> Any:
    if not name[0].isupper():  # names that tools look up in every module
        raise AttributeError(name)
    raise ImportError(
        f"There is no {name} here: layers are HuggingFace's modules. Use model.blocks[0].attn and "
        "the like, which have points and weights and can be called; HookedTransformer(cfg) makes a "
        "model."
    )
