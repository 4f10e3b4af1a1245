"""Text and tokens under TransformerLens's names; defaults come from `cfg` and the tokenizer."""

from typing import Any, Literal

from torch import Tensor

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.raised import asserting
from lensbridge.compat.transformer_lens.tensors import whole_numbers
from lensbridge.compat.transformer_lens.tokenizing import completed, get_attention_mask
from lensbridge.inputs import methods
from lensbridge.inputs.prompts import Side
from lensbridge.inputs.tokens import Tokens
from lensbridge.model import LensModel


class TokenizerAlone(methods.TextMethods):
    """The text methods of a tokenizer whose model was never opened: ids are on the CPU."""

    def __init__(self) -> None:
        self.tokens = Tokens(find=lambda: None)


class TextMethods:
    """Tokenization. `prepend_bos=None` means `cfg.default_prepend_bos`; `padding_side=None` means
    `tokenizer.padding_side`.
    """

    lens: LensModel
    cfg: HookedTransformerConfig

    @property
    def _texts(self) -> methods.TextMethods:
        """The model, or a tokenizer alone in a subclass that does not call `super().__init__()`."""
        own = self.__dict__
        return own["lens"] if "lens" in own else own.setdefault("_alone", TokenizerAlone())

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, a private copy of the one that was passed; None if there is none."""
        return self._texts.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.set_tokenizer(tokenizer)

    def set_tokenizer(self, tokenizer: Any, default_padding_side: Side | None = None) -> None:
        """Use a copy of another tokenizer from now on."""
        own: Any = None if tokenizer is None else completed(tokenizer)
        if default_padding_side is not None:
            own.padding_side = default_padding_side
        self._texts.tokens.find = lambda: own
        self._texts.tokens._found.clear()

    def _bos(self, prepend_bos: bool | None) -> bool | None:
        self._texts.tokens.default_prepend_bos = self.cfg.default_prepend_bos
        return prepend_bos

    def _side(self, padding_side: Side | None) -> Side:
        if padding_side is not None or self.tokenizer is None:
            return padding_side or "right"
        side: Side = self.tokenizer.padding_side
        return side

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Tensor:
        """Token ids of one text or several.

        Args:
            input: text, or a list of texts, padded to one width.
            prepend_bos: BOS first; None means `cfg.default_prepend_bos`.
            padding_side: None means the tokenizer's.
            move_to_device: put them where the model is.
            truncate: cut inputs that are longer than the context.

        Shapes: `[batch, pos]`
        """
        side = self._side(padding_side)
        bos, texts = self._bos(prepend_bos), self._texts
        if isinstance(texts, TokenizerAlone):
            ids = texts.to_tokens(input, bos, side, move_to_device=False)
        else:
            ids = texts.to_tokens(input, bos, side, move_to_device, truncate)
        return ids[:, : self.cfg.n_ctx] if truncate else ids

    def to_string(self, tokens: Any) -> str | list[str]:
        """Text of ids: one string for one row, a list for several."""
        return self._texts.to_string(tokens)

    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: Side | None = None
    ) -> Any:
        """Each token as text, of a text, a list of texts, or ids."""
        return self._texts.to_str_tokens(input, self._bos(prepend_bos), padding_side)

    @asserting
    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token."""
        return self._texts.to_single_token(string)

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one id."""
        return self._texts.to_single_str_token(int(int_token))

    @asserting
    def get_token_position(
        self,
        single_token: str | int,
        input: Any,
        mode: Literal["first", "last"] = "first",
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
    ) -> int:
        """The position of a token in a text or in one row of ids, in which padding counts."""
        bos = self._bos(prepend_bos)
        if isinstance(input, Tensor) and input.is_floating_point():
            input = whole_numbers(input)
        return self._texts.get_token_position(single_token, input, mode, bos, count="columns")

    def _mask(self, tokens: Any, prepend_bos: bool | None, side: Side | None) -> Tensor | None:
        """The mask of ids that were padded on the left, if padding is known."""
        plain = isinstance(tokens, Tensor) and not tokens.is_floating_point()
        if not plain or self.tokenizer is None or self._side(side) != "left":
            return None
        rows = tokens if tokens.ndim == 2 else tokens[None]
        bos = self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
        mask = get_attention_mask(self.tokenizer, rows, bos, "left")
        return None if bool(mask.all()) else mask
