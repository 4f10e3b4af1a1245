"""Quick evaluations: indirect object identification, induction, loss, a sanity check."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError, LensbridgeError
from lensbridge.evals.ioi import IOIDataset
from lensbridge.model import LensModel
from lensbridge.tensors.loss import lm_cross_entropy_loss

PLAIN_ENGLISH = (
    "The history of the microscope is a good example of how a new instrument changes a science. "
    "Before it, people could only guess what living things were made of. After it, they could "
    "look, and what they saw was so much richer than what they had imagined that they needed new "
    "words for it. Many of these words are still in use today."
)
"""The text of `sanity_check`."""


@torch.no_grad()
def ioi_eval(
    model: LensModel,
    dataset: Any = None,
    batch_size: int = 8,
    num_samples: int = 1000,
    tokenizer: Any = None,
    symmetric: bool = False,
    seed: int | None = None,
) -> dict[str, float]:
    """How well a model predicts the indirect object rather than the subject.

    Args:
        model: the model.
        dataset: an `IOIDataset`, or any data set whose items have `prompt` (ids, the answer at the
            end), `IO` and `S` (ids of the two names). None: sentences are drawn.
        batch_size: sentences per batch.
        num_samples: how many sentences to draw.
        tokenizer: for the sentences that are drawn; None: the model's.
        symmetric: whether to add to each drawn sentence the one with its names swapped.
        seed: seed of the draw.

    Returns:
        "Logit Difference", the mean of the right name's logit minus the wrong one's, and
        "Accuracy", the fraction of sentences where it is positive. Names of several tokens are
        compared at the first token that differs.

    Example:
        >>> import lensbridge
        >>> from lensbridge.evals import ioi_eval
        >>> ioi_eval(lensbridge.load("demo"), num_samples=20, seed=0)["Accuracy"]
        1.0
    """
    _require_decoder(model)
    if dataset is None:
        known = model.tokens.need() if tokenizer is None else tokenizer
        dataset = IOIDataset(known, num_samples=num_samples, symmetric=symmetric, seed=seed)
    found = [
        difference
        for start in range(0, len(dataset), batch_size)
        for difference in _differences(
            model, [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        )
    ]
    if not found:
        raise InputError("The data set is empty.")
    return {
        "Logit Difference": sum(found) / len(found),
        "Accuracy": sum(one > 0 for one in found) / len(found),
    }


def _differences(model: LensModel, samples: Sequence[Mapping[str, Tensor]]) -> Iterator[float]:
    prompts = [one["prompt"] for one in samples]
    tokens = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    lengths = torch.tensor([len(one) for one in prompts])
    mask = (torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)).long()
    logits = model(tokens, attention_mask=mask)
    for row, sample in zip(logits, samples, strict=True):
        io, s = sample["IO"], sample["S"]
        apart = (io[: len(s)] != s[: len(io)]).nonzero()
        if not len(apart):
            raise InputError(
                f"Of the names {io.tolist()} and {s.tolist()} one begins with the other, so no "
                "token distinguishes them."
            )
        place = int(apart[0])
        here = row[len(sample["prompt"]) - len(io) + place - 1]
        yield float(here[io[place]] - here[s[place]])


@torch.no_grad()
def induction_loss(
    model: LensModel,
    tokenizer: Any = None,
    batch_size: int = 4,
    subseq_len: int = 384,
    prepend_bos: bool | None = None,
    seed: int | None = None,
) -> float:
    """Loss on the second copy of random tokens: low where a model has induction heads.

    Args:
        model: the model.
        tokenizer: the tokenizer for BOS and special tokens; None: the model's.
        batch_size: how many sequences.
        subseq_len: number of tokens that are repeated.
        prepend_bos: begin with BOS; None means the model's default, if there is a BOS token.
        seed: seed of the draw; None: another draw each time.

    Units: nats, averaged over the tokens of the second copy except its first, which cannot be
        predicted. A uniform guess is log(d_vocab).

    Raises:
        InputError: the sequence is longer than the context, or there is no BOS token.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads".

    Example:
        >>> import lensbridge
        >>> from lensbridge.evals import induction_loss
        >>> induction_loss(lensbridge.load("demo"), subseq_len=50, seed=0) < 1.0
        True
    """
    _require_decoder(model)
    if subseq_len < 2:
        raise InputError(
            f"subseq_len is 2 or more, not {subseq_len}: the second copy's first token is not "
            "counted."
        )
    tokens = repeated_tokens(model, tokenizer, batch_size, subseq_len, prepend_bos, seed)
    limit = model.cfg.n_ctx
    if limit is not None and tokens.shape[1] > limit:
        raise InputError(
            f"Two copies of subseq_len={subseq_len} make {tokens.shape[1]} tokens, and the context "
            f"has {limit}. Pass subseq_len={(limit - 1) // 2} or less."
        )
    logits = model(tokens)
    losses = lm_cross_entropy_loss(logits, tokens, per_token=True)
    return float(losses[:, 1 - subseq_len :].mean())


def repeated_tokens(
    model: LensModel,
    tokenizer: Any = None,
    batch_size: int = 4,
    subseq_len: int = 384,
    prepend_bos: bool | None = None,
    seed: int | None = None,
) -> Tensor:
    """Random tokens, without special ones, followed by the same tokens again; BOS in front.

    Shapes: `[batch, bos + 2 * subseq_len]`
    """
    known = model.tokenizer if tokenizer is None else tokenizer
    special = [] if known is None else known.all_special_ids
    pool = torch.tensor(sorted(set(range(model.cfg.d_vocab)) - set(special)))
    draw = torch.Generator()
    draw.seed() if seed is None else draw.manual_seed(seed)
    once = pool[torch.randint(len(pool), (batch_size, subseq_len), generator=draw)]
    bos = None if known is None else known.bos_token_id
    if prepend_bos and bos is None:
        raise InputError("prepend_bos=True, but there is no tokenizer with a BOS token.")
    wanted = model.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
    opening = [] if bos is None or not wanted else [torch.full((batch_size, 1), bos)]
    return torch.cat([*opening, once, once], dim=1).to(model.device)


@torch.no_grad()
def evaluate_on_dataset(
    model: LensModel,
    data_loader: Iterable[Mapping[str, Tensor]],
    truncate: int | None = 100,
    device: Any = None,
) -> float:
    """Next-token loss over batches.

    Args:
        model: the model.
        data_loader: batches with `tokens`, and `attention_mask` where some of them are padding.
        truncate: use at most this many batches; None: all.
        device: where to move the batches; None: where the model is.

    Units: nats, averaged over all predictions that count.

    Raises:
        InputError: the batches have no token to predict.
    """
    _require_decoder(model)
    total, count = 0.0, 0
    for batch in islice(data_loader, truncate):
        tokens = batch["tokens"].to(device or model.device)
        mask = batch.get("attention_mask")
        mask = None if mask is None else mask.to(tokens.device)
        logits = model(tokens, attention_mask=mask)
        losses = lm_cross_entropy_loss(logits, tokens, mask, per_token=True)
        real = torch.ones_like(tokens) if mask is None else mask
        total += float(losses.double().sum())
        count += int((real[:, 1:] * real[:, :-1]).sum())
    if not count:
        raise InputError("The batches have no token to predict.")
    return total / count


@torch.no_grad()
def sanity_check(model: LensModel) -> float:
    """Loss on a paragraph of plain English.

    Below 5, a model of English probably works; above 7, something is wrong with it.

    Units: nats.
    """
    _require_decoder(model)
    loss = model(model.to_tokens(PLAIN_ENGLISH, truncate=True), return_type="loss")
    return float(loss)


def _require_decoder(model: LensModel) -> None:
    native = model.native
    if not native.predicts_next:
        raise LensbridgeError(
            f"{type(native.core).__name__} does not predict the next token of its input. Load a "
            "causal language model."
        )
