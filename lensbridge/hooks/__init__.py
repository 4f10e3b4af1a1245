"""Hooks on the native model: callbacks, the engine that attaches them, forward passes."""

from lensbridge.hooks.callbacks import Hook, HookFunction
from lensbridge.hooks.carrying import carry_hooks
from lensbridge.hooks.hook_point import HookHandle, HookPoint

__all__ = ["Hook", "HookFunction", "HookHandle", "HookPoint", "carry_hooks"]
