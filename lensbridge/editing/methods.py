"""Methods of `LensModel` for edits of weights: `edited({...})`, `edit_weights({...})`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lensbridge.editing.edit import NewWeight, WeightEdit, change_of
from lensbridge.processing.methods import ProcessingMethods


class EditingMethods(ProcessingMethods):
    """Methods of `LensModel` that write new values into its weights and take them back."""

    @contextmanager
    def edited(self, weights: Mapping[str, NewWeight], *, untied: bool = False) -> Iterator[Any]:
        """Give weights new values inside the context, and restore them bit for bit after it.

        The parameters of `hf_model` itself are written, so all runs inside the context use the new
        values, in every thread. Blocks nest. A projection that has no bias gets one of its own if
        its bias is edited.

        Args:
            weights: new values by the names of `model.weight_names`: a tensor with the shape that
                `model.weight(name)` has, a number for all of it, or a function of a copy of it.
            untied: give the head a weight of its own first, where it shares the embedding's.
                Otherwise an edit of `embed.W_E` is one of `unembed.W_U` too.

        Yields:
            The model.

        Raises:
            WeightError: there is no such weight, or it cannot be written to: quantized, sharded,
                adapted, offloaded, computed. Nothing is changed then.
            ShapeError: a value of another shape.

        Example:
            >>> import lensbridge, torch
            >>> model = lensbridge.load("demo")
            >>> before = model("A test.")
            >>> with model.edited({"blocks.3.mlp.W_out": 0.0, "blocks.1.attn.W_O": lambda W: -W}):
            ...     changed = model("A test.")
            >>> torch.equal(before, changed), torch.equal(before, model("A test."))
            (False, True)
        """
        _, change = change_of(self, weights, untied)
        self._rewritings.append(change)
        try:
            yield self
        finally:
            change.over = True
            self._take_back()

    def edit_weights(self, weights: Mapping[str, NewWeight], *, untied: bool = False) -> WeightEdit:
        """Give weights new values until the edit is undone; arguments and errors as in `edited`.

        Inside a block (`processed`, `edited`) the end of that block waits for `undo` or `keep`.

        Returns:
            The edit: `undo()` restores every byte, `keep()` frees the memory of the earlier values.

        Example:
            >>> import lensbridge
            >>> model = lensbridge.load("demo")
            >>> edit = model.edit_weights({"blocks.0.attn.b_O": 0.0})
            >>> bool(model.b_O[0].any())
            False
            >>> edit.undo()
            >>> bool(model.b_O[0].any())
            True
        """
        names, change = change_of(self, weights, untied)
        self._rewritings.append(change)
        return WeightEdit(self, names, change)
