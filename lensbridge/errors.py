"""Every error that lensbridge raises, as one tree.

    LensbridgeError
    ├── LoadError                     the model could not be loaded
    │   ├── HubError                    gated, missing or unreachable repository
    │   ├── UnsupportedArchitectureError  no adapter describes this class
    │   ├── ArchitectureMismatchError     an adapter names a module that the model lacks
    │   └── PluginError                   a plugin is broken, or two claim one class
    ├── HookError                     a hook or a filter cannot do what was asked
    │   ├── UnknownPointError           no architecture has a point of this name
    │   ├── AbsentPointError            this model has no such point
    │   ├── NotCachedError              the cache does not have this point
    │   ├── HookNeverFiredError         the run did not pass the point
    │   ├── EditError                   a value that does not fit the point
    │   └── StaleActivationError        a captured tensor was overwritten later
    ├── InputError                    the input cannot be run
    │   ├── TokenizerMissingError
    │   ├── TokenError                  ids out of range, not a single token
    │   ├── LimitError                  more than a server allows for one request
    │   └── ContextLengthError
    ├── ShapeError                    matrices whose sizes do not fit
    ├── WeightError                   this model has no such weight
    │   └── NoDescriptionError          a plain module has no description that would have it
    ├── ProcessingError               weights cannot be rewritten as asked
    ├── UnsupportedError              this engine cannot do what was asked
    ├── RemoteError                   a server is not reached, or did not answer as it should
    ├── RanksError                    processes that share a model do not do the same
    └── ConformanceError              a model does not behave as its description says

A message says what was asked, what there is, and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "AbsentPointError",
    "ArchitectureMismatchError",
    "ConformanceError",
    "ContextLengthError",
    "EditError",
    "HookError",
    "HookNeverFiredError",
    "HubError",
    "InputError",
    "LensbridgeError",
    "LimitError",
    "LoadError",
    "NoDescriptionError",
    "NotCachedError",
    "PluginError",
    "ProcessingError",
    "RanksError",
    "RemoteError",
    "ShapeError",
    "StaleActivationError",
    "TokenError",
    "TokenizerMissingError",
    "UnknownPointError",
    "UnsupportedArchitectureError",
    "UnsupportedError",
    "WeightError",
    "suggest",
]


class LensbridgeError(Exception):
    """Root of the tree. `str(error)` is the message, also where KeyError would quote it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class LoadError(LensbridgeError):
    """The model could not be loaded."""


class HubError(LoadError, OSError):
    """The repository is gated, missing or unreachable."""


class UnsupportedArchitectureError(LoadError, ValueError):
    """No registered architecture describes this model class."""


class ArchitectureMismatchError(LoadError, ValueError):
    """An architecture names something that this model does not have."""


class PluginError(LoadError):
    """A plugin is broken, has a misspelt hook, or conflicts with another."""


class HookError(LensbridgeError):
    """A hook or a filter cannot do what was asked."""


class UnknownPointError(HookError, KeyError):
    """No architecture has a point of this name."""


class AbsentPointError(HookError, KeyError):
    """The name is right, but this model has no such point."""


class NotCachedError(HookError, KeyError):
    """The cache does not have this point."""


class HookNeverFiredError(HookError, RuntimeError):
    """A hook was attached to a point that the run did not pass."""


class EditError(HookError, ValueError):
    """A hook returned a value that cannot replace the activation."""


class StaleActivationError(HookError, RuntimeError):
    """A captured tensor was written to after it was captured."""


class InputError(LensbridgeError, ValueError):
    """The input cannot be run."""


class TokenizerMissingError(InputError):
    """Text was passed to a model without a tokenizer."""


class TokenError(InputError):
    """Token ids outside the vocabulary, or text that is not one token."""


class LimitError(InputError):
    """More than a server allows for one request."""


class ContextLengthError(InputError):
    """More positions than the model has."""


class ShapeError(LensbridgeError, ValueError, RuntimeError, AssertionError):
    """Matrices whose sizes do not fit.

    torch raises RuntimeError for these, and TransformerLens AssertionError: it is both.
    """


class WeightError(LensbridgeError, AttributeError):
    """This model has no such weight."""


class NoDescriptionError(WeightError):
    """What was asked for needs a description, and the model is a plain module without one."""


class ProcessingError(LensbridgeError, ValueError):
    """The weights cannot be rewritten as asked without changing what the model computes."""


class UnsupportedError(LensbridgeError, NotImplementedError):
    """An engine that runs models elsewhere cannot do what was asked."""


class RemoteError(LensbridgeError, RuntimeError):
    """A server is not reached, is too busy, or does not answer as it should."""


class RanksError(LensbridgeError, RuntimeError):
    """Processes that share one model do not do the same, as they have to."""


class ConformanceError(LensbridgeError, AssertionError):
    """A model does not behave as its description says."""


def suggest(wrong: str, known: Iterable[str], limit: int = 3) -> str:
    """A sentence with similar known names, or "" if there are none.

    Example:
        >>> suggest("hook_patern", ["hook_pattern", "hook_z"])
        " Did you mean 'hook_pattern'?"
    """
    close = get_close_matches(wrong, list(known), n=limit, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
