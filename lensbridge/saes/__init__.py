"""Sparse autoencoders and transcoders on a model: read, spliced in, patched, differentiated.

Any object with `encode` and `decode` is accepted, those of SAELens among them. `methods` has the
methods of `LensModel`, `dictionary` what is known of an SAE, `place` how it fits a point, `request`
what a user asked for, `splice` what an SAE does in a run, and `feature_card` where a feature is
active. `fit` trains one on activations.
"""

from lensbridge.saes.dictionary import Dictionary, SparseAutoencoder
from lensbridge.saes.feature_card import FeatureCard, feature_card
from lensbridge.saes.place import Fit
from lensbridge.saes.scoring import Score, score
from lensbridge.saes.splice import Splice
from lensbridge.saes.trained import TrainedSAE
from lensbridge.saes.training import fit

__all__ = [
    "Dictionary",
    "FeatureCard",
    "Fit",
    "Score",
    "SparseAutoencoder",
    "Splice",
    "TrainedSAE",
    "feature_card",
    "fit",
    "score",
]
