"""One call of a native module, and what takes part in it: stages of sites, which run chains."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

Phase = Literal["input", "output"]


class Chain(Protocol):
    """The callbacks of one point in one run."""

    @property
    def edits(self) -> bool:
        """Whether any of them may change the value."""

    def run(self, value: Tensor, *, in_place: bool = False) -> Tensor | None:
        """Call every callback with the value; the new value if any of them may have changed it.

        Args:
            value: the activation, in canonical axes.
            in_place: the site writes edits into the tensor that it read.
        """


class Call:
    """One call of a native module, as the stages on it see it."""

    __slots__ = (
        "_around",
        "_extras",
        "_notes",
        "args",
        "kwargs",
        "memory",
        "module",
        "output",
        "replaced",
    )

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        memory: dict[Any, Any],
        output: Any = None,
    ) -> None:
        self.module = module
        self.args = args
        self.kwargs = kwargs
        self.output = output
        self.memory = memory
        """What stages hand on to later ones, through the whole forward pass."""
        self.replaced = False
        self._notes: dict[str, Tensor] | None = None  # made when needed: there are many calls
        self._around: dict[str, AbstractContextManager[Any]] | None = None
        self._extras: dict[str, Any] | None = None

    @property
    def extras(self) -> dict[str, Any]:
        """Other values that the stages of this call share."""
        self._extras = {} if self._extras is None else self._extras
        return self._extras

    @property
    def notes(self) -> dict[str, Tensor]:
        """Tensors that the stages of this call hand on."""
        self._notes = {} if self._notes is None else self._notes
        return self._notes

    @property
    def around(self) -> dict[str, AbstractContextManager[Any]]:
        """Contexts that are open while the module runs."""
        self._around = {} if self._around is None else self._around
        return self._around

    def _keyword(self) -> str:
        """The keyword that holds the activation, where HuggingFace passes it by keyword."""
        if "hidden_states" in self.kwargs:
            return "hidden_states"
        return next(key for key, value in self.kwargs.items() if isinstance(value, Tensor))

    @property
    def input(self) -> Tensor:
        """The activation that the module is called with."""
        return self.args[0] if self.args else self.kwargs[self._keyword()]

    def replace_input(self, value: Tensor) -> None:
        """Call the module with another activation."""
        value = _laid_out_like(self.input, value)
        if self.args:
            self.args = (value, *self.args[1:])
        else:
            self.kwargs = {**self.kwargs, self._keyword(): value}
        self.replaced = True

    @property
    def result(self) -> Tensor:
        """The activation that the module returns, by itself or first in a tuple."""
        return self.output if isinstance(self.output, Tensor) else self.output[0]

    def replace_result(self, value: Tensor) -> None:
        """Return another activation in the same form."""
        value = _laid_out_like(self.result, value)
        if isinstance(self.output, Tensor):
            self.output = value
        else:
            values, kind = (value, *self.output[1:]), type(self.output)
            self.output = kind(*values) if hasattr(self.output, "_fields") else kind(values)
        self.replaced = True


def _laid_out_like(native: Tensor, value: Tensor) -> Tensor:
    """The value, contiguous where the native one is, because models take views of it."""
    return value.contiguous() if native.is_contiguous() else value


class Stage(NamedTuple):
    """One step of a site, at the input or output of one module.

    Args:
        rank: the order of stages at one place, which is that of the data flow.
        act: runs the chain on the value and writes the result back.
        look: the value, made from the module's input or output. Set where reading needs nothing
            else, so that a chain that only reads can do without `act`.
        around: whether `act` puts contexts into `call.around`, open while the module runs.
    """

    module: nn.Module
    phase: Phase
    rank: int
    act: Callable[[Call, Chain], None]
    look: Callable[[Tensor], Tensor] | None = None
    around: bool = False
