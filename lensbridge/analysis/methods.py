"""Methods of `LensModel` for reading the residual stream as tokens."""

from typing import Any

from lensbridge.analysis.lens import logit_lens
from lensbridge.hooked_model import HookedModel


class AnalysisMethods(HookedModel):
    """What the layers predict."""

    def logit_lens(self, input: Any = None, **options: Any) -> Any:
        """See `lensbridge.analysis.logit_lens`.

        Args:
            input: as in `forward`; None with `cache=`.
            options: others of that function.
        """
        return logit_lens(self, input, **options)
