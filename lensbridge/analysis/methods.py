"""Methods of `LensModel` for reading the residual stream as tokens."""

from lensbridge.analysis import lens
from lensbridge.hooked_model import HookedModel


class AnalysisMethods(HookedModel):
    """Methods of `LensModel` for the logit lens."""

    logit_lens = lens.logit_lens
