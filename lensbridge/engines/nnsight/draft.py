"""Draft: a trace that is being written: its blocks, and what each tensor is called in them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from lensbridge.engines.nnsight.block import Block, Generation, Read
from lensbridge.engines.nnsight.values import Value, paths
from lensbridge.errors import UnsupportedError


class Draft:
    """The blocks of a trace, and the text of each tensor in them.

    Args:
        places: id of a parameter or buffer -> its text.
        apart: whether the trace runs in another process than the model, without its weights.

    Attributes:
        blocks: what was written down.
        generating: whether passes are the steps of a generation.
        point: where a site acts, for messages.
    """

    def __init__(self, places: Mapping[int, str], apart: bool = False) -> None:
        self.places = places
        self.apart = apart
        self.blocks: list[Block] = [Block(None)]
        self.generating = False
        self.point = "A metric"
        self._known: dict[int, Value] = {}
        self._held: list[Any] = []  # so that no other tensor gets the id of one that is known

    # --- blocks ------------------------------------------------------------------------------

    @property
    def block(self) -> Block:
        """What is being written."""
        last = self.blocks[-1]
        writes_steps = isinstance(last, Generation) and last.steps and self.generating
        return last.steps[-1] if writes_steps else last  # type: ignore[attr-defined]

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """A pass of the model with these keywords begins."""
        for name, value in () if self.generating else inputs.items():
            if any(self.is_traced(one) for one in tree_leaves(value)):
                raise UnsupportedError(
                    f"{name} is computed in an earlier pass on the server, and nnsight is given "
                    "the input of a pass before it begins. Pass ids or text."
                )
        block = Block(dict(inputs))
        if self.generating:
            block.letter = "s"
            self.blocks[-1].steps.append(block)  # type: ignore[attr-defined]
        else:
            self.blocks.append(block)

    @contextmanager
    def generation(self, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[None]:
        """Inside, passes are the steps of a generation."""
        block = Generation(dict(inputs), options=options)
        self.blocks.append(block)
        self.generating = True
        try:
            yield
        finally:
            self.generating = False
            block.close()

    def generated(self, tokens: Tensor) -> None:
        """The ids that a generation gives."""
        self.note(tokens, Value(self.block, "tokens"))
        self.blocks.append(Block(None))  # for what follows

    # --- what tensors are called -------------------------------------------------------------

    def note(self, tensor: Tensor, value: Value) -> None:
        """Keep what a tensor is on the server."""
        self._held.append(tensor)
        self._known[id(tensor)] = value

    def note_leaves(self, read: Read, value: Any) -> None:
        """Keep that tensors without values are what is read on one side of a module."""
        for path, leaf in paths(value):
            if isinstance(leaf, FakeTensor):
                self.note(leaf, Value(self.block, None, read, path))

    def is_traced(self, value: Any) -> bool:
        """Whether something is a tensor whose values only the server has."""
        return isinstance(value, FakeTensor) or self._value(value) is not None

    def _value(self, tensor: Any) -> Value | None:
        """A value of the server. A tensor of this machine that a call gave back as it was, such as
        `constant.to(device)`, is one in that block only.
        """
        value = self._known.get(id(tensor))
        own = value is not None and (value.block is self.block or isinstance(tensor, FakeTensor))
        return value if own else None

    def text(self, tensor: Tensor, beside: str | None = None) -> str:
        """A tensor as text; a constant goes to the device of what it is used with.

        Raises:
            UnsupportedError: a trace cannot read it.
        """
        value = self._value(tensor)
        if value is not None:
            return self._elsewhere(value) if value.block is not self.block else value.name()
        if id(tensor) in self.places:
            return self._weight(tensor)
        if isinstance(tensor, FakeTensor):
            raise UnsupportedError(
                "A value is needed that is neither the input nor the output of a module, so a "
                "trace cannot read it."
            )
        return self._constant(tensor, beside)

    def _weight(self, tensor: Tensor) -> str:
        if self.apart:
            raise UnsupportedError(
                f"{self.point}: what is done there computes with weights, and NDIF runs a trace "
                "in a process that has none, unless it trusts you. If it does, pass trusted=True."
            )
        return self.places[id(tensor)]

    def _elsewhere(self, value: Value) -> str:
        return value.block.exports.setdefault(
            value.name(), f"shared{sum(len(one.exports) for one in self.blocks)}"
        )

    def _constant(self, tensor: Tensor, beside: str | None) -> str:
        held = self.block.constants
        places = [i for i, one in enumerate(held) if one is tensor]
        i = places[0] if places else len(held)
        if not places:
            held.append(tensor)
        text = f"{self.block.letter}[{i}]"
        return text if beside is None else f"{text}.to({beside}.device)"

    # --- what comes back ---------------------------------------------------------------------

    def result(self, tensor: Tensor) -> tuple[int, str] | None:
        """Let a value come back; gives the number of its block and its key there. None: it is a
        tensor of this machine.
        """
        value = self._known.get(id(tensor))
        if value is None:
            if isinstance(tensor, FakeTensor):
                self.text(tensor)
            return None
        key = value.name()
        value.block.results[key] = key
        places = [i for i, one in enumerate(self.blocks) if one is value.block]
        if not places:
            raise UnsupportedError("Values inside a generation do not come back from a trace.")
        return places[0], key
