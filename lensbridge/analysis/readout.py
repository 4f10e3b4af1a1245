"""LogitReadout: the next token that vectors predict, with its values, ranks and entropy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs.tokens import Tokens

Quantity = Literal["logits", "log_probs", "probs"]
"""What is reported of each token."""

Selected = Literal["all", "vocab", "targets", "top_k"]
"""Which tokens are reported."""

Targets: TypeAlias = str | int | Sequence[str | int] | Tensor
"""Tokens as text or ids, the same for every vector; or a tensor of ids, one for each vector."""

COLUMN = {"logits": "logit", "log_probs": "log_prob", "probs": "probability"}
"""The name of each quantity in a data frame."""


@dataclass(frozen=True, repr=False)
class LogitReadout:
    """The next token that vectors predict.

    Args:
        values: the quantity that was asked for.
        return_type: which quantity it is.
        selected: which tokens the last axis of the values has: all, a part of the vocabulary,
            targets, or the top k of each vector.
        ids: ids of these tokens; None for all. For the top k, and for targets that differ between
            vectors, one for each value.
        ranks: how many tokens have a higher logit; None unless targets or the top k were asked for.
        entropy: the entropy of the whole distribution, whatever was selected.
        tokenizer: the model's, with its rules for BOS, for `decode`.
        kl: the KL divergence of the whole distribution from another one, where one was given.

    Shapes: values and ranks `[..., selected]`; entropy and kl `[...]`; ids `[selected]` or as
        values.
    Units: entropy and kl in nats; rank 0 is the most likely token.
    """

    values: Tensor
    return_type: Quantity
    selected: Selected
    ids: Tensor | None
    ranks: Tensor | None
    entropy: Tensor
    tokenizer: Tokens
    kl: Tensor | None = None

    def __repr__(self) -> str:
        shape = list(self.values.shape)
        return f"LogitReadout({self.return_type} {shape} of {self.selected})"

    @property
    def tokens(self) -> Any:
        """The selected tokens as text, as `decode()` gives them."""
        return self.decode()

    def decode(self, tokenizer: Any = None) -> Any:
        """The selected tokens as text, nested as `ids` is.

        Raises:
            InputError: all of the vocabulary is selected.
            TokenizerMissingError: the model has no tokenizer and none was passed.
        """
        if self.ids is None:
            raise InputError(
                "The whole vocabulary is selected, so there are no ids to decode. Pass top_k, "
                "targets or vocab."
            )
        return decoded(self.ids, self.tokenizer, tokenizer)


def decoded(ids: Tensor, tokens: Tokens, tokenizer: Any = None) -> Any:
    """Ids as text, nested as they are."""
    known = tokens if tokenizer is None else Tokens(lambda: tokenizer)
    if ids.ndim > 1:
        return [decoded(one, tokens, tokenizer) for one in ids]
    return [known.to_str_tokens(one.reshape(1))[0] for one in ids.cpu()]
