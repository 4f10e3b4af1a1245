"""What a direction of the residual stream adds to the logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.tensors.factored.factors import upcast


@dataclass(frozen=True)
class LogitEffects:
    """The tokens whose logits a direction raises and lowers most.

    Args:
        promoted: tokens with the largest effects, and these.
        suppressed: tokens with the smallest, the smallest first.
    """

    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]


@torch.no_grad()
def logit_effects(model: HookedModel, direction: Tensor, k: int) -> LogitEffects | None:
    """The effects of a direction, read as by the model's head.

    It is centred if the final norm centres, and multiplied by its gain and by `W_U`. Only the
    division by the norm is left out. None where the head is not linear after its norm, or where the
    direction is not one of the stream.

    Shapes: direction `[d_model]`
    """
    native = model.native
    if native.has_deep_head or direction.shape != (model.cfg.d_model,):
        return None
    if k < 1:
        raise InputError(f"logits={k} is too small: it is 1 or more.")
    row = upcast(direction)[None]
    norm = native.ln_final
    read = row if norm is None else norm.linear(row, torch.ones_like(row[:, :1])).to(row)
    scores = (read @ upcast(model.W_U).to(read))[0].cpu()
    return LogitEffects(_ends(model, scores, k), _ends(model, scores, k, -1.0))


def _ends(
    model: HookedModel, scores: Tensor, k: int, sign: float = 1.0
) -> tuple[tuple[str, float], ...]:
    values, ids = (sign * scores).topk(min(k, len(scores)))
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return tuple((text_of(model, token), sign * value) for token, value in pairs)


def text_of(model: HookedModel, token: int) -> str:
    """A token as text; its id where there is no tokenizer, and beside a part of a character."""
    if model.tokenizer is None:
        return str(token)
    text = model.to_single_str_token(token)
    return f"{text}[{token}]" if "\N{REPLACEMENT CHARACTER}" in text else text
