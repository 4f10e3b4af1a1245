"""Tools that read a model: lenses, attribution, head detection, singular vectors."""

from lensbridge.analysis.lens import logit_lens
from lensbridge.analysis.lens_result import LogitLensResult
from lensbridge.analysis.readout import LogitReadout, logit_readout

__all__ = [
    "LogitLensResult",
    "LogitReadout",
    "logit_lens",
    "logit_readout",
]
