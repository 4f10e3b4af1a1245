"""What the model's own modules read and return in a pass without a lens."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

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


def inner_modules(subject: Subject) -> list[nn.Module]:
    """Every module of the model but the model itself."""
    return [module for module in subject.hf_model.modules() if module is not subject.hf_model]
