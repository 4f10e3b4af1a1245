"""Which gradients one run can keep: a gradient that goes through one point may bypass another."""

import re
from collections.abc import Mapping, Sequence

from lensbridge.errors import InputError
from lensbridge.sites.composed import BranchInputSite
from lensbridge.sites.heads import HeadInputSite
from lensbridge.sites.site import Site

_HEADS = re.compile(r"\.hook_([qkv]_input|result)$")
_BRANCHES = re.compile(r"\.hook_(attn|mlp|cross_attn)_in$")
_NORMS = re.compile(r"(^|\.)ln\w*\.hook_(scale|normalized|out)$")


def runs_for(names: Sequence[str]) -> list[list[str]]:
    """The points of each run.

    For gradients at the inputs of heads and branches, each of them reads a copy of the stream that
    bypasses the norm. In such a run the norm itself gets no gradient, and where heads are asked
    for, neither does the input of their branch.
    """
    around = [[name for name in names if kind.search(name)] for kind in (_HEADS, _BRANCHES)]
    others = [name for name in names if name not in {*around[0], *around[1]}]
    if any(_NORMS.search(name) for name in others):
        return [run for run in (others, *around) if run]
    if all(around):
        return [[*others, *around[0]], around[1]]
    return [list(names)]


def refuse_apart(names: Sequence[str], sites: Mapping[str, Site]) -> None:
    """Refuse points if one run cannot give the gradients at all of them.

    Raises:
        InputError: there are such points; the message names two.
    """
    around = [name for name in names if _goes_around(sites[name])]
    passed = [name for name in names if name not in around]
    lost = next((name for name in passed if _NORMS.search(name) or _BRANCHES.search(name)), None)
    if around and lost is not None:
        raise InputError(
            f"One run cannot give the gradients at both {lost} and {around[0]}: with the second, "
            "gradients bypass the first. They need two runs: ask for each in its own run, or call "
            "model.gradients(...), which makes the runs."
        )


def _goes_around(site: Site) -> bool:
    """Whether the readers of a point get a copy that bypasses the norm before them."""
    return isinstance(site, HeadInputSite | BranchInputSite) and site.norm is not None
