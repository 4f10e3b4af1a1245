"""What is done in a process that is forked off this one.

A forked process (a `DataLoader` worker, `multiprocessing` on Linux before Python 3.14) has a copy
of all that is in memory: hooks that are on a model, and locks that another thread held.
"""

import os
from collections.abc import Callable


def in_forked(function: Callable[[], None]) -> Callable[[], None]:
    """Call a function at the start of every process that is forked off this one.

    Args:
        function: takes nothing. It is given back, so that this is a decorator.
    """
    if hasattr(os, "register_at_fork"):  # Windows does not fork
        os.register_at_fork(after_in_child=function)
    return function
