"""`RouterTap`: reads and edits the logits inside one call of a router."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lensbridge.errors import HookError
from lensbridge.sites.call import Chain

_ROUTER_PRODUCTS = frozenset(
    {F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.addmm}
)


class RouterTap(TorchFunctionMode):
    """Watches one call of a router for the first product with as many columns as experts."""

    def __init__(self, name: str, chain: Chain, shape: tuple[int, ...], n_experts: int) -> None:
        super().__init__()
        self.name = name
        self.chain = chain
        self.shape = shape
        self.n_experts = n_experts
        self.seen = False
        self.looking = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.seen or not self.looking or func not in _ROUTER_PRODUCTS:
            return out
        if out.shape[-1] != self.n_experts:
            return out
        self.seen = True
        new = self.chain.run(out.view(*self.shape, self.n_experts))
        return out if new is None else new.view(out.shape)

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc, traceback)  # type: ignore[no-untyped-call]
        if exc_type is None and not self.seen:
            raise HookError(
                f"{self.name}: the router ran no product with {self.n_experts} columns, so its "
                "logits cannot be read. Leave this point out."
            )
