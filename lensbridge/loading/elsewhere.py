"""Models that another engine runs: which engines there are, and what opens a model there."""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensbridge.errors import InputError, LoadError, suggest
from lensbridge.loading.aliases import hub_id_of
from lensbridge.loading.source import DEMO, demo_folder

if TYPE_CHECKING:
    from lensbridge.model import LensModel

ENGINES = {"vllm": "lensbridge.engines.vllm.opening"}
"""Name -> the module whose `open_model` opens a model by its name. Engines come above this package,
so they are named here and imported when they are asked for."""

_NOT_THERE = (
    "device",
    "device_map",
    "architecture",
    "attn_implementation",
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
    "save_converted",
)
"""Options of `load` that are of transformers in this process."""


def opened_elsewhere(engine: str, model: Any, **options: Any) -> Any:
    """A model that an engine runs.

    Args:
        engine: its name.
        model: a hub id, a short name of one, or a folder.
        options: for the engine; those that are None were not given.

    Raises:
        InputError: there is no such engine.
        LoadError: a model object, or an option that the engine does not have.
    """
    if engine not in ENGINES:
        raise InputError(
            f"There is no engine {engine!r}; there is {', '.join(map(repr, ENGINES))}."
            f"{suggest(str(engine), ENGINES)} Without engine= the model runs in this process."
        )
    if not isinstance(model, (str, os.PathLike)):
        raise LoadError(
            f"engine={engine!r} loads a model by its name, and got a {type(model).__name__}. Open "
            "an LLM of vLLM with lensbridge.load_vllm(llm)."
        )
    given = {name: value for name, value in options.items() if value is not None}
    wrong = [name for name in _NOT_THERE if name in given]
    if wrong:
        raise LoadError(
            f"engine={engine!r} has no {', '.join(wrong)}: that is of models that run in this "
            "process. Leave it out, or leave engine out."
        )
    return import_module(ENGINES[engine]).open_model(_name(os.fspath(model)), **given)


def load_vllm(llm: Any, *, tokenizer: Any = None) -> "LensModel":
    """Open a model that vLLM runs, for reading and editing its activations.

    Args:
        llm: an `LLM` of vLLM, made with `enforce_eager=True`. It is used as it is; other requests
            to it are not changed.
        tokenizer: a tokenizer; by default that of the `LLM`.

    Returns:
        A `lensbridge.engines.vllm.VLLMModel`.

    Raises:
        UnsupportedError: the version of vLLM or a setting of the `LLM` is not supported.
        UnsupportedArchitectureError: nobody has described the class of the model.
    """
    return import_module(ENGINES["vllm"]).open_llm(llm, tokenizer)


def _name(name: str) -> str:
    if name == DEMO and not Path(DEMO).is_dir():
        return demo_folder()
    return name if Path(name).expanduser().is_dir() else hub_id_of(name)
