"""Methods of `LensModel` for reading states, as they are and as tokens."""

from lensbridge.analysis import lens, states
from lensbridge.hooked_model import HookedModel


class AnalysisMethods(HookedModel):
    """Methods of `LensModel` for states at positions and for the logit lens."""

    logit_lens = lens.logit_lens
    states_at = states.states_at
