"""Gradients of any scalar at any points."""
