"""What shows how many experts a mixture has, where they are not described one by one."""

from collections.abc import Iterator

from torch import nn

from lensbridge.conformance.claim import Claim
from lensbridge.native.parts import MoEPart


def claims_of_router(at: str, mlp: MoEPart, excused: bool) -> Iterator[Claim]:
    """The claims that there are experts, and that the router scores each: another projection has
    another width.

    A router may score more: choices that compute nothing.

    Args:
        at: the beginning of the names of the block's points.
        mlp: the mixture.
        excused: whether the description says why it has no experts.
    """
    counts = sorted(set(_counts(mlp)))
    if mlp.experts is None and not counts:
        shown = "no list of experts and no stacked weights are found in it, so it is no mixture"
        yield Claim(f"{at}mlp.experts", excused, shown)
    elif mlp.experts is None:
        fits = any(one <= mlp.n_choices <= 2 * one for one in counts)
        told = " or ".join(map(str, counts))
        shown = f"it scores {mlp.n_choices}, and the mixture has {told} experts"
        yield Claim(f"{at}mlp.router", fits, shown)


def beside_router(mlp: MoEPart) -> Iterator[nn.Module]:
    """The modules of a mixture that are no part of its router or of its shared MLP."""
    others = [mlp.router, *([] if mlp.shared is None else [mlp.shared.module])]
    left_out = {inner for other in others for inner in other.modules()}
    return (module for module in mlp.module.modules() if module not in left_out)


def _counts(mlp: MoEPart) -> Iterator[int]:
    """Lengths of lists of modules of one class, and of the first axes of stacked parameters."""
    for module in beside_router(mlp):
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            classes = {type(one) for one in module.children()}
            yield from [len(module)] if len(classes) == 1 else []
        own = module.parameters(recurse=False)
        yield from (len(one) for one in own if one.ndim == 3 and len(one) > 1)
