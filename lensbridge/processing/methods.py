"""Methods of `LensModel` for processed weights: `processed(...)`, `process_weights_(...)`.

The work is done in `lensbridge.processing`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from lensbridge.errors import ProcessingError
from lensbridge.hooked_model import HookedModel
from lensbridge.processing import Rewriting
from lensbridge.processing.plan import OnImpossible, Processing, ProcessingOptions, Wanted
from lensbridge.processing.undo_log import Undoable

if TYPE_CHECKING:
    from typing_extensions import Self


class ProcessingMethods(HookedModel):
    """Methods of `LensModel` that rewrite its weights, temporarily or permanently.

    Attributes:
        processings: what each rewrite that is in force did, the first one first.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.processings: list[Processing] = []
        self._rewritings: list[Undoable] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "processings": [*self.processings]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.processings = state["processings"]

    def _on(self, hf_model: nn.Module) -> "Self":
        other = super()._on(hf_model)
        other.processings = [*self.processings]
        return other

    @property
    def processed_by(self) -> tuple[str, ...]:
        """The steps of weight processing that are in force."""
        return self.processing.steps if self.processings else ()

    @property
    def processing(self) -> "Processing":
        """The weight processing that is in force, what it left out, and why.

        Example:
            >>> import lensbridge
            >>> model = lensbridge.load("demo")
            >>> with model.processed(fold_ln=True):
            ...     model.processing.steps
            ('fold_ln', 'center_writing_weights', 'center_unembed', 'fold_value_biases')
            >>> model.processing.steps
            ()
        """
        whole = Processing()
        for one in self.processings:
            whole = whole.then(one)
        return whole

    @contextmanager
    def processed(
        self,
        fold_ln: Wanted = None,
        center_writing_weights: Wanted = None,
        center_unembed: Wanted = None,
        fold_value_biases: Wanted = None,
        refactor_factored_attn_matrices: Wanted = False,
        *,
        on_impossible: OnImpossible = "raise",
        check: bool = True,
    ) -> Iterator[Any]:
        """Rewrite the weights inside the context, and restore them bit for bit after it.

        The model computes the same log-probabilities, up to rounding. The weights are those of
        `hf_model` itself, so all runs inside the context use them, in every thread. Edits of
        weights inside it are lost at the end. Each step is True (do all of it, or raise before
        anything is written), None (do what this model allows; `model.processing.left` says what was
        left out) or False.

        Args:
            fold_ln: fold the gains and biases of norms into the matrices that read them. For
                LayerNorms these matrices are also centred over their input. Tied embeddings are
                untied inside.
            center_writing_weights: subtract the mean over the channels from everything that is
                added to the stream. Only if LayerNorms read it everywhere.
            center_unembed: subtract the mean over the vocabulary from W_U and b_U. The logits of a
                position all shift by the same number.
            fold_value_biases: fold b_V into b_O.
            refactor_factored_attn_matrices: make W_Q, W_K, W_V and W_O from the SVD of QK and OV.
            on_impossible: "skip" treats True as None.
            check: whether to run a small random input after every step, and to restore everything
                and raise if the output changed by more than rounding.

        Yields:
            The model.

        Raises:
            ProcessingError: a step that has to be complete cannot be, or a step changed the output.

        Example:
            >>> import lensbridge, torch
            >>> model = lensbridge.load("demo")
            >>> before = model("A test.").log_softmax(-1)
            >>> with model.processed():
            ...     inside, gain = model("A test.").log_softmax(-1), model.ln_final.w.unique()
            >>> torch.allclose(before, inside, atol=1e-4), gain.tolist()
            (True, [1.0])
            >>> torch.equal(before, model("A test.").log_softmax(-1))
            True
        """
        options = ProcessingOptions(
            fold_ln,
            center_writing_weights,
            center_unembed,
            fold_value_biases,
            refactor_factored_attn_matrices,
            on_impossible,
        )
        rewriting = Rewriting.of(self.native, options)
        processing = rewriting.apply(self.device if check else None)
        self.processings.append(processing)
        self._rewritings.append(rewriting)
        try:
            yield self
        finally:
            rewriting.over = True
            self._take_back()

    def _take_back(self) -> None:
        """Undo the rewrites that are over, last first; one below an open one waits for it."""
        while self._rewritings and self._rewritings[-1].over:
            last = self._rewritings.pop()
            last.undo()
            if isinstance(last, Rewriting):
                self.processings.pop()

    def process_weights_(
        self,
        fold_ln: Wanted = None,
        center_writing_weights: Wanted = None,
        center_unembed: Wanted = None,
        fold_value_biases: Wanted = None,
        refactor_factored_attn_matrices: Wanted = False,
        *,
        on_impossible: OnImpossible = "raise",
        check: bool = True,
    ) -> "Processing":
        """Rewrite the weights of `hf_model` in place and permanently; arguments as in `processed`.

        Do not save the model as a checkpoint afterwards: it may have biases that its class does not
        have, and an untied head although its config says tied.

        Returns:
            What was done, and what was left out.

        Raises:
            ProcessingError: as in `processed`, or the call is inside `processed`.
        """
        options = ProcessingOptions(
            fold_ln,
            center_writing_weights,
            center_unembed,
            fold_value_biases,
            refactor_factored_attn_matrices,
            on_impossible,
        )
        if self._rewritings:
            raise ProcessingError(
                "process_weights_ was called inside `with model.processed(...)`, or while weights "
                "are edited, the end of which would undo it. Call it outside, or keep() the edit."
            )
        rewriting = Rewriting.of(self.native, options)
        processing = rewriting.apply(self.device if check else None)
        rewriting.undo_log.forget()
        self.processings.append(processing)
        return processing
