"""Whether a model predicts the answer to a prompt: printed and returned."""
# ruff: noqa: PT028 (test_prompt is no test of pytest)

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.viz import Bars, Drawn
from lensbridge.viz.labels import label_of


@dataclass(frozen=True)
class Prediction:
    """One token as a prediction of the next.

    Units: rank 0 is the most likely token.
    """

    token: str
    id: int
    rank: int
    logit: float
    probability: float

    def __str__(self) -> str:
        return f"Logit: {self.logit:6.2f}  Prob: {self.probability:7.2%}  Token: |{self.token}|"


@dataclass(frozen=True, repr=False)
class PromptResult(Drawn):
    """How a model answers a prompt.

    Args:
        prompt: its tokens.
        answers: the tokens of each answer, each predicted after the prompt and the answer's tokens
            before it. With several answers, only the first token of each.
        top: the most likely tokens at each of these positions (with several answers, at one).
    """

    prompt: list[str]
    answers: list[list[Prediction]]
    top: list[list[Prediction]]

    @property
    def ranks(self) -> list[list[int]]:
        """The rank of each token of each answer."""
        return [[one.rank for one in answer] for answer in self.answers]

    def plot(self, place: int = 0, *, title: str = "") -> Bars:
        """Bars of the likeliest tokens and of the answers, which are marked.

        Args:
            place: which token of the answer is predicted.
            title: written above the picture; empty: the end of the prompt.

        Raises:
            InputError: the answer has no such token.
        """
        if not 0 <= place < len(self.top):
            raise InputError(f"The answer has no token {place}: it has {len(self.top)}.")
        answers = [answer[place] for answer in self.answers if place < len(answer)]
        right = {one.id for one in answers}
        listed = {one.id: one for one in [*self.top[place], *answers]}.values()
        shown = sorted(listed, key=lambda one: one.rank)
        first = self.answers[0]
        said = [*self.prompt, *(one.token for one in first[:place])]
        return Bars(
            title or f"After “{label_of(''.join(said[-12:]).strip())}”",
            [one.probability for one in shown],
            [one.token for one in shown],
            "probability",
            remarks=[f"answer, rank {one.rank}" if one.id in right else "" for one in shown],
        )

    def __repr__(self) -> str:
        answers = [
            f"{''.join(one.token for one in answer)!r} of rank "
            f"{', '.join(str(one.rank) for one in answer)}"
            for answer in self.answers
        ]
        return f"PromptResult({len(self.prompt)} tokens; {'; '.join(answers)})"

    def __str__(self) -> str:
        lines = [f"Prompt: {self.prompt}"]
        for place, top in enumerate(self.top):
            here = [answer[place] for answer in self.answers if place < len(answer)]
            lines += [f"Rank: {one.rank:<6d} {one}" for one in here]
            lines += [f"Top {one.rank:<7d} {one}" for one in top]
        ranks = [[(one.token, one.rank) for one in answer] for answer in self.answers]
        return "\n".join([*lines, f"Ranks of the answers: {ranks}"])


@torch.no_grad()
def test_prompt(
    prompt: str,
    answer: str | Sequence[str],
    model: HookedModel,
    prepend_space_to_answer: bool = True,
    print_details: bool = True,
    prepend_bos: bool | None = None,
    top_k: int = 10,
) -> PromptResult:
    """Rank the answer to a prompt among the model's predictions.

    Args:
        prompt: the text.
        answer: what should follow; of several answers, only the first token of each is used.
        model: the model.
        prepend_space_to_answer: put a space before answers that have none.
        print_details: print the result.
        prepend_bos: BOS before the prompt; None means the default.
        top_k: how many of the most likely tokens to list.

    Raises:
        InputError: no answer, or an encoder-decoder.

    Example:
        >>> import lensbridge
        >>> from lensbridge.analysis import test_prompt
        >>> model = lensbridge.load("demo")
        >>> text = "The Eiffel Tower is in the city of"
        >>> test_prompt(text, ["Paris", "Rome"], model, print_details=False).ranks[0]
        [0]
    """
    answers = [answer] if isinstance(answer, str) else list(answer)
    if not answers or not all(answers):
        raise InputError(f"An answer is a text that is not empty, not {answer!r}.")
    if model.native.is_encoder_decoder:
        raise InputError("test_prompt needs a decoder-only model, and this one has an encoder.")
    if prepend_space_to_answer:
        answers = [one if one.startswith(" ") else f" {one}" for one in answers]
    start = model.to_tokens(prompt, prepend_bos=prepend_bos)
    ids = [model.to_tokens(one, prepend_bos=False)[0] for one in answers]
    ids = ids if len(ids) == 1 else [one[:1] for one in ids]
    whole = torch.cat([start, ids[0][None]], dim=1)[:, :-1]
    logits = model(whole)
    behind = logits[0, start.shape[1] - 1 :]
    result = PromptResult(
        prompt=[str(one) for one in model.to_str_tokens(start)],
        answers=[
            [_prediction(model, row, int(one)) for row, one in zip(behind, several, strict=True)]
            for several in ids
        ],
        top=[
            [
                _prediction(model, row, int(one), rank)
                for rank, one in enumerate(_likeliest(row, top_k))
            ]
            for row in behind
        ],
    )
    if print_details:
        print(result)
    return result


test_prompt.__test__ = False  # type: ignore[attr-defined]  # pytest collects what is called test_


def _likeliest(logits: Tensor, k: int) -> Tensor:
    return logits.topk(min(k, len(logits))).indices


def _prediction(
    model: HookedModel, logits: Tensor, one: int, rank: int | None = None
) -> Prediction:
    return Prediction(
        token=model.to_single_str_token(one),
        id=one,
        rank=int((logits > logits[one]).sum()) if rank is None else rank,
        logit=float(logits[one]),
        probability=float(logits.double().softmax(-1)[one]),
    )
