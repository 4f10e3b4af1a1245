"""Updates in closed form that make a weight map given keys to given values."""

import torch
from torch import Tensor

from lensbridge.editing.moments import SecondMoment
from lensbridge.errors import InputError, ShapeError


def rank_one_update(
    weight: Tensor, key: Tensor, value: Tensor, moment: SecondMoment | Tensor | None = None
) -> Tensor:
    """A weight with `key @ weight = value` that differs from the given one by a matrix of rank one.

    Of all weights that map the key to the value, it is the one that changes the outputs of other
    keys least, in the mean square over keys with this second moment.

    Args:
        weight: such as `model.weight("blocks.3.mlp.W_out")`.
        key: an input of it.
        value: the output that the key is to have.
        moment: the second moment of its inputs; None: all directions count the same.

    Shapes: weight `[in, out]`, key `[in]`, value `[out]` -> `[in, out]`

    Raises:
        ShapeError: sizes that do not fit.
        InputError: the key is zero, or the second moment is singular.

    Source: Meng et al. 2022, "Locating and editing factual associations in GPT" (ROME).
    """
    W, k, v = (one.detach().as_subclass(Tensor).double() for one in (weight, key, value))
    if W.ndim != 2 or k.shape != W.shape[:1] or v.shape != W.shape[1:]:
        raise ShapeError(
            f"The weight is {list(W.shape)}, so the key is [{W.shape[0]}] and the value "
            f"[{W.shape[-1]}], not {list(k.shape)} and {list(v.shape)}."
        )
    if not bool(k.any()):
        raise InputError("The key is zero: no weight maps it to anything else.")
    along = _solved(_matrix(moment, W), k[:, None])[:, 0]
    return (W + torch.outer(along, v - k @ W) / (along @ k)).to(weight.dtype)


def least_squares_update(
    weight: Tensor,
    keys: Tensor,
    values: Tensor,
    moment: SecondMoment | Tensor,
    preserve: float = 15000.0,
) -> Tensor:
    """A weight that maps many keys to about their values and others to about what they had.

    It is the least-squares solution for the given keys together with those that the second moment
    stands for.

    Args:
        weight: such as `model.weight("blocks.3.mlp.W_out")`.
        keys: inputs of it.
        values: the outputs that these keys are to have.
        moment: the second moment of its inputs.
        preserve: how many keys the second moment counts for.

    Shapes: weight `[in, out]`, keys `[n, in]`, values `[n, out]` -> `[in, out]`

    Raises:
        ShapeError: sizes that do not fit.
        InputError: `preserve` is not positive, or the second moment is singular.

    Source: Meng et al. 2023, "Mass-editing memory in a transformer" (MEMIT).
    """
    W, K, V = (one.detach().as_subclass(Tensor).double() for one in (weight, keys, values))
    if W.ndim != 2 or K.ndim != 2 or K.shape[1:] != W.shape[:1] or V.shape != (len(K), W.shape[1]):
        raise ShapeError(
            f"The weight is {list(W.shape)}, so the keys are [n, {W.shape[0]}] and the values [n, "
            f"{W.shape[-1]}], not {list(K.shape)} and {list(V.shape)}."
        )
    if not preserve > 0:
        raise InputError(f"preserve is a number of keys above 0, not {preserve!r}.")
    gram = preserve * _matrix(moment, W) + K.T @ K
    return (W + _solved(gram, K.T @ (V - K @ W))).to(weight.dtype)


def _matrix(moment: SecondMoment | Tensor | None, weight: Tensor) -> Tensor:
    """Shapes: `[in, in]`"""
    if moment is None:
        return torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    found = moment.matrix if isinstance(moment, SecondMoment) else moment
    if found.shape != (len(weight), len(weight)):
        raise ShapeError(
            f"The second moment of inputs of a weight {list(weight.shape)} is [{len(weight)}, "
            f"{len(weight)}], not {list(found.shape)}."
        )
    return found.detach().to(weight)


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve for a second moment, which is symmetric and has to be positive.

    Raises:
        InputError: it is singular.
    """
    root, failed = torch.linalg.cholesky_ex(matrix)
    smallest = root.diagonal().min() / root.diagonal().max()
    if bool(failed) or not bool(smallest > 1e-8):
        raise InputError(
            f"The second moment of {len(matrix)} inputs is singular: it is of too few tokens, or "
            "some inputs are always zero. Gather it from more texts, or add a small multiple of "
            "the identity: moment.matrix + 1e-4 * torch.eye(d)."
        )
    return torch.cholesky_solve(right, root)
