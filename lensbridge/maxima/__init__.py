"""Where a value of a model is largest in many texts: of a neuron, of a feature of an SAE.

Texts are run in batches, and what is kept does not grow with their number. `neuron_card` of
`lensbridge.analysis` and `feature_card` of `lensbridge.saes` are made of it.
"""

from lensbridge.maxima.card import ActivationCard
from lensbridge.maxima.effects import LogitEffects
from lensbridge.maxima.peaks import Peak
from lensbridge.maxima.tally import Tally

__all__ = ["ActivationCard", "LogitEffects", "Peak", "Tally"]
