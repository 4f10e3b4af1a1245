"""A model whose runs take a while, and are counted."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lensbridge.model import LensModel


class Slow:
    """How often a GPT-2 is run, and how often at the same time.

    Attributes:
        runs: how often it was run in a paused block.
        most: how many runs there were at the same time.
    """

    def __init__(self, model: LensModel) -> None:
        self.model = model
        self.pause = 0.0
        self.runs = self.now = self.most = 0
        self.lock = threading.Lock()

    def before(self, module: Any, args: Any) -> None:
        with self.lock:
            self.runs += 1
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.pause)

    def after(self, module: Any, args: Any, out: Any) -> None:
        with self.lock:
            self.now -= 1

    @contextmanager
    def paused(self, seconds: float) -> Iterator["Slow"]:
        """Runs take so long while the block runs."""
        last = self.model.hf_model.transformer.h[-1]
        add, then = last.register_forward_pre_hook, last.register_forward_hook
        hooks = [add(self.before), then(self.after)]
        self.pause = seconds
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()
