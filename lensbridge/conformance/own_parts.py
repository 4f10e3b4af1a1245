"""What a model has that an empty slot of a description could name."""

from collections.abc import Iterable, Iterator

from torch import nn

from lensbridge.native.parts import AttentionPart

OF_NORMS = ("pre_attn", "post_attn", "pre_mlp", "post_mlp")
"""Slots for norms that the layer holds."""

OF_ATTENTION = ("sinks", "q_norm", "k_norm", "v_norm")
"""Slots for what attention holds."""

OF_ENDS: dict[str, type[nn.Module] | None] = {
    "embed": nn.Embedding,
    "pos_embed": nn.Embedding,
    "unembed": nn.Linear,
    "embed_norm": None,
    "final_norm": None,
}
"""Slots for what stands before and after the layers, and its class; None: a norm."""


def of_ends(slot: str, model: nn.Module, layers: Iterable[nn.Module]) -> Iterator[str]:
    """The modules outside the layers that could be this one."""
    inside = {one for layer in layers for one in layer.modules()}
    wanted = OF_ENDS[slot]
    for path, one in model.named_modules():
        fits = _is_norm(one) if wanted is None else isinstance(one, wanted)
        if one not in inside and fits:
            yield path


def own_norms(layers: Iterable[nn.Module]) -> Iterator[str]:
    """The norms that layers hold themselves."""
    for layer in layers:
        yield from (name for name, one in layer.named_children() if _is_norm(one))


def of_attention(slot: str, parts: Iterable[AttentionPart]) -> Iterator[str]:
    """The parameters that could be the sinks, or the norms that could be that of q, k or v."""
    for part in parts:
        own = part.module
        if slot == "sinks":
            named = own.named_parameters(recurse=False)
            yield from (name for name, one in named if one.numel() == part.n_heads)
        else:
            norms = (name for name, one in own.named_children() if _is_norm(one))
            yield from sorted(norms, key=lambda name: not name.startswith(slot[0]))


def _is_norm(module: nn.Module) -> bool:
    """Whether a module has a vector of gains, no matrix, and no modules in it."""
    own = list(module.parameters())
    return bool(own) and not list(module.children()) and all(one.ndim == 1 for one in own)
