"""The lens for a model: under a description, or under the names of the model's own modules."""

from typing import TYPE_CHECKING, Any

from torch import nn

from lensbridge.errors import ArchitectureMismatchError, UnsupportedArchitectureError
from lensbridge.loading.description import derived, description_of, needs_input, reads_by_modules
from lensbridge.native.resolve import unwrap
from lensbridge.spec import Architecture

if TYPE_CHECKING:
    from lensbridge.model import LensModel


def opened(
    hf_model: nn.Module, find_tokenizer: Any, architecture: Architecture | None, derive: bool
) -> "LensModel":
    """The model under a description; a module that none fits under its own modules' names."""
    if architecture is None and needs_input(hf_model):
        return _by_modules(hf_model, find_tokenizer, "its weights are made by its first run")
    try:
        how = description_of(hf_model, architecture, derive)
        return _lens(hf_model, find_tokenizer, how, derive)
    except UnsupportedArchitectureError as refused:
        if architecture is not None or not reads_by_modules(hf_model):
            raise
        return _by_modules(hf_model, find_tokenizer, str(refused))


def _by_modules(hf_model: nn.Module, find_tokenizer: Any, why: str) -> "LensModel":
    from lensbridge.modules import ModuleLens

    lens = ModuleLens(hf_model, find_tokenizer)
    lens.why = why
    return lens


def _lens(
    hf_model: nn.Module, find_tokenizer: Any, how: dict[str, Any], derive: bool
) -> "LensModel":
    """The model under its description; under a derived one if the registered one does not fit."""
    from lensbridge.model import LensModel

    try:
        return LensModel(hf_model, find_tokenizer, **how)
    except ArchitectureMismatchError as error:
        if how or not derive:
            raise
        try:
            how = derived(unwrap(hf_model), str(error))
        except UnsupportedArchitectureError as refused:
            raise ArchitectureMismatchError(str(refused)) from refused
    return LensModel(hf_model, find_tokenizer, **how)
