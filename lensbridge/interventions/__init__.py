"""Interventions: objects that describe an edit, for runs, for generation and for files.

An intervention says what is done, at which point, at which positions and when. It becomes hooks, so
it can be combined with hooks, caches, SAEs and other interventions.
"""

from lensbridge.interventions.apply import Apply
from lensbridge.interventions.bases import (
    mean_difference_basis,
    neuron_basis,
    probe_basis,
    random_basis,
    random_neuron_basis,
)
from lensbridge.interventions.cells import cells_of
from lensbridge.interventions.columns import Positions
from lensbridge.interventions.das import DASResult, fit_das
from lensbridge.interventions.document import from_json, to_json
from lensbridge.interventions.erasing import fit_erasure
from lensbridge.interventions.erasure import AffineEraser, Erase, leace
from lensbridge.interventions.exchange import Mean, Resample, Swap
from lensbridge.interventions.functions import register_function
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.kinds import Add, Noise, Project, Replace, Scale, Steer, Zero
from lensbridge.interventions.steered import GatedSteer, NormPreservingSteer
from lensbridge.interventions.steering import steering_vector
from lensbridge.interventions.steering_vectors import SteeringVectors
from lensbridge.interventions.tracing import CausalTrace, causal_trace
from lensbridge.interventions.when import When

__all__ = [
    "Add",
    "AffineEraser",
    "Apply",
    "CausalTrace",
    "DASResult",
    "Erase",
    "GatedSteer",
    "Intervention",
    "Mean",
    "Noise",
    "NormPreservingSteer",
    "Positions",
    "Project",
    "Replace",
    "Resample",
    "Scale",
    "Steer",
    "SteeringVectors",
    "Swap",
    "When",
    "Zero",
    "causal_trace",
    "cells_of",
    "fit_das",
    "fit_erasure",
    "from_json",
    "leace",
    "mean_difference_basis",
    "neuron_basis",
    "probe_basis",
    "random_basis",
    "random_neuron_basis",
    "register_function",
    "steering_vector",
    "to_json",
]
