"""Recorder: writes down what runs on tensors without values, as statements of a trace.

The lens runs on a twin of the model (`lensbridge.plans.twin`), with its own sites, interventions
and metrics. What they do to activations outside of the model's modules is recorded here: each call
of torch becomes a statement with the same public function. So there is one description of where a
point is and of what an intervention does, and the server needs nothing but torch and nnsight.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException as OfValues
from torch._subclasses.fake_tensor import DynamicOutputShapeException as OfSizes
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from lensbridge.engines.nnsight.block import Block, Path, Read, Side, Statement, Write
from lensbridge.engines.nnsight.draft import Draft
from lensbridge.engines.nnsight.expressions import (
    call_of,
    index,
    is_index,
    literal,
    statement_of,
    writes,
)
from lensbridge.engines.nnsight.values import (
    Value,
    Visited,
    first_of,
    leaves,
    paths,
    without_masks,
)
from lensbridge.errors import UnsupportedError
from lensbridge.sites.call import Call


class Recorder(TorchFunctionMode):
    """Inside, calls of torch on tensors without values are written down.

    Args:
        draft: the trace that they are written into.

    Attributes:
        differentiates: whether gradients are computed in what runs now.
        differentiated: whether they are computed in any of it.
    """

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self.draft = draft
        self.differentiates = False
        self.differentiated = False
        self._recording = True
        self._edits = False
        self._same: list[str] = []
        self._here: Visited | None = None

    @property
    def block(self) -> Block:
        """What is being written."""
        return self.draft.block

    # --- passes of the model -----------------------------------------------------------------

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Inside, the model runs: its own calls of torch are not written down."""
        before, self._recording = self._recording, False
        try:
            yield
        finally:
            self._recording, self._here = before, None

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """A pass of the model with these keywords begins."""
        self.draft.begin(inputs)
        self._here = None

    def end(self, module: str, output: Any) -> None:
        """The pass is over; its output may be used by what follows."""
        read = Read(module, "output", None, self.block.number)
        self.block.lines.append(read)
        self.draft.note_leaves(read, output)

    @contextmanager
    def visit(self, module: str, side: Side, call: Call, name: str, edits: bool) -> Iterator[None]:
        """Inside, a site acts on a call of a module.

        Args:
            module: the module as text.
            side: its input or its output.
            call: the call.
            name: the point of the site.
            edits: whether an edit may change the value there.
        """
        here = self._side(module, side, call)
        before = leaves(side, call)
        self._edits, self._same, self.draft.point = edits, [], name
        self._recording = True
        try:
            with _disable_current_modes():
                yield
        except (OfValues, OfSizes) as error:
            raise UnsupportedError(
                f"{name} cannot be used in a trace: what is done there depends on values that only "
                "the server has. Run this experiment with lensbridge.load(...).run(experiment)."
            ) from error
        finally:
            self._recording = False
        self._note_writes(here, before, leaves(side, call))

    def look(self, module: str, side: Side, call: Call) -> None:
        """Note a side of a module, for sites that use it later."""
        self._side(module, side, call)

    def _side(self, module: str, side: Side, call: Call) -> Visited:
        here = self._here
        if here is None or here.call is not call:
            read = Read(module, side, first_of(call), self.block.number)
            self.block.lines.append(read)
            here = self._here = Visited(read, Write(read), call)
            value = call.output if side == "output" else (call.args, call.kwargs)
            self.draft.note_leaves(read, value)
        return here

    def _note_writes(
        self, here: Visited, before: dict[Path, Tensor], after: dict[Path, Tensor]
    ) -> None:
        changed = {path: new for path, new in after.items() if new is not before.get(path)}
        if not changed:
            return
        if here.write in self.block.lines:
            self.block.lines.remove(here.write)
        for path, new in changed.items():
            text = self.draft.text(new)
            if self._same:
                native = here.write.new.get(path) or here.read.variable(path)
                text = self._either(native, text)
                self.draft.note(new, Value(self.block, text))
            here.write.new[path] = text
        self.block.lines.append(here.write)

    def _either(self, native: str, new: str) -> str:
        """The native value where the edit changed nothing, so that its numbers stay as they are."""
        name = f"v{self.block.number()}"
        same = " and ".join(self._same)
        text = f"{name} = {native} if {same} else {new}"
        self.block.lines.append(Statement(text, name))
        return name

    # --- calls of torch ----------------------------------------------------------------------

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self._recording:
            return func(*args, **kwargs)
        given = [one for one in tree_leaves((args, dict(kwargs))) if isinstance(one, Tensor)]
        traced = any(map(self.draft.is_traced, given))
        if traced and func is torch.equal:
            return self._equal(*args)
        if traced and is_index(func):
            args = (args[0], without_masks(args[1]), *args[2:])
            given = [one for one in tree_leaves(args) if isinstance(one, Tensor)]
        out = func(*args, **kwargs)
        if traced:
            self._write_down(func, args, kwargs, given, out)
        return out

    def _equal(self, one: Tensor, other: Tensor) -> bool:
        """Whether an edit changed a value: the server finds out, and here it counts as changed."""
        if not self._edits:
            return True
        if not self.differentiates:
            self._same.append(f"torch.equal({self.draft.text(one)}, {self.draft.text(other)})")
        return False

    def _write_down(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        given: Sequence[Tensor],
        out: Any,
    ) -> None:
        results = [one for one in tree_leaves(out) if isinstance(one, Tensor)]
        mutates = writes(func)
        if not results and not mutates:
            return
        if mutates and not self.draft.is_traced(args[0]):
            raise UnsupportedError(
                "A value of the server is written into a tensor of this machine, which cannot be "
                "put into a trace. Make the tensor from the activation: torch.zeros_like(value)."
            )
        known = next(one for one in given if self.draft.is_traced(one))
        main = self.draft.text(known)
        texts, keywords = self._texts(func, args, kwargs, main)
        statement = statement_of(func, texts)
        if statement is not None:
            self.block.lines.append(Statement(statement))
            return
        name = f"v{self.block.number()}"
        text = f"{name} = {call_of(func, texts, keywords)}"
        self.block.lines.append(Statement(text, None if mutates else name))
        for path, leaf in paths(out):
            text = name + "".join(f"[{step!r}]" for step in path)
            self.draft.note(leaf, Value(self.block, text))

    def _texts(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], main: str
    ) -> tuple[list[str], dict[str, str]]:
        def tensor(one: Tensor) -> str:
            return self.draft.text(one, main)

        device = f"{main}.device"
        texts = [literal(one, tensor, device) for one in args]
        if is_index(func):
            texts[1] = index(args[1], tensor, device)
        return texts, {key: literal(one, tensor, device) for key, one in kwargs.items()}

    def called(self, module: nn.Module, text: str, *args: Any) -> Any:
        """What a module makes of other inputs, beside the pass; the server calls its own module.

        Args:
            module: of the twin.
            text: the module as text.
            args: its arguments.
        """
        before, self._recording = self._recording, False
        out = type(module).forward(module, *args)
        self._recording = before
        main = self.draft.text(next(one for one in args if self.draft.is_traced(one)))
        told = ", ".join(literal(one, lambda t: self.draft.text(t, main), main) for one in args)
        name = f"v{self.block.number()}"
        self.block.lines.append(Statement(f"{name} = {text}({told})", name))
        self.draft.note(out, Value(self.block, name))
        return out
