"""Methods of `LensModel` for reading the residual stream as tokens."""

from typing import Any

from lensbridge.analysis.lens import logit_lens
from lensbridge.hooked_model import HookedModel


class AnalysisMethods(HookedModel):
    """Methods of `LensModel` for the logit lens."""

    def logit_lens(self, input: Any = None, **options: Any) -> Any:
        """Logits of the residual stream at every layer; see `lensbridge.analysis.logit_lens`.

        Args:
            input: as in `forward`; None with `cache=`.
            options: other arguments of that function.
        """
        return logit_lens(self, input, **options)
