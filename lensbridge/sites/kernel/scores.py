"""Scores and pattern as PyTorch's fused attention computes them, which shows neither."""

import torch
from torch import Tensor


def masked_scores(
    query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> Tensor:
    """The scores of which the fused kernel takes the softmax, with -inf where masked.

    Shapes: `[b, h, p, d]`, `[b, g, k, d]` -> `[b, h, p, k]`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    groups = key.shape[1]
    grouped = query.unflatten(1, (groups, -1))
    scores = ((grouped @ key.unsqueeze(2).mT) * scale).flatten(1, 2)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return scores.masked_fill_(~seen, -torch.inf)
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill_(~mask, -torch.inf)
    return (scores + mask).masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)


def of_masked_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor | None:
    """The pattern of rows whose keys are all masked, where the mask holds large numbers.

    The fused kernel takes the softmax of the scores plus these numbers, which is not zero. With
    -inf or False in the mask it is zero, and None here.
    """
    if mask is None or mask.dtype == torch.bool:
        return None
    dead = (mask <= torch.finfo(mask.dtype).min / 2).all(-1, keepdim=True)
    if not bool((dead & mask.isfinite().any(-1, keepdim=True)).any()):
        return None
    scores = masked_scores(query, key, None, False, scale)
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return safe_softmax(wide + mask.to(wide))


def safe_softmax(scores: Tensor) -> Tensor:
    """Softmax in float32 over the last axis; a row that is entirely masked gives zeros.

    The fused kernel does the same. The gradients are finite here.
    """
    wide = scores if scores.dtype == torch.float64 else scores.float()
    dead = wide.detach().amax(-1, keepdim=True) == -torch.inf
    if scores.requires_grad:
        wide = wide.masked_fill(dead, 0.0)  # softmax of -inf alone has no gradient
    return wide.softmax(-1).masked_fill(dead, 0.0).to(scores.dtype)
