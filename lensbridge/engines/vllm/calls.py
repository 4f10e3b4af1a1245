"""Calls of native modules in which several requests are packed, as one request sees them.

vLLM runs requests of any lengths as one tensor `[token, width]`. A site reads and writes
`[1, pos, width]`: the rows of one request. Where vLLM hands the residual stream on as two
summands, `(delta, residual)`, the stream is their sum, and an edit is written as
`(new - residual, residual)`.
"""

import inspect
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor, nn

from lensbridge.engines.vllm.shards import Shards, heads_shards
from lensbridge.sites.call import Call

_RESIDUAL = "residual"


@dataclass(frozen=True)
class Rows:
    """Some rows of a request in the packed tensors of a pass.

    Args:
        first: the first row.
        end: the row after the last.
        start: the position in its text of the first.
        number: of these rows in the pass, to remember things under.
    """

    first: int
    end: int
    start: int
    number: int

    def of(self, packed: Tensor) -> Tensor:
        """Shapes: `[token, ...]` -> `[1, pos, ...]`, a view."""
        return packed[self.first : self.end].unsqueeze(0)

    def put(self, packed: Tensor, value: Tensor) -> None:
        """Write `[1, pos, ...]` into the rows of a packed tensor."""
        packed[self.first : self.end].copy_(value.reshape(packed[self.first : self.end].shape))


@cache
def _names(kind: Any) -> tuple[str, ...]:
    """The arguments of a class of modules; vLLM's own operators have them on another method."""
    names = tuple(inspect.signature(kind.forward).parameters)[1:]
    other = getattr(kind, "forward_native", None)
    if names == ("args", "kwargs") and other is not None:
        names = tuple(inspect.signature(other).parameters)
        names = names[1:] if names[:1] == ("self",) else names
    return names


@dataclass
class ModuleCall:
    """One call of a module, with all requests in it; each tensor is copied before the first write.

    Args:
        module: the module.
        args: as it is called.
        kwargs: as it is called.
        output: what it returned; None before that.
        sums_input: whether its input may be two summands.
        sums_output: whether its output may be two summands.
        given: how its input is spread over workers; None: it is not.
        returned: the same of its output.
    """

    module: nn.Module
    args: list[Any]
    kwargs: dict[str, Any]
    output: Any = None
    sums_input: bool = False
    sums_output: bool = False
    given: Shards | None = None
    returned: Shards | None = None
    replaced: bool = False
    _own: set[Any] = field(default_factory=set)

    @property
    def names(self) -> tuple[str, ...]:
        """What its arguments are called."""
        kind: Any = type(self.module)
        return _names(kind)

    def argument(self, name: str) -> Any:
        """An argument by its name, or None."""
        if name in self.kwargs:
            return self.kwargs[name]
        names = self.names
        at = names.index(name) if name in names else len(self.args)
        return self.args[at] if at < len(self.args) else None

    def main(self) -> str:
        """The name of the argument that holds the activation."""
        for name in self.names:
            value = self.argument(name)
            if isinstance(value, Tensor) and value.is_floating_point():
                return name
        raise LookupError(f"{type(self.module).__name__} was called without an activation.")

    @property
    def residual(self) -> Tensor | None:
        """The other summand of the input, if there is one."""
        found = self.argument(_RESIDUAL) if self.sums_input else None
        return found if isinstance(found, Tensor) else None

    def writable(self, name: str) -> Tensor:
        """A copy of an argument, which the module is called with from now on."""
        value: Tensor = self.argument(name)
        if name not in self._own:
            self._own.add(name)
            value = value.clone()
            if name in self.kwargs:
                self.kwargs[name] = value
            else:
                self.args[self.names.index(name)] = value
            self.replaced = True
        return value

    @property
    def result(self) -> Tensor:
        """What it returned, first in a tuple or by itself."""
        return self.output if isinstance(self.output, Tensor) else self.output[0]

    @property
    def carried(self) -> Tensor | None:
        """The other summand of what it returned, if there is one."""
        if not self.sums_output or isinstance(self.output, Tensor) or len(self.output) != 2:
            return None
        return self.output[1] if isinstance(self.output[1], Tensor) else None

    def writable_result(self) -> Tensor:
        """A copy of what it returned, which is handed on from now on."""
        if "result" not in self._own:
            self._own.add("result")
            value = self.result.clone()
            alone = isinstance(self.output, Tensor)
            self.output = value if alone else type(self.output)((value, *self.output[1:]))
            self.replaced = True
        return self.result


class RequestCall(Call):
    """One call of a module as one request sees it: axes `[1, pos, ...]`.

    Args:
        whole: the call with all requests.
        rows: those of the request.
        memory: what its stages hand on through the pass.
    """

    __slots__ = ("rows", "whole")

    def __init__(self, whole: ModuleCall, rows: Rows, memory: dict[Any, Any]) -> None:
        super().__init__(whole.module, (), {}, memory)
        self.whole = whole
        self.rows = rows

    def see(self, value: Tensor) -> None:
        """Let this be what later stages see as the input: modules overwrite theirs."""
        self.memory[self.module, "input"] = value

    @property
    def input(self) -> Tensor:
        """The activation; of two summands, their sum."""
        seen: Tensor | None = self.memory.get((self.module, "input"))
        if seen is not None:
            return seen
        value = self.rows.of(self.whole.argument(self.whole.main()))
        if self.whole.given is not None:
            return self.whole.given.whole(value)
        residual = self.whole.residual
        return value if residual is None else value + self.rows.of(residual)

    def replace_input(self, value: Tensor) -> None:
        """Call the module with another activation, for this request."""
        residual, spread = self.whole.residual, self.whole.given
        value = value if spread is None else spread.mine(value)
        value = value if residual is None else value - self.rows.of(residual)
        self.rows.put(self.whole.writable(self.whole.main()), value)

    def overwrite_input(self, value: Tensor) -> None:
        """Give another activation to all that read it: the module, and the stream beside it."""
        if self.whole.residual is not None:
            self.replace_input(value)
        else:
            self.rows.put(self.whole.argument(self.whole.main()), value)

    def argument(self, name: str) -> Tensor:
        """An argument of a kernel by its name, with all heads."""
        value = self.rows.of(self.whole.argument(name))
        spread = heads_shards(value.shape[-1])
        return value if spread is None else spread.whole(value)

    def replace_argument(self, name: str, value: Tensor) -> None:
        """Call a kernel with another argument, for this request."""
        target = self.whole.writable(name)
        spread = heads_shards(target.shape[-1])
        value = value.reshape(*value.shape[:2], -1)
        self.rows.put(target, value if spread is None else spread.mine(value))

    @property
    def result(self) -> Tensor:
        """What the module returns; of two summands, their sum."""
        value = self.rows.of(self.whole.result)
        if self.whole.returned is not None:
            return self.whole.returned.whole(value)
        carried = self.whole.carried
        return value if carried is None else value + self.rows.of(carried)

    def replace_result(self, value: Tensor) -> None:
        """Return another activation, for this request."""
        carried, spread = self.whole.carried, self.whole.returned
        value = value if spread is None else spread.mine(value)
        value = value if carried is None else value - self.rows.of(carried)
        self.rows.put(self.whole.writable_result(), value)
