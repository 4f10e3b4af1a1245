"""Which gradients one run can keep: some points are read through a copy that goes around others."""

import re
from collections.abc import Mapping, Sequence

from lensbridge.errors import InputError
from lensbridge.sites.composed import BranchInputSite
from lensbridge.sites.derived import HeadInputSite
from lensbridge.sites.site import Site

_HEADS = re.compile(r"\.hook_([qkv]_input|result)$")
_BRANCHES = re.compile(r"\.hook_(attn|mlp|cross_attn)_in$")
_NORMS = re.compile(r"(^|\.)ln\w*\.hook_(scale|normalized|out)$")


def runs_for(names: Sequence[str]) -> list[list[str]]:
    """The points of each run.

    Gradients at what heads and branches read are had from a copy that goes to them beside the
    norm's output, so that none would be left for the norm, nor for a branch where heads are asked.
    """
    around = [[name for name in names if kind.search(name)] for kind in (_HEADS, _BRANCHES)]
    others = [name for name in names if name not in {*around[0], *around[1]}]
    if any(_NORMS.search(name) for name in others):
        return [run for run in (others, *around) if run]
    if all(around):
        return [[*others, *around[0]], around[1]]
    return [list(names)]


def refuse_apart(names: Sequence[str], sites: Mapping[str, Site]) -> None:
    """Refuse points of which one run gives gradients at some only.

    Raises:
        InputError: with two of them.
    """
    around = [name for name in names if _goes_around(sites[name])]
    passed = [name for name in names if name not in around]
    lost = next((name for name in passed if _NORMS.search(name) or _BRANCHES.search(name)), None)
    if around and lost is not None:
        raise InputError(
            f"One run cannot give the gradients at {lost} and at {around[0]}: what reads the "
            "second goes around the first. Ask for them in runs of their own, or call "
            "model.gradients(...), which does so."
        )


def _goes_around(site: Site) -> bool:
    """Whether those who read a point get a copy past the norm in front of them."""
    return isinstance(site, HeadInputSite | BranchInputSite) and site.norm is not None
