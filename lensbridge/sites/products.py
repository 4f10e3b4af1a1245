"""Points at projections that are parameters: the `einsum` of each is computed in its `Product`."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lensbridge.native.product import Product
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.composed import OuterSite
from lensbridge.sites.site import Site

_BEFORE_KERNELS = 7


class ProductTap(TorchFunctionMode):
    """Watches one call of one module for the products with some of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[str, Product] = {}
        self.looking = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = self._product(args) if self.looking and func is torch.einsum else None
        if product is None:
            return func(*args, **(kwargs or {}))
        return product.in_place_of(*args[:2])

    def _product(self, args: Any) -> Product | None:
        """The one whose parameter is the second of two factors."""
        found = (one for one in self.products.values() if len(args) == 3)
        return next((one for one in found if args[2] is one.parameter), None)


@dataclass(frozen=True)
class ProductSite(OuterSite):
    """A point at products, whose holder is watched while it runs."""

    def _of(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return (*_watching(stage.module for stage in stages), *stages)

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        return self.inner.around_run(root)


def _watching(modules: Iterable[nn.Module]) -> list[Stage]:
    return [
        Stage(product.holder, "input", _BEFORE_KERNELS, _watch(product), around=True)
        for product in dict.fromkeys(modules)
        if isinstance(product, Product)
    ]


def _watch(product: Product) -> Any:
    def watch(call: Call, chain: Chain) -> None:
        tap = call.around.setdefault("products", ProductTap())
        assert isinstance(tap, ProductTap)
        tap.products[product.name] = product

    return watch


def with_products(site: Site) -> Site:
    """A site, with what it takes to see the products that it is at."""
    at_products = any(isinstance(stage.module, Product) for stage in site.stages)
    return ProductSite(site.info, site) if at_products else site
