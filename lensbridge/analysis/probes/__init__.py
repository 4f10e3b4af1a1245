"""Linear probes: what can be read from activations by a linear map, layer by layer."""

from lensbridge.analysis.probes.fit import fit_probe
from lensbridge.analysis.probes.probe import Probe
from lensbridge.analysis.probes.result import ProbeResult

__all__ = ["Probe", "ProbeResult", "fit_probe"]
