"""How patching functions are called, for type checkers and editors.

A function gives a tensor, or with some options a `PatchingResult`. After an interrupt (Ctrl-C) it
gives a `PatchingResult` in any case, which the types leave out.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol, overload

from torch import Tensor

from lensbridge.hooked_model import HookedModel
from lensbridge.sweeps.metric import MetricFunction
from lensbridge.sweeps.result import PatchingResult

Named = Mapping[str, MetricFunction]
"""Several metrics by name."""

Cache = Mapping[str, Tensor]
"""Activations of the clean run."""


class PatchingFunction(Protocol):
    """A function that patches one activation over a grid."""

    @overload
    def __call__(
        self,
        model: HookedModel,
        corrupted_tokens: Any,
        clean_cache: Cache,
        patching_metric: Named,
        index_df: Any = None,
        **options: Any,
    ) -> PatchingResult: ...
    @overload
    def __call__(
        self,
        model: HookedModel,
        corrupted_tokens: Any,
        clean_cache: Cache,
        patching_metric: MetricFunction,
        index_df: Any = None,
        *,
        baseline: Literal[True],
        **options: Any,
    ) -> PatchingResult: ...
    @overload
    def __call__(
        self,
        model: HookedModel,
        corrupted_tokens: Any,
        clean_cache: Cache,
        patching_metric: MetricFunction,
        index_df: Any = None,
        *,
        reduce: Literal["none"],
        **options: Any,
    ) -> PatchingResult: ...
    @overload
    def __call__(
        self,
        model: HookedModel,
        corrupted_tokens: Any,
        clean_cache: Cache,
        patching_metric: MetricFunction,
        index_df: Any = None,
        *,
        return_index_df: Literal[True],
        **options: Any,
    ) -> tuple[Tensor, Any]: ...
    @overload
    def __call__(
        self,
        model: HookedModel,
        corrupted_tokens: Any,
        clean_cache: Cache,
        patching_metric: MetricFunction,
        index_df: Any = None,
        **options: Any,
    ) -> Tensor: ...


class StackedPatchingFunction(Protocol):
    """A function that patches several activations, each over the same grid."""

    @overload
    def __call__(
        self,
        model: HookedModel,
        corrupted_tokens: Any,
        clean_cache: Cache,
        metric: Named,
        **options: Any,
    ) -> PatchingResult: ...
    @overload
    def __call__(
        self,
        model: HookedModel,
        corrupted_tokens: Any,
        clean_cache: Cache,
        metric: MetricFunction,
        *,
        baseline: Literal[True],
        **options: Any,
    ) -> PatchingResult: ...
    @overload
    def __call__(
        self,
        model: HookedModel,
        corrupted_tokens: Any,
        clean_cache: Cache,
        metric: MetricFunction,
        *,
        reduce: Literal["none"],
        **options: Any,
    ) -> PatchingResult: ...
    @overload
    def __call__(
        self,
        model: HookedModel,
        corrupted_tokens: Any,
        clean_cache: Cache,
        metric: MetricFunction,
        **options: Any,
    ) -> Tensor: ...
