"""Mechanistic interpretability on unmodified HuggingFace models.

import lensbridge
model = lensbridge.load("demo")
logits, cache = model.run_with_cache("The Eiffel Tower is in the city of")
"""

from typing import TYPE_CHECKING, Any

from lensbridge.errors import LensbridgeError, suggest
from lensbridge.spec import Architecture

if TYPE_CHECKING:
    from lensbridge.cache import ActivationCache
    from lensbridge.comparison import compare
    from lensbridge.experiments import Experiment
    from lensbridge.harvest import Activations, Harvest, Keep, Rows, sweep_dataset
    from lensbridge.hooks.callbacks import Hook
    from lensbridge.hooks.carrying import carry_hooks
    from lensbridge.loading import load
    from lensbridge.loading.elsewhere import load_vllm
    from lensbridge.model import LensModel
    from lensbridge.plugins import register
    from lensbridge.points.short_names import get_act_name
    from lensbridge.points.table import POINTS
    from lensbridge.remote import connect
    from lensbridge.tensors.factored import FactoredMatrix
    from lensbridge.viz import plot

__version__ = "0.1.0"
"""The version that is installed."""

__all__ = [
    "POINTS",
    "ActivationCache",
    "Activations",
    "Architecture",
    "Experiment",
    "FactoredMatrix",
    "Harvest",
    "Hook",
    "Keep",
    "LensModel",
    "LensbridgeError",
    "Rows",
    "__version__",
    "carry_hooks",
    "compare",
    "connect",
    "get_act_name",
    "load",
    "load_vllm",
    "plot",
    "register",
    "sweep_dataset",
]

_HOMES = {
    "ActivationCache": "cache",
    "Activations": "harvest",
    "Experiment": "experiments",
    "FactoredMatrix": "tensors.factored",
    "Harvest": "harvest",
    "Hook": "hooks.callbacks",
    "Keep": "harvest",
    "LensModel": "model",
    "POINTS": "points.table",
    "Rows": "harvest",
    "carry_hooks": "hooks.carrying",
    "compare": "comparison",
    "connect": "remote",
    "get_act_name": "points.short_names",
    "load": "loading",
    "load_vllm": "loading.elsewhere",
    "plot": "viz",
    "register": "plugins",
    "sweep_dataset": "harvest",
}

_ROOMS = (
    *("analysis", "causal", "comparison", "compat", "editing", "evals", "experiments"),
    *("interventions", "patching", "saes"),
    *("engines", "harvest", "modules", "pipelines", "plans", "remote", "serve"),
    *("testing", "viz", "weights"),
)
"""Subpackages that `lensbridge.name` imports when it is first written."""


def __getattr__(name: str) -> Any:
    """Import what is public when it is first used: `import lensbridge` costs nothing itself."""
    from importlib import import_module

    if name in _ROOMS:
        return import_module(f"lensbridge.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'lensbridge' has no attribute {name!r}.{_hint(name)}")
    return getattr(import_module(f"lensbridge.{_HOMES[name]}"), name)


def _hint(name: str) -> str:
    """What to write instead of a name that is not here, with a space in front."""
    if name.startswith("_"):
        return ""
    from lensbridge.elsewhere.hinted import instead
    from lensbridge.elsewhere.top import TOP

    rooms = [room for room in _ROOMS if name in _exported(room)]
    if rooms:
        return f" It is lensbridge.{rooms[0]}.{name}."
    return instead(name, TOP) or suggest(name, __dir__())


def _exported(room: str) -> set[str]:
    """The names that a subpackage exports, read without importing it."""
    import ast
    from importlib.util import find_spec

    spec = find_spec(f"lensbridge.{room}")
    source = None if spec is None or spec.loader is None else spec.loader.get_source(spec.name)  # type: ignore[attr-defined]
    for node in ast.parse(source or "").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
