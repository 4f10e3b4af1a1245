"""Overrides: code in a model that is not the code of the described class.

A description says what a class computes. A subclass with its own `forward`, a layer from another
package or a patched method may compute something else with the same modules. Such code is found by
the module that defines it. The model is not run, so the search is cheap.
"""

import sys
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from lensbridge.native.parts import Override
from lensbridge.native.wrappers import unwrapped
from lensbridge.plugins import BUILT_IN, Claim

_MODELS = "transformers.models."
_STAND_INS = frozenset({
    "torch", "transformers", "peft", "accelerate", "lensbridge", "bitsandbytes", "torchao",
    "hqq", "optimum", "quanto", "auto_gptq", "gptqmodel", "awq", "aqlm", "eetq", "fbgemm_gpu",
    "compressed_tensors", "vptq", "spqr_quant", "auto_round", "fp_quant",
})  # fmt: skip
"""Packages whose modules may replace others: adapters, hooks, quantized layers."""

_PATCHED = (_MODELS, "torch.nn.modules.")
"""Modules in whose classes each method is checked, because it may have been replaced."""

_WRAPPERS = ("accelerate.", "peft.", "transformers.distributed.")
"""What puts a function around the `forward` of a module: the beginnings of Python modules."""

_NOT_RUN = frozenset({
    "__init__", "__init_subclass__", "__repr__", "__str__", "__deepcopy__", "__getstate__",
    "__setstate__", "__reduce__", "__reduce_ex__", "__class_getitem__", "__annotate__",
    "__annotate_func__", "_init_weights", "_initialize_weights", "init_weights", "post_init",
    "reset_parameters", "extra_repr", "generate", "prepare_inputs_for_generation",
    "_reorder_cache", "_update_model_kwargs_for_generation", "from_pretrained", "_from_config",
    "save_pretrained", "push_to_hub", "parameters", "named_parameters", "modules",
    "named_modules", "children", "named_children", "buffers", "named_buffers", "state_dict",
    "load_state_dict", "_load_from_state_dict", "_save_to_state_dict", "train", "eval", "to",
    "cuda", "cpu", "half", "float", "double", "bfloat16", "type", "requires_grad_", "zero_grad",
    "apply", "compile", "get_input_embeddings", "set_input_embeddings", "get_output_embeddings",
    "set_output_embeddings", "get_encoder", "get_decoder", "resize_token_embeddings",
    "tie_weights", "num_parameters", "enable_input_require_grads",
    "gradient_checkpointing_enable", "gradient_checkpointing_disable", "training_step",
    "validation_step", "configure_optimizers", "compute_loss",
})  # fmt: skip
"""Methods that a forward pass does not call."""


def overrides_in(core: nn.Module, claim: Claim) -> list[Override]:
    """The code that a model runs and the described class does not have, each with its first place.

    Args:
        core: the model.
        claim: the registered description with which the model would be read.
    """
    exact = claim.plugin != BUILT_IN and type(core).__name__ in claim.architecture.classes
    home = _root(type(core).__module__) if exact else None  # the plugin is of this very class
    return list(_Search(core, home).found())


class _Search:
    """A walk over the classes of a model.

    `folder` is the folder of `transformers.models` whose classes are expected at a place: the
    folder of the transformers model that contains the place.
    """

    def __init__(self, core: nn.Module, home: str | None) -> None:
        self.core, self.home = core, home
        self.known: dict[tuple[type, str], str | None] = {}
        self.methods: dict[type, frozenset[str]] = {}

    def found(self) -> Iterator[Override]:
        seen: set[str] = set()
        folders: dict[str, str] = {}
        files: dict[str, str] = {}
        for path, module in self.core.named_modules():
            cls, folder = type(module), folders.get(path.rpartition(".")[0], "")
            if not path or _is_whole_model(cls):
                folder = _folder(cls)
                files.update({one.__module__: path for one in cls.__mro__})
            folders[path] = folder
            if unwrapped(module) is not module:  # it runs what is inside
                continue
            for what in (self._of_class(cls, folder), self._of_instance(module)):
                if what is not None and what not in seen:
                    seen.add(what)
                    yield Override(path, what)
        for file, path in files.items():
            yield from (Override(path, what) for what in self._of_file(file))

    # --- classes -----------------------------------------------------------------------------

    def _of_class(self, cls: type[nn.Module], folder: str) -> str | None:
        if (cls, folder) not in self.known:
            self.known[cls, folder] = next(self._in_class(cls, folder), None)
        return self.known[cls, folder]

    def _in_class(self, cls: type[nn.Module], folder: str) -> Iterator[str]:
        bases = [one for one in cls.__mro__ if self._is_expected(one.__module__, folder)]
        known = bases[0]
        if known in nn.Module.__mro__:
            yield f"the description does not know the class {cls.__name__} (of {cls.__module__})"
            return
        for one in cls.__mro__[: cls.__mro__.index(nn.Module)]:
            code = {name: v for name, v in vars(one).items() if _is_code(v)}
            for name, value in code.items():
                if name in _NOT_RUN:
                    continue
                if one not in bases and (hasattr(known, name) or isinstance(value, property)):
                    yield f"{one.__name__} has a {name} of its own beside {known.__name__}'s"
                elif one.__module__.startswith(_PATCHED) and not self._is_trusted(
                    value, _folder(one)
                ):
                    yield f"{one.__name__}.{name} was replaced by {_name(value)}"

    def _is_expected(self, module: str, folder: str) -> bool:
        """Whether code of a Python module is expected at a place."""
        if module.startswith(_MODELS) and not self.home:
            return module.startswith(f"{_MODELS}{folder}.")
        root = _root(module)
        return root in _STAND_INS or root in sys.stdlib_module_names or root == self.home

    # --- functions ---------------------------------------------------------------------------

    def _is_trusted(self, value: Any, folder: str) -> bool:
        """Whether a function, and everything that it wraps, is defined in an expected module."""
        return all(
            self._is_expected(_module(one), folder or _folder_of(_module(one)))
            for one in _functions(value)
        )

    def _of_instance(self, module: nn.Module) -> str | None:
        cls = type(module)
        if cls not in self.methods:
            code = (name for one in cls.__mro__ for name, v in vars(one).items() if _is_code(v))
            self.methods[cls] = frozenset(code) - _NOT_RUN
        for name in self.methods[cls] & module.__dict__.keys():
            value = module.__dict__[name]
            if not self._is_its_own(module, name, value):
                return f"this {cls.__name__} has a {name} of its own, {_name(value)}"
        return None

    def _is_its_own(self, module: nn.Module, name: str, value: Any) -> bool:
        """Whether a function on an instance is its class's method, or a known wrapper of that."""
        if not self._is_trusted(value, ""):
            return False
        own = getattr(type(module), name)
        methods = [one for one in _layers(value) if isinstance(one, MethodType)]
        if all(one.__self__ is module and one.__func__ is own for one in methods) and methods:
            return True
        return any(_module(one).startswith(_WRAPPERS) for one in _functions(value))

    def _of_file(self, file: str) -> Iterator[str]:
        """Replaced functions of a modeling file, such as its rotary embedding."""
        if file.startswith(_MODELS):
            for name, value in list(vars(sys.modules[file]).items()):
                if isinstance(value, FunctionType) and not self._is_trusted(value, ""):
                    yield f"{file.rpartition('.')[2]}.{name} was replaced by {_name(value)}"


def _is_whole_model(cls: type) -> bool:
    """Whether a class is a transformers model, which has a modeling file of its own."""
    return any(one.__name__ == "PreTrainedModel" for one in cls.__mro__)


def _folder(cls: type) -> str:
    """The folder of transformers' models that a class comes from; "" if there is none."""
    return next((f for one in cls.__mro__ if (f := _folder_of(one.__module__))), "")


def _folder_of(module: str) -> str:
    return module.split(".")[2] if module.startswith(_MODELS) else ""


def _is_code(value: Any) -> bool:
    kinds = (FunctionType, MethodType, partial, property, classmethod, staticmethod)
    return isinstance(value, kinds)


def _layers(value: Any) -> Iterator[Any]:
    """A function, method, partial or property, and everything inside it."""
    yield value
    for name in ("__wrapped__", "__func__", "func", "fget"):
        inner = getattr(value, name, None)
        if inner is not None and not (isinstance(value, MethodType) and name == "__wrapped__"):
            yield from _layers(inner)


def _functions(value: Any) -> list[FunctionType]:
    return [one for one in _layers(value) if isinstance(one, FunctionType)]


def _module(function: FunctionType) -> str:
    """The Python module with the code of a function. Decorators may change its `__module__`."""
    return str(function.__globals__.get("__name__", ""))


def _name(value: Any) -> str:
    functions = _functions(value)
    if not functions:
        return type(value).__name__
    return f"{_module(functions[0])}.{functions[0].__qualname__}"


def _root(module: str) -> str:
    return module.partition(".")[0]
