"""What a branch adds where the block drops some of it out first, without a module for that.

In training mode many blocks call `dropout` as a function on what a branch gives, and add the
result. While such a block runs, a `TorchFunctionMode` waits for whatever takes the branch's output:
after a dropout the value is its result, otherwise the output itself.
"""

from dataclasses import dataclass, fields
from inspect import unwrap
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lensbridge.errors import HookError
from lensbridge.native.product import Product
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.derived import SumSite
from lensbridge.sites.site import OutputSite, Site

_DROPOUTS = frozenset({F.dropout, torch.dropout})
_OF_A_SUM = (
    "{}: in training mode {} adds this value to others before one dropout of their sum, so no "
    "tensor holds what it alone adds to the stream. Call model.eval(), or set the dropout to 0 "
    "({}). hook_resid_pre and hook_resid_post can be read in training mode too."
)
_LATE = 80  # after all other points at the module's output


@dataclass(frozen=True)
class DroppedSite(OutputSite):
    """The output of a module, after the dropout that follows it inside `block`."""

    block: nn.Module | None = None

    @property
    def stages_now(self) -> tuple[Stage, ...]:
        return self._training_stages() if self._of().training else self.stages

    def _of(self) -> nn.Module:
        assert self.block is not None
        return self.block

    def _stages(self) -> list[Stage]:
        (plain,) = super()._stages()
        look = plain.look

        def act(call: Call, chain: Chain) -> None:
            self._require_eval()
            plain.act(call, chain)

        def seen(result: Tensor) -> Tensor:
            self._require_eval()
            assert look is not None
            return look(result)

        return [plain._replace(act=act, look=None if look is None else seen)]

    def _require_eval(self) -> None:
        if self._of().training and _drops(self._of()):
            raise HookError(
                f"{self.name}: the model was switched to training mode while hooks were on it, and "
                "its dropout changes what is added here. Attach the hooks after model.train()."
            )

    def _training_stages(self) -> tuple[Stage, ...]:
        block = self._of()

        def watch(call: Call, chain: Chain) -> None:
            _refuse_paths(self.name, block)
            tap = call.around.setdefault("dropout", DropoutTap())
            call.memory[DropoutTap, block] = tap

        def wait(call: Call, chain: Chain) -> None:
            tap = cast("DropoutTap", call.memory[DropoutTap, block])
            tap.waiting.append(Waiting(call.result, self, chain))

        return (
            Stage(block, "input", 8, watch, around=True),
            Stage(self.module, "output", _LATE, wait),
        )


@dataclass(frozen=True)
class DroppedSumSite(SumSite):
    """A sum, or a scaled or biased output, on which `block` calls dropout: only without dropout."""

    block: nn.Module | None = None

    @property
    def stages_now(self) -> tuple[Stage, ...]:
        assert self.block is not None
        if self.block.training and _drops(self.block):
            raise _of_a_sum(self.name, self.block)
        return self.stages


def _of_a_sum(name: str, block: nn.Module | None) -> HookError:
    """The error for a value that is dropped out together with others."""
    if block is None:
        return HookError(_OF_A_SUM.format(name, "the block", "in the config"))
    rates = ", ".join(f"{field}={rate}" for field, rate in _rates(block).items())
    return HookError(_OF_A_SUM.format(name, type(block).__name__, f"now {rates}"))


@dataclass(frozen=True, eq=False)
class Waiting:
    """A value that has not been taken by anything yet."""

    value: Tensor
    site: DroppedSite
    chain: Chain

    def run(self, value: Tensor) -> Tensor:
        """The value after its chain."""
        layout = self.site.layout
        whole = self.site.live(value)
        new = self.chain.run(layout.split(whole))
        return value if new is None else layout.merge(whole, new)


class DropoutTap(TorchFunctionMode):
    """Watches one call of one block."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Waiting] = []
        self.made: list[tuple[Waiting, Tensor]] = []  # of values that something else took
        self.looking = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.looking or _only_asks(func):
            return func(*args, **kwargs)
        if func in _DROPOUTS:
            self._refuse_sums(args, kwargs)
        if not self.waiting:
            return func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        taken = [one for one in self.waiting if any(leaf is one.value for leaf in leaves)]
        for one in taken:
            self.waiting.remove(one)
        if func in _DROPOUTS and taken:
            return taken[0].run(func(*args, **kwargs))
        for one in taken:
            new = one.run(one.value)
            args, kwargs = _with(args, one.value, new), _with(kwargs, one.value, new)
        result = func(*args, **kwargs)
        self.made += [(one, result) for one in taken if isinstance(result, Tensor)]
        return result

    def _refuse_sums(self, args: Any, kwargs: Any) -> None:
        """Refuse a dropout of something that was made of a value: how much of it is added?"""
        given = args[0] if args else kwargs.get("input")
        rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        training = args[2] if len(args) > 2 else kwargs.get("training", kwargs.get("train", True))
        found = next((one for one, made in self.made if made is given), None)
        if found is not None and training and rate > 0:
            raise _of_a_sum(found.site.name, found.site.block)

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc, traceback)  # type: ignore[no-untyped-call]
        for one in [] if exc_type is not None else self.waiting:
            if one.run(one.value) is not one.value:
                raise HookError(
                    f"{one.site.name}: the block ended before anything took this value, so an edit "
                    "is lost in training mode. Call model.eval(), or edit the stream."
                )
        self.waiting.clear()
        self.made.clear()


def drops_after(block: nn.Module, writer: nn.Module) -> bool:
    """Whether code between a module's output and the end of a block may call dropout."""
    if isinstance(writer, nn.Dropout):
        return False
    if isinstance(writer, Product):  # any method of its holder may call it
        return any(map(_code_names_dropout, vars(type(writer.holder)).values()))
    around = [one for one in block.modules() if one is not writer and writer in set(one.modules())]
    return any(_names_dropout(one) for one in around)


def members_of(site: Site) -> dict[str, Any]:
    """The members of a site, for one that says more."""
    return {member.name: getattr(site, member.name) for member in fields(site)}


def _names_dropout(module: nn.Module) -> bool:
    return _code_names_dropout(unwrap(type(module).forward))


def _code_names_dropout(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    names = () if code is None else code.co_names
    return any("drop" in one and one != "layerdrop" for one in names)


def _refuse_paths(name: str, block: nn.Module) -> None:
    """Refuse blocks that leave out whole branches at random (stochastic depth)."""
    for module in block.modules():
        rate = vars(module).get("drop_prob")
        if "DropPath" in type(module).__name__ and rate:
            raise HookError(
                f"{name}: in training mode this model leaves whole branches out at random "
                f"({type(module).__name__}), and scales the others. Call model.eval(), or set "
                "drop_prob to 0."
            )


def _drops(block: nn.Module) -> bool:
    """Whether some dropout in a block has a rate above 0."""
    return bool(_rates(block))


def _rates(block: nn.Module) -> dict[str, float]:
    """The dropout rates above 0 in a block, by the name of their field."""
    configs = [getattr(one, "config", None) for one in block.modules()]
    holders = [*block.modules(), *(one for one in configs if one is not None)]
    return {
        name: value
        for holder in holders
        for name, value in vars(holder).items()
        if ("drop" in name or (name == "p" and isinstance(holder, nn.Dropout)))
        and isinstance(value, float)
        and value > 0
    }


def _only_asks(func: Any) -> bool:
    """Whether a call asks for a size or the like, and computes nothing from the values."""
    name = getattr(func, "__name__", "")
    return name in ("__get__", "size", "dim", "numel", "stride", "is_floating_point", "get_device")


def _with(tree: Any, old: Tensor, new: Tensor) -> Any:
    return tree if new is old else tree_map(lambda leaf: new if leaf is old else leaf, tree)
