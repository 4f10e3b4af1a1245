"""Causal analysis: estimates of patches by gradients, circuits, and how faithful they are."""

from lensbridge.causal.attribution import (
    AttributionConfig,
    EdgeAttributionConfig,
    attribution_patch,
)
from lensbridge.causal.graph import Graph, enumerate_edges
from lensbridge.causal.node import Edge, Node
from lensbridge.causal.result import AttributionResult
from lensbridge.causal.units import enumerate_nodes

__all__ = [
    "AttributionConfig",
    "AttributionResult",
    "Edge",
    "EdgeAttributionConfig",
    "Graph",
    "Node",
    "attribution_patch",
    "enumerate_edges",
    "enumerate_nodes",
]
