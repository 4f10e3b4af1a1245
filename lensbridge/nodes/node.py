"""Node: a part of the model that paths run between and circuits are made of; its short text."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooks.callbacks import Hook

Kind = Literal[
    "input", "head", "cross_head", "attn", "cross", "mixer", "mlp", "neuron", "stream", "logits"
]
"""What a node is a part of."""

Component = Literal["q", "k", "v", "gate"]
"""What a node reads: query, key or value of a head, or the gate of an MLP."""

_LETTERS: dict[Kind, str] = {
    "head": "a{layer}.h{index}",
    "cross_head": "c{layer}.h{index}",
    "attn": "a{layer}",
    "cross": "c{layer}",
    "mixer": "s{layer}",
    "mlp": "m{layer}",
    "neuron": "m{layer}.n{index}",
    "stream": "r{layer}",
    "input": "input",
    "logits": "logits",
}
_TEXT = re.compile(
    r"(?:(?P<stack>[a-z_.]+)\.)?(?:(?P<head>a(\d+)\.h(\d+))|(?P<cross_head>c(\d+)\.h(\d+))|(?P<neuron>m(\d+)\.n(\d+))"
    r"|(?P<attn>a(\d+))|(?P<cross>c(\d+))|(?P<mixer>s(\d+))|(?P<mlp>m(\d+))|(?P<stream>r(\d+))"
    r"|(?P<input>input|embed)|(?P<logits>logits))(?:<(q|k|v|gate)>)?(?:@(\d+))?"
)


@dataclass(frozen=True)
class Node:
    """A part of the model: what it writes, or, with a component, what it reads.

    In text: "a3.h5" (layer 3, head 5), "a3.h5<q>" (what its queries read), "a3" (a whole
    attention), "c3.h5", "c3" (cross-attention), "s3" (a mixer), "m3", "m3.n17" (a neuron), "r3"
    (the stream before layer 3), "input", "logits". "@7" at the end means position 7; "encoder." in
    front means another stack than the main one.

    Args:
        kind: what it is.
        layer: where; None for the input and the logits.
        index: the head or neuron; a key/value head for k and v.
        component: which of its inputs; None for what it writes.
        position: one position, a column of the batch; None for all.
        stack: prefix of its stack ("encoder"); None for the main one.

    Example:
        >>> Node.of("a3.h5<q>@7")
        Node(kind='head', layer=3, index=5, component='q', position=7, stack=None)
    """

    kind: Kind
    layer: int | None = None
    index: int | None = None
    component: Component | None = None
    position: int | None = None
    stack: str | None = None

    @classmethod
    def of(cls, given: "NodeLike") -> "Node":
        """A node from its text.

        Raises:
            InputError: it is not one.
        """
        if isinstance(given, Node):
            return given
        found = _TEXT.fullmatch(given) if isinstance(given, str) else None
        if found is None:
            raise InputError(
                f"{given!r} is no part of a path or a circuit. Write 'a3.h5' (layer 3, head 5), "
                "'a3' (all of its attention), 'm3' (MLP), 'm3.n17' (neuron), 's3' (mixer), "
                "'input', 'logits'; what is read: 'a3.h5<q>', 'm3', 'logits'; 'c3.h5' in "
                "cross-attention; 'encoder.a3.h5' in another stack; '@7' at the end: one position."
            )
        kind = next(name for name in _LETTERS if found[name] is not None)
        layer, index, *_ = [*(int(n) for n in re.findall(r"\d+", found[kind])), None, None]
        *_, component, position = found.groups()
        at = None if position is None else int(position)
        return cls(kind, layer, index, component, at, found["stack"])  # type: ignore[arg-type]

    def __str__(self) -> str:
        text = f"{self.stack}." if self.stack else ""
        text += _LETTERS[self.kind].format(layer=self.layer, index=self.index)
        text += f"<{self.component}>" if self.component else ""
        return text if self.position is None else f"{text}@{self.position}"

    @property
    def anywhere(self) -> "Node":
        """The node at all positions."""
        return self if self.position is None else replace(self, position=None)

    @property
    def place(self) -> tuple[Any, ...]:
        """Its index in an activation of its point, `[batch, pos, (head), ..., (neuron)]`."""
        at = slice(None) if self.position is None else self.position
        if self.index is None:
            return slice(None), at
        inner = (Ellipsis,) if self.kind == "neuron" else ()
        return (slice(None), at, *inner, self.index)


NodeLike: TypeAlias = Node | str
"""A node, or its text."""


def written(activation: Tensor, value: Tensor, nodes: Iterable[Node]) -> Tensor:
    """An activation, after a value was written to the entries of some nodes."""
    given = value.expand_as(activation)
    for node in nodes:
        activation[node.place] = given[node.place]
    return activation


def setting(value: Tensor, nodes: Sequence[Node] = ()) -> Callable[[Tensor, Hook], Tensor]:
    """A hook that writes a value: to the entries of some nodes, or to all of the activation."""

    def set_value(activation: Tensor, hook: Hook) -> Tensor:
        return written(activation, value, nodes) if nodes else value.expand_as(activation)

    return set_value
