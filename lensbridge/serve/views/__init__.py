"""What the page shows: each view answers one kind of question.

A view is a function of the model, a question and its job. It gives one answer, or several events
one after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lensbridge.serve import questions
from lensbridge.serve.views.ablation import ablation
from lensbridge.serve.views.attention import attention
from lensbridge.serve.views.attribution import attribution
from lensbridge.serve.views.comparison import comparison
from lensbridge.serve.views.edits import edits
from lensbridge.serve.views.lens import lens
from lensbridge.serve.views.neurons import neurons
from lensbridge.serve.views.predictions import predictions
from lensbridge.serve.views.steering import steering


@dataclass(frozen=True)
class View:
    """One kind of question.

    Args:
        question: what may be asked.
        answer: what answers it.
        streams: whether it gives several events.
    """

    question: type[Any]
    answer: Callable[..., Any]
    streams: bool = False


VIEWS: dict[str, View] = {
    "predictions": View(questions.Predictions, predictions),
    "lens": View(questions.Lens, lens),
    "attention": View(questions.Attention, attention),
    "neurons": View(questions.Neurons, neurons),
    "attribution": View(questions.Attribution, attribution),
    "edits": View(questions.Edits, edits),
    "ablation": View(questions.Ablation, ablation, streams=True),
    "comparison": View(questions.Comparison, comparison, streams=True),
    "steering": View(questions.Steering, steering, streams=True),
}
"""Every view, by the name that its address has."""
