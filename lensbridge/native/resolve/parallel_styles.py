"""The styles of tensor parallelism that transformers has, and which of them are in a model.

`from_pretrained(..., tp_plan="auto")` gives some modules a style by its name. The styles that are
known here leave the stream between the layers whole on every rank, and split heads and neurons. A
model with any other style is refused at load.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch.distributed as distributed
from torch import nn

from lensbridge.errors import LoadError

Side: TypeAlias = Literal["input", "output"]


@dataclass(frozen=True)
class Style:
    """What a style splits.

    Args:
        weight: the axis of the stored weight that is split; None: every rank has the whole.
        bias: the same for the bias.
        sides: the sides of the module on which a tensor is in pieces.
        kind: the class that the module has to be of.
    """

    weight: int | None
    bias: int | None
    sides: tuple[Side, ...] = ()
    kind: type[nn.Module] = nn.Module


_GATHERED = Style(0, 0, (), nn.Linear)
_SPLIT = Style(1, None, (), nn.Linear)
STYLES = {
    "colwise": Style(0, 0, ("output",), nn.Linear),
    "colwise_gather_output": _GATHERED,
    "colwise_rep": _GATHERED,
    "rowwise": Style(1, None, ("input",), nn.Linear),
    "rowwise_split_input": _SPLIT,
    "rowwise_rep": _SPLIT,
    "embedding_rowwise": Style(0, None, (), nn.Embedding),
    "embedding_colwise": Style(1, None, (), nn.Embedding),
    "replicated_with_grad_allreduce": Style(None, None),
    "replicate": Style(None, None),
}
"""The styles that can be read, by their names in a plan."""

_MOST = 4


def styles_in(core: nn.Module) -> dict[nn.Module, str] | None:
    """The style of every module that has one; None for a model that is on one rank.

    Raises:
        LoadError: a style that cannot be read, or another kind of parallelism beside it.
    """
    config: Any = getattr(getattr(core, "config", None), "distributed_config", None)
    ranks = getattr(core, "_tp_size", None) or 1
    if getattr(config, "ep_size", 1) > 1:
        raise refused(core, ["its experts are on different ranks (expert parallel, ep_size > 1)"])
    if ranks < 2:
        _refuse_split_by_hand(core)
        return None
    beside = [
        f"{name}={getattr(config, name)} beside tp_size={ranks}"
        for name in ("pp_size", "fsdp_size", "dp_replicate_size")
        if getattr(config, name, 1) > 1
    ]
    if beside:
        raise refused(core, beside)
    return _Reading(core).styles()


@dataclass(frozen=True)
class _Reading:
    """The plan of a model, and whether its parameters are split as it says."""

    core: Any

    def styles(self) -> dict[nn.Module, str]:
        plan = dict(self.core._tp_plan or {})
        found = {
            module: (path, plan[_rule(path)])
            for path, module in self.core.named_modules()
            if _rule(path) in plan
        }
        wrong = [
            f"{path}: style {style!r}"
            for path, style in [*found.values(), *self._of_parameters(plan)]
            if style not in STYLES
        ]
        wrong = wrong or list(self._misplaced(found))
        if wrong:
            raise refused(self.core, wrong)
        return {module: style for module, (_, style) in found.items()}

    def _of_parameters(self, plan: dict[str, str]) -> Iterator[tuple[str, str]]:
        """Rules for parameters and not for modules, which are of styles of their own."""
        for path, _ in self.core.named_parameters():
            if _rule(path) in plan and plan[_rule(path)] != "replicate":
                yield path, f"{plan[_rule(path)]} (of a parameter)"

    def _misplaced(self, found: dict[nn.Module, tuple[str, str]]) -> Iterator[str]:
        """Parameters that are not held as their style says."""
        for path, module in self.core.named_modules():
            style = STYLES[found[module][1]] if module in found else Style(None, None)
            told = f"style {found[module][1]!r}" if module in found else "no style"
            if not isinstance(module, style.kind):
                cls = type(module)
                yield f"{path}: {told} on a {cls.__module__}.{cls.__name__}"
                continue
            for name, parameter in module._parameters.items():
                wanted = {"weight": style.weight, "bias": style.bias}.get(name)
                if parameter is not None and _split_axis(parameter) != wanted:
                    yield f"{path}.{name}: {told}, and it is held as {_placed(parameter)}"


def _rule(path: str) -> str:
    """The name that a path has in a plan: a star for the number of a layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)


def is_split(parameter: nn.Parameter | None) -> bool:
    """Whether ranks have parts of a parameter."""
    return _split_axis(parameter) is not None


def _split_axis(parameter: Any) -> int | None:
    """The axis along which ranks have parts of a parameter; -1 for any other way."""
    placements: Any = getattr(parameter, "placements", ())
    if all(one.is_replicate() for one in placements):
        return None
    if len(placements) != 1 or type(placements[0]).__name__ != "Shard":
        return -1
    return int(placements[0].dim)


def _placed(parameter: Any) -> str:
    placements = getattr(parameter, "placements", None)
    return "an ordinary tensor" if placements is None else ", ".join(map(str, placements))


def _refuse_split_by_hand(core: nn.Module) -> None:
    """Refuse modules that were split without transformers, whose tensors nothing describes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    wrong = [
        f"{path}.{name}: held as {_placed(parameter)}"
        for path, module in core.named_modules()
        for name, parameter in module._parameters.items()
        if is_split(parameter) and not getattr(module, "_is_fsdp_managed_module", False)
    ]
    if wrong:
        raise refused(core, wrong)


def refused(core: nn.Module, wrong: list[str]) -> LoadError:
    """The error for a model that is spread over ranks in a way that cannot be read."""
    more = f"; and {len(wrong) - _MOST} more" if len(wrong) > _MOST else ""
    return LoadError(
        f"{type(core).__name__} is spread over ranks in a way that lensbridge cannot read: "
        f"{'; '.join(wrong[:_MOST])}{more}. It reads tp_plan='auto' of transformers (5.20 or "
        f"newer) with the styles {', '.join(STYLES)}, where each rank has whole heads. Give the "
        "modules above another style in tp_plan ('replicate' keeps them whole on every rank), use "
        "fewer ranks, or load the model with device_map='auto'."
    )
