"""Functions of logits: accuracy, sampling, a table."""

from typing import Any

import torch
from torch import Tensor

from lensbridge.analysis.frames import data_frame
from lensbridge.errors import InputError
from lensbridge.inputs.tokens import Tokens
from lensbridge.tensors.loss import lm_cross_entropy_loss

__all__ = ["lm_accuracy", "lm_cross_entropy_loss", "logits_to_df", "sample_logits"]


def lm_accuracy(
    logits: Tensor,
    tokens: Tensor,
    per_token: bool = False,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """How often the next token is the one that the model holds most likely.

    Args:
        logits: logits of every position.
        tokens: the ids that were run, or labels; -100 is not counted.
        per_token: return whether each prediction is right instead of the fraction that is.
        attention_mask: 1 for tokens, 0 for padding. A pair counts if both of its tokens are real.

    Shapes: `[batch, pos, d_vocab]`, `[batch, pos]` -> scalar, or `[batch, pos - 1]` of booleans
        (False where a pair does not count).

    Raises:
        InputError: logits and ids of different positions, or no pair counts.

    Example:
        >>> logits = torch.eye(5)[[2, 3, 0]][None]  # predicts 2, then 3, then 0
        >>> lm_accuracy(logits, torch.tensor([[1, 2, 4]]))
        tensor(0.5000)
    """
    if logits.shape[:2] != tokens.shape:
        raise InputError(
            f"Logits have shape {list(logits.shape)} and ids {list(tokens.shape)}: accuracy needs "
            "the logits of every position."
        )
    targets = tokens[:, 1:].to(logits.device)
    counted = targets != -100
    if attention_mask is not None:
        real = attention_mask.bool().to(logits.device)
        counted = counted & real[:, 1:] & real[:, :-1]
    right = (logits[:, :-1].argmax(-1) == targets) & counted
    if per_token:
        return right
    if not bool(counted.any()):
        raise InputError("No pair of tokens counts, so there is no accuracy.")
    return right.sum() / counted.sum()


@torch.no_grad()
def sample_logits(
    final_logits: Tensor,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    tokens: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the next token.

    The steps are, in this order: repetition penalty, temperature, frequency penalty, top_k or
    top_p.

    Args:
        final_logits: logits of the last position.
        top_k: draw only from this many most likely tokens; a larger number than there are is all.
        top_p: draw only from the most likely tokens that together have this probability (the token
            that reaches it included).
        temperature: divides the logits; 0 takes the most likely token, whatever else is passed.
        freq_penalty: subtracted from a token's logit for each time that it occurs in `tokens`.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that
            occur in `tokens`.
        tokens: the tokens before, for the penalties.
        generator: the random generator; torch's own by default.

    Shapes: `[batch, d_vocab]` -> `[batch]`; tokens `[batch, pos]`

    Raises:
        InputError: arguments out of range or that exclude each other.

    Example:
        >>> sample_logits(torch.tensor([[0.0, 3.0, 1.0]]), temperature=0.0)
        tensor([1])
    """
    _check_sampling(final_logits, top_k, top_p, temperature, tokens)
    if temperature == 0.0:
        return final_logits.argmax(-1)
    wide = final_logits if final_logits.dtype == torch.float64 else final_logits.float()
    if freq_penalty or repetition_penalty != 1.0:
        counts = _counts(wide, tokens)
        penalized = torch.where(wide > 0, wide / repetition_penalty, wide * repetition_penalty)
        wide = torch.where(counts > 0, penalized, wide) / temperature - freq_penalty * counts
    else:
        wide = wide / temperature
    if top_k is not None:
        least = wide.topk(min(top_k, wide.shape[-1]), dim=-1).values[..., -1:]
        wide = wide.masked_fill(wide < least, -torch.inf)
    if top_p is not None:
        wide = _nucleus(wide, top_p)
    return torch.multinomial(wide.softmax(-1), 1, generator=generator)[:, 0]


def _check_sampling(
    logits: Tensor,
    top_k: int | None,
    top_p: float | None,
    temperature: float,
    tokens: Tensor | None,
) -> None:
    if logits.ndim != 2:
        raise InputError(f"final_logits are [batch, d_vocab], not {list(logits.shape)}.")
    if top_k is not None and top_p is not None:
        raise InputError("top_k and top_p exclude each other: pass one.")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k is 1 or more, not {top_k}.")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise InputError(f"top_p is a probability above 0, not {top_p}.")
    if temperature < 0.0:
        raise InputError(f"temperature is 0 or more, not {temperature}.")
    if tokens is not None and (tokens.ndim != 2 or len(tokens) != len(logits)):
        raise InputError(
            f"tokens are [batch, pos] with as many rows as the logits, not {list(tokens.shape)}."
        )


def _counts(logits: Tensor, tokens: Tensor | None) -> Tensor:
    """How often each token of the vocabulary occurs in each row."""
    if tokens is None:
        raise InputError("A penalty needs the tokens before: pass tokens=[batch, pos].")
    counts = torch.zeros_like(logits)
    ids = tokens.to(logits.device).long()
    return counts.scatter_add_(-1, ids, torch.ones_like(ids, dtype=counts.dtype))


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    ordered, order = logits.sort(dim=-1, descending=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    cut = (before > top_p).scatter(-1, order, before > top_p)
    return logits.masked_fill(cut, -torch.inf)


def logits_to_df(logits: Tensor, tokenizer: Any = None, top_k: int | None = None) -> Any:
    """The logits of one position as a data frame, the most likely token first.

    Args:
        logits: logits of one position.
        tokenizer: for the column `token_string`.
        top_k: only this many tokens.

    Shapes: `[d_vocab]`

    Raises:
        InputError: logits of several positions.
        LensbridgeError: pandas is not installed.
    """
    if logits.ndim != 1:
        raise InputError(f"Logits of one position are [d_vocab], not {list(logits.shape)}.")
    log_probs = logits.detach().double().log_softmax(-1)
    order = log_probs.argsort(descending=True)[:top_k].tolist()
    known = Tokens(lambda: tokenizer)
    return data_frame(
        {
            "token_index": one,
            **({} if tokenizer is None else {"token_string": known.to_str_tokens([one])[0]}),
            "logit": float(logits[one]),
            "log_prob": float(log_probs[one]),
            "probability": float(log_probs[one].exp()),
        }
        for one in order
    )
