"""Weights under the field's names: `W_*`, `b_*`, `model.blocks[i]`; circuits made from them."""
