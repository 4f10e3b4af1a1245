"""Node: a part of the model between which paths run: a head, an MLP, the embedding, the logits."""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lensbridge.errors import InputError

Kind = Literal["head", "attn", "mlp", "embed", "logits"]
Component = Literal["q", "k", "v"]

_TEXT = re.compile(r"a(\d+)\.h(\d+)(?:<([qkv])>)?|a(\d+)|m(\d+)|(input|embed)|(logits)")


@dataclass(frozen=True)
class Node:
    """A sender or receiver of a path. In text: "a3.h5", "a3", "m3", "input", "a3.h5<q>", "logits".

    Args:
        kind: a head, a whole attention, an MLP (or mixture), the token embedding, or the logits.
        layer: where; None for the embedding and the logits.
        head: which; a key/value head for the receiving k and v.
        component: what of a head receives; None for a sender.

    Example:
        >>> Node.of("a3.h5<q>")
        Node(kind='head', layer=3, head=5, component='q')
    """

    kind: Kind
    layer: int | None = None
    head: int | None = None
    component: Component | None = None

    @classmethod
    def of(cls, given: "Node | str") -> "Node":
        """A node from its text.

        Raises:
            InputError: it is not one.
        """
        if isinstance(given, Node):
            return given
        found = _TEXT.fullmatch(given)
        if found is None:
            raise InputError(
                f"{given!r} is no part of a path. Write 'a3.h5' (layer 3, head 5), 'a3' (all of "
                "its attention), 'm3' (MLP), 'input' (token embedding); receivers 'a3.h5<q>', "
                "'m3' and 'logits'."
            )
        layer, head, component, attn, mlp, embed, _ = found.groups()
        if head is not None:
            return cls("head", int(layer), int(head), component)  # type: ignore[arg-type]
        if attn is not None:
            return cls("attn", int(attn))
        if mlp is not None:
            return cls("mlp", int(mlp))
        return cls("embed") if embed else cls("logits")

    def __str__(self) -> str:
        if self.kind == "head":
            behind = f"<{self.component}>" if self.component else ""
            return f"a{self.layer}.h{self.head}{behind}"
        short = {"attn": "a", "mlp": "m", "embed": "input", "logits": "logits"}[self.kind]
        return short if self.layer is None else f"{short}{self.layer}"


NodeLike: TypeAlias = Node | str
