"""Heads, MLPs and neurons as the nodes that paths and circuits are made of."""
