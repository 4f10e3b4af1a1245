"""Text and tokens of a model behind a server: its tokenizer stays there."""

from __future__ import annotations

from typing import Any

from lensbridge.remote.requests import RemoteRequests


class RemoteTexts(RemoteRequests):
    """The methods of `LensModel` for text and tokens, asked of the server."""

    def _text(self, method: str, **arguments: Any) -> Any:
        return self._call("tokens", method=method, arguments=arguments)

    def to_tokens(
        self,
        input: Any,
        prepend_bos: bool | None = None,
        padding_side: Any = None,
        move_to_device: bool = True,
        truncate: bool = False,
        **options: Any,
    ) -> Any:
        """Token ids of one text or several, on the CPU; see `LensModel.to_tokens`."""
        given = {"prepend_bos": prepend_bos, "padding_side": padding_side, "truncate": truncate}
        return self._text("to_tokens", input=input, **given, **options)

    def to_string(self, tokens: Any) -> Any:
        """Text of ids; see `LensModel.to_string`."""
        return self._text("to_string", tokens=tokens)

    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: Any = None
    ) -> Any:
        """Each token as text; see `LensModel.to_str_tokens`."""
        given = {"prepend_bos": prepend_bos, "padding_side": padding_side}
        return self._text("to_str_tokens", input=input, **given)

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token; see `LensModel.to_single_token`."""
        found: int = self._text("to_single_token", string=string)
        return found

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one id; see `LensModel.to_single_str_token`."""
        found: str = self._text("to_single_str_token", int_token=int(int_token))
        return found

    def get_token_position(self, single_token: Any, input: Any, *args: Any, **options: Any) -> int:
        """Where a token stands in a text; see `LensModel.get_token_position`."""
        named = dict(zip(("mode", "prepend_bos", "count"), args, strict=False))
        given = {"single_token": single_token, "input": input, **named, **options}
        found: int = self._text("get_token_position", **given)
        return found
