"""Tensors of the field: head layouts, slices, factored matrices, lazy layer stacks, losses."""
