"""Names of models as TransformerLens has them, and the checkpoints of some."""

from lensbridge.errors import InputError, LoadError
from lensbridge.loading.aliases import (
    DEFAULT_MODEL_ALIASES,
    MODEL_ALIASES,
    OFFICIAL_MODEL_NAMES,
    get_official_model_name,
)

__all__ = [
    "DEFAULT_MODEL_ALIASES",
    "MODEL_ALIASES",
    "OFFICIAL_MODEL_NAMES",
    "PYTHIA_CHECKPOINTS",
    "PYTHIA_V0_CHECKPOINTS",
    "STANFORD_CRFM_CHECKPOINTS",
    "checkpoint_revision",
    "get_checkpoint_labels",
    "get_official_model_name",
]

PYTHIA_CHECKPOINTS: list[int] = [0, *(2**i for i in range(10)), *range(1000, 144000, 1000)]
PYTHIA_V0_CHECKPOINTS: list[int] = list(range(1000, 144000, 1000))
STANFORD_CRFM_CHECKPOINTS: list[int] = [
    *range(0, 100, 10),
    *range(100, 2000, 50),
    *range(2000, 20000, 100),
    *range(20000, 400001, 1000),
]


def get_checkpoint_labels(model_name: str) -> tuple[list[int], str]:
    """The training steps that have checkpoints, and their unit: `(labels, "step")`.

    Raises:
        LoadError: this model has none.
    """
    official = get_official_model_name(model_name)
    if official.startswith("stanford-crfm/"):
        return STANFORD_CRFM_CHECKPOINTS, "step"
    if official.startswith("EleutherAI/pythia-"):
        v0 = official.endswith("-v0")
        return (PYTHIA_V0_CHECKPOINTS if v0 else PYTHIA_CHECKPOINTS), "step"
    raise LoadError(
        f"No checkpoints of {official!r} are known here, only those of Pythia and stanford-crfm "
        "models. Pass revision=... for a branch, tag or commit."
    )


def checkpoint_revision(
    model_name: str, index: int | None, value: int | None, label: int | None = None
) -> str | None:
    """The revision of a checkpoint, or None if none is asked for.

    Args:
        model_name: a model of a family with checkpoints.
        index: the index of the checkpoint; negative from the end.
        value: or its training step.
        label: another name for `value`.

    Raises:
        InputError: index and value together, or a step that has no checkpoint.

    Example:
        >>> checkpoint_revision("pythia-70m", None, 3000)
        'step3000'
        >>> checkpoint_revision("stanford-gpt2-small-a", -1, None)
        'checkpoint-400000'
    """
    value = label if value is None else value
    if index is None and value is None:
        return None
    if index is not None and value is not None:
        raise InputError("Pass checkpoint_index or checkpoint_value, not both.")
    steps, _ = get_checkpoint_labels(model_name)
    if index is not None and not -len(steps) <= index < len(steps):
        raise InputError(f"checkpoint_index={index}: {model_name} has {len(steps)} checkpoints.")
    step = steps[index] if index is not None else value
    if step not in steps:
        near = min(steps, key=lambda one: abs(one - int(step or 0)))
        raise InputError(f"{model_name} has no checkpoint of step {step}; the nearest is {near}.")
    stanford = get_official_model_name(model_name).startswith("stanford-crfm/")
    return f"checkpoint-{step}" if stanford else f"step{step}"
