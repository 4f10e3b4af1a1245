# ruff: noqa: N999 (the name is TransformerLens's)
"""`SVDInterpreter` for models of this package."""

from typing import Any

from lensbridge.analysis import svd
from lensbridge.compat.transformer_lens.raised import asserting
from lensbridge.compat.transformer_lens.translation import lens_of


class SVDInterpreter(svd.SVDInterpreter):
    """Singular vectors of a model's weights, as logits of tokens.

    Args:
        model: a model of this package or of lensbridge.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(lens_of(model))

    get_singular_vectors = asserting(svd.SVDInterpreter.get_singular_vectors)
