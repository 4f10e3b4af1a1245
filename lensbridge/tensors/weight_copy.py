"""`WeightCopy`: a copy of weights, which raises when it is written to."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lensbridge.errors import WeightError

__all__ = ["WeightCopy", "live_or_copy"]

_MARKS = frozenset({"requires_grad_", "retain_grad"})  # they change the copy, as the caller wants
_IN_PLACE = frozenset(
    f"__i{name}__"
    for name in (
        *("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "matmul"),
        *("and", "or", "xor", "lshift", "rshift"),
    )
)


class _BesideParameters(type(Tensor)):  # type: ignore[misc]
    """Lets `torch.testing.assert_close` compare a copy with a parameter: it asks `isinstance`."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return type(instance) is cls or type(instance) is nn.Parameter


class WeightCopy(Tensor, metaclass=_BesideParameters):
    """A copy of a model's weights. Writing to it would not reach the model, so that raises.

    Views of it are `WeightCopy` too. Operations that compute a new tensor, `clone` among them,
    return an ordinary one. NumPy arrays made from it are read-only.

    Example:
        >>> copy = WeightCopy.of(torch.ones(2))
        >>> copy.clone().mul_(0)
        tensor([0., 0.])
        >>> copy.mul_(0)
        Traceback (most recent call last):
        ...
        lensbridge.errors.WeightError: mul_ would write to a copy of the model's weights...
    """

    why: str = ""

    @staticmethod
    def of(tensor: Tensor, why: str = "") -> Tensor:
        """A `WeightCopy` with the values and the graph of a tensor.

        Args:
            tensor: the values.
            why: why it is a copy and what to do to change the model, as sentences.
        """
        copy = tensor.as_subclass(WeightCopy)
        copy.why = why
        return copy

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.detach().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain(self).__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = [one for one in written_to(func, args, kwargs) if type(one) is cls]
        if written:
            raise refusal(func, written[0].why)
        copies = [one for one in tree_leaves((args, kwargs)) if type(one) is cls]
        with torch._C.DisableTorchFunctionSubclass():
            before = [version(one) for one in copies]
            result = func(*args, **kwargs)
            if [version(one) for one in copies] != before:
                raise refusal(func, copies[0].why)
            return guarded(result, copies)


def live_or_copy(weight: Tensor, why: str = "") -> Tensor:
    """The weight itself where it is a view of a native parameter; otherwise a `WeightCopy`.

    Args:
        weight: what was read.
        why: why it would be a copy, for the error of a write to it.
    """
    if type(weight) is WeightCopy:
        return weight
    root = weight if weight._base is None else weight._base
    return weight if isinstance(root, nn.Parameter) else WeightCopy.of(weight, why)


def written_to(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors that a call of torch writes to, judged by its name and arguments.

    For other calls that write (`relu(x, inplace=True)`), compare `version` before and after.
    """
    name = getattr(func, "__name__", "")
    if name == "__set__":
        name = f"__set__ {getattr(getattr(func, '__self__', None), '__name__', '')}"
        writes = name not in ("__set__ grad", "__set__ requires_grad")
    else:
        in_place = name.endswith("_") and not name.endswith("__") and name not in _MARKS
        writes = in_place or name in _IN_PLACE or name == "__setitem__"
    if writes:
        first = args[0] if args else next(iter(kwargs.values()), None)
        yield from (one for one in tree_leaves(first) if isinstance(one, Tensor))
    yield from (one for one in tree_leaves(kwargs.get("out")) if isinstance(one, Tensor))


def version(tensor: Tensor) -> int | None:
    """A number that changes when the tensor is written to; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def guarded(result: Any, copies: Sequence[Tensor]) -> Any:
    """A result in which every tensor that shares its memory with a copy is a `WeightCopy`."""
    if isinstance(result, (bool, int, float, str, torch.Size)) or not copies:
        return result
    if type(result).__module__ == "numpy" and hasattr(result, "flags"):
        result.flags.writeable = False
        return result
    held = {_storage(one) for one in copies} - {None}
    why = next((one.why for one in copies if isinstance(one, WeightCopy)), "")

    def guard(one: Any) -> Any:
        shares = isinstance(one, Tensor) and _storage(one) in held
        return WeightCopy.of(one, why) if shares and type(one) is Tensor else one

    return guard(result) if isinstance(result, Tensor) else tree_map(guard, result)


def refusal(func: Any, why: str = "") -> WeightError:
    """The error for a write to a copy of weights.

    Args:
        func: what would write.
        why: why it is a copy and what to do, if that is known.
    """
    name = getattr(func, "__name__", str(func))
    what = f"Setting .{func.__self__.__name__}" if name == "__set__" else name
    return WeightError(
        f"{what} would write to a copy of the model's weights, and the model would not change. "
        f"{why or _USUAL} To change only the copy, take .clone() first."
    )


_USUAL = (
    "To change the model, write to each layer that it has as a parameter: "
    "with torch.no_grad(): for layer in model.W_O: layer[2].zero_(). Weights that are computed "
    "(expanded K and V, zeros for a missing bias, products of weights) cannot be written to; "
    "change the parameters that they are made of, in model.hf_model."
)


def _plain(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def _storage(tensor: Tensor) -> int | None:
    if tensor.layout != torch.strided:
        return None
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # inside a transform of torch.func, which has no memory
        return None
