"""The tokens of an input as labels of its positions, for tables and pictures."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from torch import Tensor

from lensbridge.errors import LensbridgeError
from lensbridge.inputs.tokens import Tokens


class PositionLabels:
    """A label for each position of an input; its tokens are decoded when first needed.

    Where examples have different tokens at a position, the label has two of them ("John/Mary"), or
    the first and an ellipsis.
    """

    def __init__(self, ids: Tensor, tokens: Tokens) -> None:
        self._ids = ids.detach().cpu()
        self._tokens = tokens

    @classmethod
    def of(cls, tokens: Tokens, ids: Tensor | None, mask: Tensor | None) -> "PositionLabels | None":
        """Labels; None if the input is no tokens, or padded, so that columns are no positions.

        Shapes: ids and mask `[batch, pos]`
        """
        if ids is None or ids.ndim != 2 or not ids.numel():
            return None
        padded = mask is not None and (mask.ndim != 2 or not bool(mask.all()))
        return None if padded else cls(ids, tokens)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The label of each position; its number where there is no tokenizer."""
        try:
            if self._tokens.tokenizer is not None:
                return tuple(map(self._text, self._ids.unbind(1)))
        except LensbridgeError:  # a tokenizer that is out of reach: the numbers do
            pass
        return tuple(map(str, range(self._ids.shape[1])))

    def _text(self, column: Tensor) -> str:
        several = list(dict.fromkeys(column.tolist()))
        shown = [self._tokens.to_single_str_token(one) for one in several[:2]]
        if len(several) > 2:
            return f"{shown[0]}/…"
        return "/".join([shown[0], *(text.strip() or text for text in shown[1:])])

    def along(self, positions: Iterable[int]) -> list[str]:
        """The labels of some positions; the number of one that the input lacks."""
        texts = self.texts
        return [texts[at] if 0 <= at < len(texts) else str(at) for at in positions]

    @classmethod
    def named(cls, texts: tuple[str, ...]) -> "PositionLabels":
        """Labels whose texts are known: what is stored in a file needs no tokenizer."""
        labels = cls.__new__(cls)
        vars(labels)["texts"] = tuple(texts)
        return labels

    def __reduce__(self) -> Any:
        return PositionLabels.named, (self.texts,)
