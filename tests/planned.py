"""Plans beside what runs keep: what the tests of plans share."""

from functools import cache

from described import of_class
from tiny_models import Shape, build, tokens
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.plans import Plan

IDS = tokens(2, 9)
TINY = ("gpt2", "llama")


@cache
def model_of(name: str) -> LensModel:
    return lensbridge.load(build(Shape(name))) if name in TINY else of_class(name)


def storages(cache: dict[str, Tensor]) -> int:
    """Bytes of memory that a cache holds on to."""
    found = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in cache.values()}
    return sum(one.nbytes() for one in found.values())


def require_as_told(plan: Plan, cache: dict[str, Tensor]) -> None:
    """Each value is as the plan says, and so is the whole, to the byte."""
    assert list(plan.values) == list(cache)
    for name, tensor in cache.items():
        value = plan.values[name]
        assert (value.shape, value.dtype) == (tuple(tensor.shape), tensor.dtype), name
        assert plan.bytes[name] == tensor.numel() * tensor.element_size()
    assert plan.total == storages(cache)
    assert plan.by_device == {"cpu": plan.total}
