"""Small functions on tensors and names."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from inspect import signature
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lensbridge.errors import InputError


def to_numpy(tensor: Any) -> Any:
    """A numpy array of a tensor, an array, a list or a number."""
    if isinstance(tensor, Tensor):
        return tensor.detach().cpu().numpy()
    if isinstance(tensor, np.ndarray):
        return tensor
    return np.array(
        [to_numpy(one) for one in tensor] if isinstance(tensor, list | tuple) else tensor
    )


def get_corner(tensor: Any, n: int = 3) -> Any:
    """The first `n` entries of every axis."""
    return tensor[tuple(slice(n) for _ in range(tensor.ndim))]


def remove_batch_dim(tensor: Tensor) -> Tensor:
    """The tensor without its first axis, if that has size one."""
    return tensor[0] if tensor.shape[0] == 1 else tensor


def transpose(tensor: Tensor) -> Tensor:
    """Shapes: `[..., a, b]` -> `[..., b, a]`"""
    return tensor.transpose(-1, -2)


def is_square(x: Tensor) -> bool:
    """Whether it is a square matrix."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: Tensor) -> bool:
    """Whether it is a square matrix with nothing above its diagonal."""
    return is_square(x) and torch.equal(x, x.tril())


def check_structure(t1: Tensor, t2: Tensor, *, verbose: bool = False) -> None:
    """Print whether two square matrices have the same order along their rows and columns.

    Args:
        t1: one.
        t2: the other.
        verbose: also print where they differ.
    """
    same = True
    for what, axis in (("rows", 1), ("columns", 0)):
        grows = [(one.diff(dim=axis) >= 0) for one in (t1, t2)]
        wrong = (grows[0] != grows[1]).any(axis).nonzero().flatten().tolist()
        same = same and not wrong
        if wrong and verbose:
            print(f"{what} that differ: {wrong}")
    print("PASSED" if same else "FAILED")


def get_cumsum_along_dim(tensor: Tensor, dim: int, reverse: bool = False) -> Tensor:
    """Running sums along an axis; with `reverse` from its end."""
    return tensor.flip(dim).cumsum(dim).flip(dim) if reverse else tensor.cumsum(dim)


def get_offset_position_ids(past_kv_pos_offset: int, attention_mask: Tensor) -> Tensor:
    """The position of each token after `past_kv_pos_offset`, without counting padding.

    Shapes: `[batch, offset + pos]` -> `[batch, pos]`; padding in front is at position 0.
    """
    positions = attention_mask.cumsum(-1) - 1
    return positions.clamp(min=0)[:, past_kv_pos_offset:]


def positions_of(
    W_pos: Tensor,
    tokens: Tensor,
    past_kv_pos_offset: int = 0,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Position embeddings of tokens; padding is not counted and has zeros.

    Args:
        W_pos: `[position, d_model]`
        tokens: `[batch, pos]`
        past_kv_pos_offset: how many columns come before.
        attention_mask: `[batch, past_kv_pos_offset + pos]`, 1 for tokens and 0 for padding.

    Shapes: `[batch, pos, d_model]`
    """
    end = past_kv_pos_offset + tokens.shape[-1]
    if attention_mask is None:
        return W_pos[past_kv_pos_offset:end].expand(*tokens.shape, -1).clone()
    if attention_mask.shape[-1] != end:
        raise InputError(
            f"attention_mask has {attention_mask.shape[-1]} columns; {past_kv_pos_offset} before "
            f"and {tokens.shape[-1]} tokens are {end}."
        )
    given = W_pos[get_offset_position_ids(past_kv_pos_offset, attention_mask)]
    padding = attention_mask[:, past_kv_pos_offset:, None] == 0
    return torch.where(padding, 0.0, given)


def whole_numbers(ids: Tensor) -> Tensor:
    """Ids that were given as floats, as integers.

    Raises:
        InputError: they are not whole numbers.
    """
    if not bool((ids == ids.round()).all()):
        raise InputError("Token ids are integers; these floats are not whole numbers.")
    return ids.long()


def is_library_available(name: str) -> bool:
    """Whether a library is installed; it is not imported."""
    return name in sys.modules or find_spec(name) is not None


def repeat_along_head_dimension(tensor: Tensor, n_heads: int, clone_tensor: bool = True) -> Tensor:
    """Shapes: `[batch, pos, d_model]` -> `[batch, pos, head, d_model]`; a view unless cloned."""
    repeated = tensor.unsqueeze(-2).expand(*tensor.shape[:-1], n_heads, -1)
    return repeated.clone() if clone_tensor else repeated


def filter_dict_by_prefix(dictionary: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries below a path, without the path.

    Example:
        >>> filter_dict_by_prefix({"a.b": 1, "ab": 2}, "a")
        {'b': 1}
    """
    start = prefix if prefix.endswith(".") else f"{prefix}."
    return {
        key.removeprefix(start): value for key, value in dictionary.items() if key.startswith(start)
    }


def get_nested_attr(obj: Any, attr_str: str) -> Any:
    """`get_nested_attr(model, "blocks.0.attn")`; numbers are indices."""
    for step in attr_str.split("."):
        obj = obj[int(step)] if step.isdigit() else attrgetter(step)(obj)
    return obj


def set_nested_attr(obj: Any, attr_str: str, value: Any) -> None:
    """Set the attribute that `get_nested_attr` returns."""
    path, _, last = attr_str.rpartition(".")
    setattr(get_nested_attr(obj, path) if path else obj, last, value)


@contextmanager
def temporarily_swap_parameter(parameter: Any, new_value: Any) -> Iterator[nn.Parameter]:
    """A context with another value in a parameter's own memory."""
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(new_value)
    try:
        yield parameter
    finally:
        with torch.no_grad():
            parameter.copy_(before)


def select_compatible_kwargs(
    kwargs_dict: Mapping[str, Any], callable: Callable[..., Any]
) -> dict[str, Any]:
    """The entries that are parameters of a function."""
    known = signature(callable).parameters
    return {name: value for name, value in kwargs_dict.items() if name in known}


def get_device() -> torch.device:
    """A GPU if there is one. Apple's is taken if TRANSFORMERLENS_ALLOW_MPS is "1"."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    apple = torch.backends.mps.is_built() and torch.backends.mps.is_available()
    allowed = os.environ.get("TRANSFORMERLENS_ALLOW_MPS") == "1"
    return torch.device("mps" if apple and allowed else "cpu")


def print_gpu_mem(step_name: str = "") -> None:
    """Print the memory that tensors take on the GPU, in GiB."""
    used = torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    print(f"{step_name} {used:.2f} GiB on the GPU")
