"""The head of a model: the projection to its logits, and their axes."""

from typing import Any

from torch import nn

from lensbridge.native.calling import is_plain
from lensbridge.native.linear import Linear
from lensbridge.native.resolve.finder import Finder
from lensbridge.native.settings import settings_of
from lensbridge.spec import Architecture

_POOLED = ("Classification", "NextSentencePrediction", "MultipleChoice")
_TASK_HEADS = ("classifier", "score", "qa_outputs", "out_proj")


def head_of(finder: Finder, spec: Architecture) -> Linear | None:
    """The head that is described, or the usual one of a task; None for a bare base model.

    Raises:
        ArchitectureMismatchError: the description names a head, and the model has another.
    """
    named = spec.unembed if isinstance(spec.unembed, tuple) else (spec.unembed,)
    for path in [one for one in named if one is not None]:
        module = finder.optional_top(path)
        if module is not None:
            return finder.linear(module, path)
    core = finder.core
    output = native_head(core)
    if output is not None and spec.unembed is not None and "unembed" not in spec.undescribed:
        raise finder.mismatch(
            f"{type(core).__name__} has no module '{named[0]}', and its head is "
            f"'{finder.path_of(output)}'."
        )
    for path in () if is_plain(core) else _TASK_HEADS:
        module = finder.optional_top(path)
        if isinstance(module, nn.Linear):
            return finder.linear(module, path)
    return None


def native_head(core: Any) -> nn.Module | None:
    """What transformers says is the head."""
    return core.get_output_embeddings() if hasattr(core, "get_output_embeddings") else None


def logits_axes(core: nn.Module) -> str:
    """The axes of the head's output: "b p v", or "b v" where it reads one vector for each input.

    Only the name of a class says that its head reads one vector; `score` reads all positions, and
    so does a head whose logits are averaged (EuroBERT's late pooling).
    """
    name = type(core).__name__
    pooled = name.endswith(_POOLED) and "Token" not in name and not hasattr(core, "score")
    late = getattr(settings_of(core), "classifier_pooling", None) == "late"
    return "b v" if pooled and not late else "b p v"
