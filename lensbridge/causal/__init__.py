"""Attribution patching, circuits, and measures of how faithful a circuit is to its model."""

from lensbridge.causal.attribution import (
    AttributionConfig,
    EdgeAttributionConfig,
    attribution_patch,
)
from lensbridge.causal.circuit import Circuit
from lensbridge.causal.edge import Edge
from lensbridge.causal.faithfulness import (
    FaithfulnessConfig,
    FaithfulnessResult,
    faithfulness,
)
from lensbridge.causal.gradient_cache import (
    GradientCache,
    cache_activation_and_gradient,
    capture_writer_outputs,
)
from lensbridge.causal.graph import Graph, enumerate_edges
from lensbridge.causal.integrated import IntegratedGradients, integrated_gradients
from lensbridge.causal.pruning import Pruning, Trial, prune_circuit
from lensbridge.causal.result import AttributionResult
from lensbridge.causal.screening import Screening, screen
from lensbridge.nodes.node import Node
from lensbridge.nodes.units import enumerate_nodes

__all__ = [
    "AttributionConfig",
    "AttributionResult",
    "Circuit",
    "Edge",
    "EdgeAttributionConfig",
    "FaithfulnessConfig",
    "FaithfulnessResult",
    "GradientCache",
    "Graph",
    "IntegratedGradients",
    "Node",
    "Pruning",
    "Screening",
    "Trial",
    "attribution_patch",
    "cache_activation_and_gradient",
    "capture_writer_outputs",
    "enumerate_edges",
    "enumerate_nodes",
    "faithfulness",
    "integrated_gradients",
    "prune_circuit",
    "screen",
]
