"""Next-token cross-entropy."""

import torch
from torch import Tensor

from lensbridge.errors import InputError


def lm_cross_entropy_loss(
    logits: Tensor,
    tokens: Tensor,
    attention_mask: Tensor | None = None,
    per_token: bool = False,
) -> Tensor:
    """The cross-entropy of the prediction of each next token.

    Args:
        logits: the logits of every position.
        tokens: the ids that were run, or labels; -100 is not counted.
        attention_mask: 1 for tokens, 0 for padding. A pair counts when both of its tokens are real.
        per_token: one value for each pair instead of the mean.

    Shapes: `[batch, pos, d_vocab]`, `[batch, pos]` -> scalar, or `[batch, pos - 1]` per token
        (0 where a pair does not count).

    Raises:
        InputError: logits and ids have different positions.

    Units: nats, in at least float32.

    Example:
        >>> lm_cross_entropy_loss(torch.zeros(1, 3, 8), torch.tensor([[1, 2, 3]])).exp().round()
        tensor(8.)
    """
    if logits.shape[:2] != tokens.shape:
        raise InputError(
            f"Logits of shape {tuple(logits.shape)} and ids of shape {tuple(tokens.shape)}: a loss "
            "needs the logits of every position of the ids. If the model's forward gives them only "
            "with another argument (such as targets=ids), pass it."
        )
    wide = logits if logits.dtype == torch.float64 else logits.float()
    targets = tokens[:, 1:].to(logits.device).long()
    counted = targets != -100
    if attention_mask is not None:
        real = attention_mask.bool().to(logits.device)
        counted = counted & real[:, 1:] & real[:, :-1]
    log_probs = wide[:, :-1].log_softmax(-1)
    chosen = log_probs.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    losses = (-chosen).masked_fill(~counted, 0.0)
    return losses if per_token else losses.sum() / counted.sum()
