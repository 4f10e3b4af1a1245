"""`lensbridge.evals` for models of this package."""

from lensbridge import evals
from lensbridge.compat.transformer_lens.translation import translated_names

globals().update(translated_names(evals))
__all__ = evals.__all__
