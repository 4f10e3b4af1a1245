"""Methods of `ActivationCache` for logits: what each row of a stack adds to them."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

from lensbridge.cache.owner import CachedModel, ReadsLogits
from lensbridge.cache.residual.reader import StreamReader
from lensbridge.errors import InputError
from lensbridge.tensors.slices import PosSlice, taken

TokensLike: TypeAlias = str | int | Tensor | Sequence[str | int]
"""A token as text or id, a list with one for each example, or ids `[batch]` or `[batch, pos]`."""


class AttributionMethods(StreamReader):
    """The final norm and the head, applied to summands of the stream."""

    def apply_ln_to_stack(
        self,
        residual_stack: Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: PosSlice = None,
        batch_slice: PosSlice = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
        stack: str | None = None,
    ) -> Tensor:
        """Each row as a summand of a norm's input: centred (LayerNorm), divided, times the gain.

        The divisor is that of this run. So if the rows sum to the stream, the results sum to the
        norm's output minus its bias. Where the stream is read without a norm, rows do not change.

        Args:
            residual_stack: rows, or a single row, already sliced by `pos_slice`.
            layer: the layer whose norm to apply; None or -1: the final norm.
            mlp_input: whether to apply the norm of that layer's MLP instead of its attention's.
            pos_slice: the positions of the rows.
            batch_slice: which examples to take; the rows still have all of them.
            has_batch_dim: whether the rows have a batch axis.
            recompute_ln: whether to run the whole norm on each row instead, with the row's own
                statistics, gain and bias.
            stack: the prefix of another stack than the main one.

        Shapes: `[row, batch, pos, d_model]` -> the same.
        """
        target = self._target(self._stack(stack), layer, mlp_input)
        rows = residual_stack
        if batch_slice is not None and has_batch_dim and self.has_batch_dim:
            rows = taken(rows, batch_slice, 1 - rows.ndim)
        columns = self._columns(pos_slice, stack)
        return self._normed(rows, target, columns, batch_slice, recompute_ln)

    def logit_attrs(
        self,
        residual_stack: Tensor,
        tokens: TokensLike,
        incorrect_tokens: TokensLike | None = None,
        pos_slice: PosSlice = None,
        batch_slice: PosSlice = None,
        has_batch_dim: bool = True,
    ) -> Tensor:
        """What each row of a stack adds to a token's logit, or to the difference of two.

        The final norm is applied with this run's divisor and its gain, and then the multipliers of
        the head. If the rows sum to the stream, the attributions sum to the logit before any
        soft-cap, without the biases of the final norm and the head, which belong to no row.

        Args:
            residual_stack: as in `apply_ln_to_stack`, before any norm.
            tokens: one for all, one for each example, or one for each position.
            incorrect_tokens: the tokens to subtract, as many as `tokens`.
            pos_slice: the positions of the rows.
            batch_slice: which examples to take; the rows still have all of them.
            has_batch_dim: whether the rows have a batch axis.

        Shapes: `[row, batch, pos, d_model]` -> `[row, batch, pos]`.

        Raises:
            InputError: the number of tokens does not fit, or the head is not linear.
        """
        directions = _directions(self._model(), tokens, incorrect_tokens)
        rows = self.apply_ln_to_stack(
            residual_stack, None, False, pos_slice, batch_slice, has_batch_dim
        )
        batched = has_batch_dim and not isinstance(batch_slice, int)
        if batched and rows.ndim == 4 and directions.ndim == 2:  # one for each example
            directions = directions.unsqueeze(-2)
        _require_fit(directions, rows)
        return (rows * directions.to(rows)).sum(-1)

    def logit_lens(self, **options: Any) -> Any:
        """`lensbridge.analysis.logit_lens` on this cache, with its options."""
        model = self._model()
        if not isinstance(model, ReadsLogits):
            raise InputError(
                f"{type(model).__name__} has no logit_lens. Use a model from lensbridge.load."
            )
        return model.logit_lens(cache=self, **options)


def _require_fit(directions: Tensor, rows: Tensor) -> None:
    """Require one direction for all, or one for each example or position of the rows."""
    asked, there = directions.shape[:-1], rows.shape[:-1]
    if len(asked) > len(there) or any(
        one not in (1, size) for one, size in zip(reversed(asked), reversed(there), strict=False)
    ):
        raise InputError(
            f"There are {asked.numel()} tokens of shape {list(asked)} for rows of shape "
            f"{list(there)} (after the slices). Pass one token, one for each example, or one for "
            "each position."
        )


def _directions(model: CachedModel, right: TokensLike, wrong: TokensLike | None) -> Tensor:
    """The directions of the final norm's output that the head reads for tokens."""
    native = model.native
    if native.head_hidden is not None:
        raise InputError(
            "The head of this model reads the stream through a non-linear transform, so a logit is "
            "no sum over terms. Decompose the stream instead: get_full_resid_decomposition."
        )
    directions = model.tokens_to_residual_directions(right).detach()
    if wrong is not None:
        others = model.tokens_to_residual_directions(wrong).detach()
        if others.shape != directions.shape:
            raise InputError(
                f"tokens {list(directions.shape[:-1])} and incorrect_tokens "
                f"{list(others.shape[:-1])} differ in number. Pass one incorrect token for each."
            )
        directions = directions - others
    return directions * (native.head_scale * native.logit_scale)
