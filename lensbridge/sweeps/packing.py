"""Packing: an MLP treats each token alone, so it can be run on the tokens that matter."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from lensbridge.native.parts import BlockPart, MLPPart


def mlp_of(block: BlockPart) -> nn.Module | None:
    """The module that is a block's MLP and nothing else; None if the block has none.

    None, too, where it does not treat each token alone.
    """
    part = block.mlp
    if not isinstance(part, MLPPart) or part.token_shift is not None:
        return None
    return part.module if part.module is not block.module else None


@contextmanager
def packed(module: nn.Module, kept: Tensor) -> Iterator[None]:
    """Run a module on some tokens of its input only, in this thread; its output at others is zero.

    Calls with more than one tensor, or tensors of another shape, are left as they are.

    Args:
        module: one that treats each token alone.
        kept: which tokens.

    Shapes: kept `[batch, pos]` bool; the input `[batch, pos, d_model]`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> kept = torch.tensor([[True, False]])
        >>> twice = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(twice.weight, 2.0)
        >>> with packed(twice, kept), torch.no_grad():
        ...     twice(torch.ones(1, 2, 1)).flatten().tolist()
        [2.0, 0.0]
    """
    owner = get_ident()
    fitting = list[bool]()

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if get_ident() != owner:
            return None
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        fitting.append(alone and args[0].shape[:-1] == kept.shape)
        return ((args[0][kept.to(args[0].device)].unsqueeze(0),), kwargs) if fitting[-1] else None

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if get_ident() != owner or not fitting.pop():
            return None
        whole = output.new_zeros(*kept.shape, output.shape[-1])
        whole[kept.to(output.device)] = output.squeeze(0)
        return whole

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
