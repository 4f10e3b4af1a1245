"""Methods of `LensModel` for processed weights: `processed(...)`, `process_weights_(...)`.

The work is done in `lensbridge.processing`, which is imported when it is asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lensbridge.errors import ProcessingError
from lensbridge.hooked_model import HookedModel
from lensbridge.processing import Rewriting
from lensbridge.processing.plan import OnImpossible, Processing, ProcessingOptions, Wanted


class ProcessingMethods(HookedModel):
    """Methods of `LensModel` that rewrite its weights, for a while or for good; never unasked.

    Attributes:
        processings: what each rewriting that is in force did, the first one first.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.processings: list[Processing] = []
        self._rewritings: list[Rewriting] = []

    @property
    def processed_by(self) -> tuple[str, ...]:
        """The steps of weight processing that are in force."""
        return self.processing.steps if self.processings else ()

    @property
    def processing(self) -> "Processing":
        """Which processing of the weights is in force, what it had to leave, and why.

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
        """Rewritten weights inside, the model's own again behind, bit for bit.

        What the model computes stays the same: log-probabilities, up to rounding. The weights are
        those of `hf_model` itself, so every run inside uses them, in every thread; edits of weights
        inside are lost at the end. Each step is True (all of it, or an error before anything is
        written), None (as far as this model allows; `model.processing.left` says what was left) or
        False.

        Args:
            fold_ln: gains and biases of norms into the matrices that read them, which behind a
                LayerNorm are also centred over what they read. Tied embeddings are untied inside.
            center_writing_weights: what is added to the stream less its mean over the channels;
                only behind LayerNorms.
            center_unembed: W_U and b_U less their mean over the vocabulary: logits move together.
            fold_value_biases: b_V into b_O.
            refactor_factored_attn_matrices: W_Q, W_K, W_V and W_O from the SVD of QK and OV.
            on_impossible: "skip" treats True as None.
            check: run a small random input after every step, and put everything back and raise if
                the output has moved by more than rounding.

        Yields:
            The model.

        Raises:
            ProcessingError: a step that must be done whole cannot be, or one changed the output.

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
        """Undo what is over, the last first: one under another, still open, waits for that one."""
        while self._rewritings and self._rewritings[-1].over:
            self._rewritings.pop().undo()
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
        """Rewrite the weights of `hf_model` in place, for good; arguments as in `processed`.

        A model that was rewritten may hold biases that its class does not make, and a head that its
        config calls tied: do not save it as a checkpoint.

        Returns:
            What was done and what was left.

        Raises:
            ProcessingError: as in `processed`, or inside of it.
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
                "Inside `with model.processed(...)` weights are rewritten for a while: its end "
                "would take this back. Call process_weights_ outside."
            )
        rewriting = Rewriting.of(self.native, options)
        processing = rewriting.apply(self.device if check else None)
        rewriting.undo_log.forget()
        self.processings.append(processing)
        return processing
