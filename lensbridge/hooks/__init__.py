"""Hooks on the native model: callbacks, the engine that attaches them, forward passes."""
