"""Tensors of a GGUF file that transformers passes over without a word."""

from typing import Any

from lensbridge.errors import LoadError

_ELSEWHERE = ("rope_freqs.", "rope_factors_", "attn_rot_embd")
"""Tensors that give no parameter: of rotary positions."""
_MANY_TO_ONE = ("_exps", "_projs", "_shexp", "exp_probs")
"""Parts of names of experts, which transformers joins or splits without the table of names."""
_SHOWN = 3


def refuse_leftovers(reader: Any, model: Any, name: str) -> None:
    """Refuse a model that lacks what its file holds: a bias for which its class has no place, say.

    Args:
        reader: the file's header.
        model: as transformers made it.
        name: of the file.

    Raises:
        LoadError: with the names of the tensors.
    """
    found = [one.name for one in reader.tensors]
    skipped = (*_ELSEWHERE, *_MANY_TO_ONE)
    asked = [one for one in found if not any(part in one for part in skipped)]
    places = _places(reader, model)
    left = [one for one in asked if one not in places] if places is not None else []
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise LoadError(
            f"{name!r} holds {', '.join(left[:_SHOWN])}{more}, for which transformers' "
            f"{type(model).__name__} has no place when it is read from GGUF, so the model would "
            "compute something else. Load the model in safetensors instead."
        )


def _places(reader: Any, model: Any) -> set[str] | None:
    """The names that transformers looks up; None where it has a reader of its own for the model."""
    from transformers import modeling_gguf_pytorch_utils as legacy

    from lensbridge.loading.gguf.reader import value_of

    architecture = value_of(reader, "general.architecture")
    if _has_own_reader(architecture):
        return None
    kind = legacy.TENSOR_PROCESSORS.get(architecture, legacy.TensorProcessor)
    processor = kind(config=model.config.to_dict())
    table = legacy.get_gguf_hf_weights_map(model, processor)
    return {*table, "output.weight"}


def _has_own_reader(architecture: str) -> bool:
    try:
        from transformers.integrations.gguf import is_gguf_arch_supported
    except ImportError:  # an earlier transformers
        return False
    return bool(is_gguf_arch_supported(architecture))
