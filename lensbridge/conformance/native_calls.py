"""What the model's own modules read and return in a pass without a lens."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lensbridge.conformance.subject import Subject


class NativeCall(NamedTuple):
    """One call of a module, seen when it returns.

    Args:
        module: the module.
        given: its arguments, positional ones first.
        output: what it returned.
    """

    module: nn.Module
    given: tuple[Any, ...]
    output: Any

    @property
    def tensors(self) -> list[Tensor]:
        """Those of its arguments that are tensors."""
        return [one for one in self.given if isinstance(one, Tensor)]


def watch_calls(
    subject: Subject, modules: Iterable[nn.Module], see: Callable[[NativeCall], None]
) -> None:
    """Run the model alone, and show each call of these modules, in the order of their ends."""

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        see(NativeCall(module, (*args, *kwargs.values()), output))

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        subject.bare()
    finally:
        for handle in handles:
            handle.remove()


class KernelCount(TorchFunctionMode):
    """Counts the attention kernels that run while it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = False
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.counts and func is F.scaled_dot_product_attention:
            self.seen += 1
        if self.counts and func in (F.softmax, torch.softmax, Tensor.softmax):
            self.seen += args[0].ndim == 4
        return func(*args, **(kwargs or {}))


def kernels_in(subject: Subject, module: nn.Module) -> int:
    """How many attention kernels run inside a module in a pass without a lens."""
    count = KernelCount()

    def start(module: nn.Module, args: Any) -> None:
        count.counts = True

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        count.counts = False

    handles = [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    try:
        with count:
            subject.bare()
    finally:
        for handle in handles:
            handle.remove()
    return count.seen


def inner_modules(subject: Subject) -> list[nn.Module]:
    """Every module of the model but the model itself."""
    return [module for module in subject.hf_model.modules() if module is not subject.hf_model]
