"""Edge: the direct contribution of one node to the input of another, and its short text."""

from dataclasses import replace
from typing import TypeAlias

from lensbridge.errors import InputError
from lensbridge.nodes.node import Node, NodeLike

Edge: TypeAlias = tuple[Node, Node]
"""A sender and a receiver: the contribution of the first to the input of the second."""


def edge_of(given: "Edge | tuple[NodeLike, NodeLike] | str") -> Edge:
    """An edge from its text, as "a0.h1->a2.h3<k>", or from two nodes.

    Raises:
        InputError: neither of these.
    """
    ends = given.split("->") if isinstance(given, str) else list(given)
    if len(ends) != 2:
        raise InputError(f"{given!r} is not an edge. Write 'a0.h1->a2.h3<k>', or two nodes.")
    sender, receiver = (Node.of(one.strip() if isinstance(one, str) else one) for one in ends)
    return sender, receiver


def edge_text(edge: Edge) -> str:
    """The text of an edge."""
    return f"{edge[0]}->{edge[1]}"


def at_position(edge: Edge, position: int | None) -> Edge:
    """An edge at one position, or with None at all of them."""
    sender, receiver = (replace(node, position=position) for node in edge)
    return sender, receiver
