"""Methods of `LensModel` for attribution."""

from lensbridge.causal.integrated import integrated_gradients
from lensbridge.hooked_model import HookedModel


class CausalMethods(HookedModel):
    """Methods of `LensModel` for what contributes to a number."""

    integrated_gradients = integrated_gradients
