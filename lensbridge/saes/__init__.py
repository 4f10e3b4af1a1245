"""Sparse autoencoders and transcoders on a model: read, spliced in, patched, differentiated.

Anything with `encode` and `decode` will do, SAELens's own classes among them. The methods are on
the model (`lensbridge.splicing`); what is here is how an SAE is asked what it is (`dictionary`),
how it fits a point (`fit`), what a user asked for (`request`) and what happens there in a run
(`splice`).
"""

from lensbridge.saes.dictionary import Dictionary, SparseAutoencoder
from lensbridge.saes.fit import Fit
from lensbridge.saes.splice import Splice

__all__ = ["Dictionary", "Fit", "SparseAutoencoder", "Splice"]
