"""How each tool is used in the cases, as its own documentation says."""

from importlib import import_module

from benchmarks.comparison.tools.base import Tool

MODULES = {
    "lensbridge": "lens",
    "TransformerLens": "bridge",
    "nnsight": "trace",
    "nnterp": "standard",
    "pyvene": "interventions",
}
"""Tools in which the correctness cases run, and the module that uses each."""


def tool(name: str) -> Tool:
    """The tool of a name; importing it imports the tool itself."""
    return import_module(f"benchmarks.comparison.tools.{MODULES[name]}").TOOL
