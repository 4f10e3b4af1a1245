"""Attention that is called by itself: `model.blocks[0].attn(x, x, x)`."""

from typing import Any

from torch import Tensor, nn

from lensbridge.compat.transformer_lens.places import Frame, Place, place_at
from lensbridge.compat.transformer_lens.replacing import one_value
from lensbridge.errors import HookError, InputError
from lensbridge.hooks.scope import NOBODY, entered
from lensbridge.hooks.standing import twin_of
from lensbridge.model import LensModel


def run_attention(lens: LensModel, path: str, *args: Any, **kwargs: Any) -> Tensor:
    """What the attention of a layer gives for a value, with the masks and rotations of a run.

    The layer is run on the value, for what it calls its attention with. Hooks do not act.

    Args:
        lens: the model.
        path: of the attention: `blocks.0.attn`.
        args: the value, once for queries, keys and values, or three times.
        kwargs: the same by TransformerLens's names.

    Shapes: `[batch, pos, d_model]`

    Raises:
        InputError: this model has no module for it, or more is asked than one value gives.
    """
    value = _value(path, *args, **kwargs)
    place = _place(lens, path)
    found: list[Tensor] = []

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not found:
            found.append(Frame(place, twin_of(module), args, kwargs).run_native(value))

    reading = place.module.register_forward_pre_hook(read, with_kwargs=True)
    try:
        with entered(lens.engine, NOBODY):
            lens.blocks[int(path.split(".")[1])](value.detach())
    finally:
        reading.remove()
    return found[0]


def _value(path: str, *args: Any, **kwargs: Any) -> Tensor:
    value: Tensor = one_value(path, *args, **kwargs)
    inputs = ("query_input", "key_input", "value_input", "value")
    more = [name for name, one in kwargs.items() if name not in inputs and one is not None]
    if more or len(args) > 3:
        raise InputError(
            f"{path} takes no {', '.join(more) or 'more than three values'} when it is called by "
            "itself. Run the model, which makes the masks and keeps the keys."
        )
    return value


def _place(lens: LensModel, path: str) -> Place:
    try:
        return place_at(lens.native, path)
    except HookError as error:
        raise InputError(
            f"{path} cannot be run alone: {error} To run the layer: "
            f"model.{path.rpartition('.')[0]}(resid)."
        ) from error
