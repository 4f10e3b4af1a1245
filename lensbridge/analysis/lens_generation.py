"""What a logit lens reads of a text that the model is writing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lensbridge.analysis.positions import PositionsAsked
from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError, LensbridgeError
from lensbridge.hooked_model import HookedModel


@dataclass(frozen=True)
class Generated:
    """The activations of a generation, and where each new token was predicted.

    Args:
        cache: of every position.
        positions: the columns that predicted the new tokens.
        ids: the new tokens, `[batch, token]`.
    """

    cache: ActivationCache
    positions: list[int]
    ids: Tensor


def generated(
    model: HookedModel,
    input: Any,
    how: Mapping[str, Any],
    names: Sequence[str],
    positions: PositionsAsked,
    forward: Mapping[str, Any],
) -> Generated:
    """Continue an input and keep the activations at some points.

    Raises:
        InputError: there is no input, positions were asked for, or an option is the lens's own.
        LensbridgeError: the model cannot generate, or wrote nothing.
    """
    own = {"return_cache", "names_filter", "return_type"} & set(how)
    if input is None or positions != -1 or own:
        wrong = "an input is needed" if input is None else f"leave out {own or 'positions'}"
        raise InputError(
            f"With generate=..., the lens reads every position that predicts a new token: {wrong}."
        )
    generate = getattr(model, "generate", None)
    if generate is None:
        raise LensbridgeError(f"{type(model).__name__} has no generate(): use lensbridge.load.")
    widths: list[int] = []

    def note(ids: Tensor, scores: Tensor) -> Tensor:
        widths.append(ids.shape[1])
        return scores

    options = {"do_sample": False, "verbose": False, **forward, **how}
    options["logits_processor"] = [*(options.get("logits_processor") or []), note]
    options |= {"return_cache": True, "names_filter": list(names), "return_type": "tokens"}
    ids, cache = generate(input, **options)
    if not widths:
        raise LensbridgeError("The model wrote no token, so there is nothing to read.")
    prompt = widths[0]
    return Generated(cache, list(range(prompt - 1, ids.shape[1] - 1)), ids[:, prompt:])
