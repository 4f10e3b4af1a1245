"""What a cache needs of the model that was run."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from lensbridge.inputs.tokens import Tokens
from lensbridge.native.config import LensConfig
from lensbridge.native.parts import ResolvedModel
from lensbridge.points.point_names import PointNames


class CachedModel(Protocol):
    """A model whose activations a cache holds; `HookedModel` is one."""

    native: ResolvedModel

    @property
    def vocabulary(self) -> PointNames:
        """The names of its points."""

    @property
    def cfg(self) -> LensConfig:
        """The sizes and choices of the model."""

    @property
    def processed_by(self) -> tuple[str, ...]:
        """The steps of weight processing that are in force."""

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """The columns of `W_U` of some tokens."""


@runtime_checkable
class ReadsLogits(Protocol):
    """A model that has a logit lens; `LensModel` is one."""

    def logit_lens(self, input: Any = None, **options: Any) -> Any:
        """`lensbridge.analysis.logit_lens` of an input or a cache."""


@runtime_checkable
class Decodes(Protocol):
    """A model that knows the text of its tokens; `HookedModel` is one."""

    tokens: Tokens
