"""Expressions over config fields: `scale_depth / sqrt(num_hidden_layers)`, `mlp_multipliers[1]`."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

LAYER_INDEX = "layer_index"
"""The word for the index of the layer in an expression."""

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


class NoValueError(Exception):
    """An expression that gives no number. The message continues `the scale '...'`."""


def value_of(text: str, field: Callable[[str], Any], index: int | None = None) -> float:
    """The number that an expression gives.

    Args:
        text: the expression.
        field: gives a config field by name.
        index: what `layer_index` is; None outside of layers.

    Raises:
        NoValueError: it is not understood, or gives no number.
    """
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise _not_understood() from error
    try:
        value = _Evaluation(field, index).of(node)
    except ArithmeticError as error:
        raise NoValueError(f"has no value with this config: {error}.") from error
    if not isinstance(value, int | float):  # a root of a negative number
        raise NoValueError(f"is {value} with this config, and no real number.")
    return value


def _not_understood() -> NoValueError:
    return NoValueError("is not understood: use numbers, config fields, + - * / ** and sqrt(...).")


class _Evaluation:
    """One evaluation with the fields of one config."""

    def __init__(self, field: Callable[[str], Any], index: int | None) -> None:
        self.field = field
        self.index = index

    def of(self, node: ast.expr) -> float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.Name):
            if node.id == LAYER_INDEX and self.index is not None:
                return float(self.index)
            return _number(node.id, self.field(node.id))
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](self.of(node.left), self.of(node.right))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            return self.element(node.value.id, node.slice)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "sqrt" and len(node.args) == 1:
            return self.root(node.args[0])
        raise _not_understood()

    def element(self, name: str, place: ast.expr) -> float:
        """An element of a field that is a list."""
        values, at = self.field(name), int(self.of(place))
        if not isinstance(values, list | tuple):
            raise NoValueError(f"asks for an element of '{name}', which is {values!r}: no list.")
        if not -len(values) <= at < len(values):
            raise NoValueError(
                f"asks for element {at} of '{name}', which has {len(values)}: {list(values)}."
            )
        return _number(f"{name}[{at}]", values[at])

    def root(self, node: ast.expr) -> float:
        """The square root of what an expression gives."""
        inside = self.of(node)
        if not isinstance(inside, int | float) or inside < 0:
            raise NoValueError(f"takes the square root of {inside}.")
        return math.sqrt(inside)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float):
        raise NoValueError(f"cannot be used: '{name}' is {value!r} in the config, and no number.")
    return float(value)
