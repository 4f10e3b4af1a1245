"""Train the demo model that ships with lensbridge, judge it, and write it only if it is good.

The model is a four-layer GPT-2 on a toy world (``lensbridge.demo.text``) mixed with repeated
random tokens. A few minutes on two CPU cores give it induction heads, a table of landmarks and
the indirect-object rule, each measured on fillings it was never trained on::

    python examples/train_demo_model.py --out /tmp/demo-model

The exit status is 1, and nothing is written, if a bar below is missed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from lensbridge.demo import FOLDER, text

ACCURACY_BAR: Final = 0.9
INDUCTION_BAR: Final = 0.6

CONTEXT: Final = 128
LAYERS: Final = 4
HEADS: Final = 4
WIDTH: Final = 128

TEXT_ROWS: Final = 64
REPEAT_TOKENS: Final = 2048
LONGEST_REPEAT: Final = 60
WITHOUT_BOS: Final = 0.15
MATRIX_RATE: Final = 2e-3
OTHER_RATE: Final = 1e-3
DECAY: Final = 0.01
WARM_UP: Final = 100
# Short texts, long texts, repeats.
BATCH_WEIGHTS: Final = (0.5, 0.5, 1.0)

IGNORED: Final = -100  # PyTorch's mark for a label without a loss
SAMPLES: Final = 500
EVALUATION_SEED: Final = 1_000_003
SCORED_LENGTH: Final = 50  # of the repeated stretch on which heads are scored

Batch = tuple[Tensor, Tensor]  # input ids and labels, each [rows, length]


# --- tokenizer -----------------------------------------------------------------------------


def spelled(word: str) -> list[str]:
    """The byte symbols of a word, as GPT-2's vocabulary writes them.

    Args:
        word: Any text.
    """
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [symbol for piece, _ in alphabet.pre_tokenize_str(word) for symbol in piece]


def merges_for(piece: str) -> list[tuple[str, str]]:
    """The chain of merges that builds a piece from the left, byte by byte.

    Args:
        piece: The piece, with its leading space if it has one.
    """
    symbols = spelled(piece)
    return [("".join(symbols[:i]), symbols[i]) for i in range(1, len(symbols))]


def build_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """The special token, all bytes, what the merges build, then every word of the grammar.

    Args:
        merges: The merges, whose results BPE wants in the vocabulary.
    """
    words = ["".join(spelled(word)) for word in text.words()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [text.END_OF_TEXT, *alphabet, *(a + b for a, b in merges), *words]
    return {entry: i for i, entry in enumerate(dict.fromkeys(entries))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A GPT-2-style tokenizer that takes the grammar's words whole and spells out all others."""
    pieces = [piece for split in text.SPLIT_WORDS.values() for piece in split]
    merges = [merge for piece in pieces for merge in merges_for(piece)]
    core = Tokenizer(models.BPE(build_vocabulary(merges), merges, ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text.END_OF_TEXT, normalized=False, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=text.END_OF_TEXT,
        eos_token=text.END_OF_TEXT,
        pad_token=text.END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def token_of(tokenizer: PreTrainedTokenizerFast, answer: str) -> int:
    """The one token of an answer.

    Args:
        tokenizer: The tokenizer.
        answer: A text that must be a single token.

    Raises:
        ValueError: If it is not.
    """
    ids = tokenizer.encode(answer)
    if len(ids) != 1:
        raise ValueError(f"{answer!r} is {len(ids)} tokens, and an answer must be one")
    return int(ids[0])


# --- model and data ------------------------------------------------------------------------


def build_model(vocabulary: int, special: int) -> GPT2LMHeadModel:
    """The untrained model.

    Args:
        vocabulary: Number of tokens.
        special: The token that opens, closes and pads.
    """
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        activation_function="gelu_pytorch_tanh",  # GPT-2's function, several times faster
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        bos_token_id=special,
        eos_token_id=special,
    )
    return GPT2LMHeadModel(config)


def text_batches(
    tokenizer: PreTrainedTokenizerFast, documents: Iterator[str], rng: random.Random
) -> list[Batch]:
    """Two batches of texts, the short and the long ones, so that little of either is padding.

    Args:
        tokenizer: The tokenizer.
        documents: The stream of texts.
        rng: Decides which rows go without the opening token.
    """
    special = tokenizer.eos_token_id
    rows = []
    for ids in tokenizer([next(documents) for _ in range(TEXT_ROWS)])["input_ids"]:
        opening = [] if rng.random() < WITHOUT_BOS else [special]
        rows.append(torch.tensor([*opening, *ids, special][:CONTEXT]))
    rows.sort(key=len)
    half = TEXT_ROWS // 2
    return [_padded(rows[:half], special), _padded(rows[half:], special)]


def _padded(rows: list[Tensor], special: int) -> Batch:
    labels = pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    return pad_sequence(rows, batch_first=True, padding_value=special), labels


def repeat_batch(pools: list[Tensor], special: int, longest: int, rng: random.Random) -> Batch:
    """Rows of random tokens in which one stretch comes twice, with labels on its second coming.

    Where the two begin varies from row to row, so that position alone gives nothing away.

    Args:
        pools: The sets of tokens to draw from; each row draws from one of them.
        special: The opening token, which some batches go without.
        longest: The longest stretch.
        rng: Decides lengths, places and pools.
    """
    period = rng.randint(4, longest)
    length = min(CONTEXT - 1, 2 * period + rng.randint(0, period))
    count = REPEAT_TOKENS // length
    rows = [_repeated(rng.choice(pools), period, length, rng) for _ in range(count)]
    ids, labels = (torch.stack(part) for part in zip(*rows, strict=True))
    if rng.random() < WITHOUT_BOS:
        return ids, labels
    opening = torch.full((count, 1), special)
    return torch.cat([opening, ids], 1), torch.cat([opening, labels], 1)


def _repeated(pool: Tensor, period: int, length: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    ids = pool[torch.randint(len(pool), (length,))]
    labels = torch.full((length,), IGNORED)
    source = rng.randint(0, length - 2 * period)
    # Half the copies follow at once, as in the classic test; the others after other tokens.
    copy = source + period if rng.random() < 0.5 else rng.randint(source + period, length - period)
    ids[copy : copy + period] = ids[source : source + period]
    # The first token of the copy cannot be foreseen: nothing says that a copy begins.
    labels[copy + 1 : copy + period] = ids[copy + 1 : copy + period]
    return ids, labels


def token_pools(vocabulary: int) -> list[Tensor]:
    """What repeated rows draw from: the grammar's words, or the whole vocabulary.

    Args:
        vocabulary: Number of tokens.
    """
    everything = torch.arange(vocabulary)
    return [everything[vocabulary - len(text.words()) :], everything]


# --- training ------------------------------------------------------------------------------


def share_of_peak(step: int, steps: int) -> float:
    """The learning rate's share of its peak: a short warm-up, then straight down to nothing.

    Args:
        step: The current step.
        steps: How many there are.
    """
    return min((step + 1) / WARM_UP, (steps - step) / max(1, steps - WARM_UP))


def longest_repeat(step: int, steps: int) -> int:
    """The longest stretch to repeat: short ones first, for induction starts on them.

    Args:
        step: The current step.
        steps: How many there are.
    """
    return min(LONGEST_REPEAT, 8 + 3 * LONGEST_REPEAT * step // steps)


def train(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int
) -> None:
    """Train in place, on text and on repeated random tokens at every step.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        steps: Number of steps.
        seed: Seed of the data.
    """
    rng = random.Random(seed)
    documents = text.training_documents(rng)
    pools = token_pools(len(tokenizer))
    optimizers = build_optimizers(model)
    share = partial(share_of_peak, steps=steps)
    schedules = [LambdaLR(optimizer, share) for optimizer in optimizers]
    start = time.time()
    for step in range(steps):
        texts = text_batches(tokenizer, documents, rng)
        longest = longest_repeat(step, steps)
        repeats = repeat_batch(pools, tokenizer.eos_token_id, longest, rng)
        losses = _step(model, optimizers, [*texts, repeats])
        for schedule in schedules:
            schedule.step()
        if step % 50 == 0 or step == steps - 1:
            short, long, repeat = losses
            print(
                f"step {step:4d}/{steps}  {time.time() - start:4.0f} s  loss on short texts "
                f"{short:.3f}, long texts {long:.3f}, repeats {repeat:.3f}",
                flush=True,
            )


def build_optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest.

    With AdamW alone induction on random tokens takes far more steps to appear.

    Args:
        model: The model.
    """
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, weight in model.named_parameters():
        inner = ".h." in name and weight.ndim == 2
        (matrices if inner else others).append(weight)
    return [
        torch.optim.Muon(
            matrices, lr=MATRIX_RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=OTHER_RATE, weight_decay=DECAY, betas=(0.9, 0.98)),
    ]


def _step(
    model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer], batches: list[Batch]
) -> list[float]:
    """One update; the batches run one by one because their lengths differ."""
    model.zero_grad()
    losses = []
    for (ids, labels), weight in zip(batches, BATCH_WEIGHTS, strict=True):
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        (weight * loss).backward()
        losses.append(float(loss.detach()))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return losses


# --- judging -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """What the model can do, measured on what it was not trained on.

    Attributes:
        accuracies: By task, with the opening token and without.
        margins: By textbook prompt, the answer's logit less the rival's.
        induction: Each head's attention on the induction stripe, [layer, head].
        previous: Each head's attention on the previous token, [layer, head].
    """

    accuracies: dict[str, tuple[float, float]]
    margins: dict[str, float]
    induction: Tensor
    previous: Tensor

    def missed(self) -> list[str]:
        """The bars that are not reached, in words."""
        missed = [
            f"{task}: accuracies {both} must be at least {ACCURACY_BAR}"
            for task, both in self.accuracies.items()
            if min(both) < ACCURACY_BAR
        ]
        if self.induction.max() <= INDUCTION_BAR:
            missed.append(f"no head's induction score is above {INDUCTION_BAR}")
        return missed


def best_head(scores: Tensor) -> str:
    """The name and score of the head that scores highest.

    Args:
        scores: Scores, [layer, head].
    """
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return f"layer {layer}, head {head} ({scores.max():.2f})"


@torch.no_grad()
def next_logits(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, lines: list[str]
) -> Tensor:
    """The logits of what follows each text, [text, token].

    Args:
        model: The model.
        tokenizer: The tokenizer.
        lines: The texts.
    """
    batch = tokenizer(lines, padding=True, return_tensors="pt")
    logits = model(**batch).logits
    return logits[torch.arange(len(lines)), batch["attention_mask"].sum(1) - 1]


def prompt_accuracy(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[text.Prompt],
    opening: str,
) -> float:
    """How often the most likely token is the answer.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        prompts: The prompts.
        opening: What to put before each.
    """
    guesses = next_logits(model, tokenizer, [opening + p.text for p in prompts]).argmax(-1)
    answers = torch.tensor([token_of(tokenizer, prompt.answer) for prompt in prompts])
    return (guesses == answers).float().mean().item()


def repeated_ids(tokenizer: PreTrainedTokenizerFast, opened: bool) -> Tensor:
    """Random words of the grammar twice over, [row, position].

    Args:
        tokenizer: The tokenizer.
        opened: Whether the rows begin with the opening token.
    """
    words, _ = token_pools(len(tokenizer))
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    drawn = words[torch.randint(len(words), (32, SCORED_LENGTH), generator=generator)]
    opening = torch.full((32, int(opened)), tokenizer.bos_token_id)
    return torch.cat([opening, drawn, drawn], 1)


@torch.no_grad()
def repeat_accuracy(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, opened: bool
) -> float:
    """How often the second copy is foreseen, from its second token on.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        opened: Whether the rows begin with the opening token.
    """
    ids = repeated_ids(tokenizer, opened)
    guesses = model(ids, attention_mask=torch.ones_like(ids)).logits.argmax(-1)
    asked = SCORED_LENGTH - 1
    return (guesses[:, -asked - 1 : -1] == ids[:, -asked:]).float().mean().item()


@torch.no_grad()
def head_scores(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, Tensor]:
    """Mean attention on the induction stripe and on the previous token, each [layer, head].

    Args:
        model: The model, with eager attention.
        tokenizer: The tokenizer.
    """
    ids = repeated_ids(tokenizer, opened=True)
    run = model(ids, attention_mask=torch.ones_like(ids), output_attentions=True)
    patterns = torch.stack(run.attentions).mean(1)  # layer, head, query, key
    stripes = (patterns.diagonal(-back, -2, -1) for back in (SCORED_LENGTH - 1, 1))
    # Only queries in the second copy: before it there is nothing to look back to.
    induction, previous = (stripe[..., -SCORED_LENGTH:].mean(-1) for stripe in stripes)
    return induction, previous


def judge(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> Scores:
    """Measure everything that the bars and the model card speak of.

    Args:
        model: The model, with eager attention.
        tokenizer: The tokenizer.
    """
    tasks = {
        "Facts": text.held_out_facts(SAMPLES, EVALUATION_SEED),
        "Indirect objects": text.held_out_handovers(SAMPLES, EVALUATION_SEED),
    }
    accuracy = partial(prompt_accuracy, model, tokenizer)
    accuracies = {
        task: (accuracy(prompts, text.END_OF_TEXT), accuracy(prompts, ""))
        for task, prompts in tasks.items()
    }
    opened, bare = (repeat_accuracy(model, tokenizer, opened) for opened in (True, False))
    accuracies["Repeated random tokens"] = (opened, bare)
    return Scores(accuracies, textbook_margins(model, tokenizer), *head_scores(model, tokenizer))


def textbook_margins(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
) -> dict[str, float]:
    """The answer's logit less the rival's on each textbook prompt and its corruption.

    Args:
        model: The model.
        tokenizer: The tokenizer.
    """
    margins = {}
    for prompt in (text.eiffel_tower(), text.john_and_mary()):
        lines = [prompt.text, prompt.corrupted]
        logits = next_logits(model, tokenizer, [text.END_OF_TEXT + line for line in lines])
        both = [token_of(tokenizer, word) for word in (prompt.answer, prompt.rival)]
        clean, corrupted = (logits[:, both[0]] - logits[:, both[1]]).tolist()
        margins[prompt.sentence] = clean
        margins[f"{prompt.corrupted}{prompt.rival}."] = -corrupted
    return margins


# --- the model card ------------------------------------------------------------------------

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The lensbridge demo model

A GPT-2 of {layers} layers, {heads} heads and width {width} ({parameters:,} parameters, context
{context}) on which the classic interpretability workflows work: induction on repeated random
tokens, looking up facts, and indirect objects. It ships with `lensbridge`, so that they run
offline in seconds. It is an ordinary HuggingFace checkpoint.

## Use

```python
import lensbridge

model = lensbridge.load("demo")
```

Texts were mostly opened by the BOS token `<|endoftext|>` in training, and it is best to open
yours with it. The tokenizer does not add it by itself.

## Training

`examples/train_demo_model.py --steps {steps} --seed {seed} --threads {threads}`: {seconds:.0f}
seconds on {threads} CPU threads ({cpu:.0f} seconds of processor time). Every step takes {rows}
rows of text (two fifths of the sentences are facts, three fifths indirect objects, one in four
after a distractor sentence; one to three to a row) and about {repeats} random tokens in which a
stretch of 4 to {longest} comes twice. {without:.0%} of the rows go without the BOS token. Half the
random rows draw from the words below, half from the whole vocabulary.

The world is written down in `lensbridge/demo/text.py`: {names} names, {landmarks} landmarks in
{cities} cities, {places} places, {objects} objects, {facts} fact templates, {handovers}
indirect-object templates.

## Results

All on fillings held out of training: each landmark is asked in the one template in which training
never showed it, indirect objects are asked with pairs of names that never shared a sentence in
training, and random tokens are drawn anew. Half the prompts come after a distractor sentence.
{samples} prompts per task, and 32 sequences of 2 x {length} random words.

| Task | Accuracy | Without BOS |
| --- | --- | --- |
{accuracies}

| Sentence (its filling is held out) | Answer's logit over the rival's |
| --- | --- |
{margins}

- Best induction head: {induction}. The score is its mean attention, from the
  second copy, to the token after the previous occurrence.
- Best previous-token head: {previous}.

## Vocabulary

{vocabulary} tokens: `<|endoftext|>` (opens, closes and pads), the 256 bytes, {pieces} pieces that
spell " Colosseum" in two tokens, and {words} words of the grammar, taken whole. Any text tokenizes
and comes back unchanged; unknown words fall to bytes. Every landmark is two tokens long, so that
any two can be patched position by position.

## Limits

A toy. It knows the sentences of one small grammar and nothing else; it has never read natural
text, and says nothing about how larger models do the same tasks. The landmarks are real and their
cities are right, but this is no source of facts.

## Licence

Apache-2.0, like lensbridge.
"""


@dataclass(frozen=True)
class Training:
    """How the model was trained.

    Attributes:
        steps: Number of steps.
        seed: The seed.
        threads: Number of threads.
        seconds: Time taken.
        cpu: Processor time taken, over all threads.
    """

    steps: int
    seed: int
    threads: int
    seconds: float
    cpu: float


def model_card(model: GPT2LMHeadModel, vocabulary: int, done: Training, scores: Scores) -> str:
    """The card, from what was measured.

    Args:
        model: The model.
        vocabulary: Number of tokens.
        done: How it was trained.
        scores: What it can do.
    """
    rows = [
        f"| {task} | {opened:.3f} | {bare:.3f} |"
        for task, (opened, bare) in scores.accuracies.items()
    ]
    margins = [f"| {sentence} | {value:.1f} |" for sentence, value in scores.margins.items()]
    words = len(text.words())
    return CARD.format(
        **vars(done),
        **world_sizes(),
        parameters=model.num_parameters(),
        accuracies="\n".join(rows),
        margins="\n".join(margins),
        induction=best_head(scores.induction),
        previous=best_head(scores.previous),
        vocabulary=vocabulary,
        words=words,
        pieces=vocabulary - words - 257,
    )


def world_sizes() -> dict[str, float]:
    """The card's numbers that are fixed before training."""
    return {
        "layers": LAYERS,
        "heads": HEADS,
        "width": WIDTH,
        "context": CONTEXT,
        "rows": TEXT_ROWS,
        "repeats": REPEAT_TOKENS,
        "longest": LONGEST_REPEAT,
        "without": WITHOUT_BOS,
        "samples": SAMPLES,
        "length": SCORED_LENGTH,
        "names": len(text.NAMES),
        "landmarks": len(text.LANDMARKS),
        "cities": len(text.CITIES),
        "places": len(text.PLACES),
        "objects": len(text.OBJECTS),
        "facts": len(text.FACT_TEMPLATES),
        "handovers": len(text.HANDOVER_TEMPLATES),
    }


# --- the command ---------------------------------------------------------------------------


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's options.

    Args:
        arguments: The command line, without the program's name.
    """
    parser = argparse.ArgumentParser(description="Train the demo model that ships with lensbridge.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write (%(default)s)")
    parser.add_argument("--steps", type=int, default=1400, help="steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    return parser.parse_args(arguments)


def trained(
    options: argparse.Namespace,
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, Training]:
    """Build and train, seeded.

    Args:
        options: The command line's options.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer), tokenizer.bos_token_id)
    start, cpu = time.time(), time.process_time()
    train(model, tokenizer, options.steps, options.seed)
    took = time.time() - start, time.process_time() - cpu
    return model, tokenizer, Training(options.steps, options.seed, options.threads, *took)


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer as an ordinary GPT-2 checkpoint.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        folder: The folder.
    """
    model.config.activation_function = "gelu_new"  # the same function by GPT-2's own name
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def reloaded(folder: Path) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """What users will load, so that this is what is judged.

    Args:
        folder: The folder that was written.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def main(arguments: list[str]) -> int:
    """Train, judge, and write the folder if every bar is reached.

    Args:
        arguments: The command line, without the program's name.

    Returns:
        The exit status: 1 if a bar is missed, and then nothing is written.
    """
    options = parse(arguments)
    model, tokenizer, done = trained(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(model, tokenizer, folder)
        scores = judge(*reloaded(folder))
        card = model_card(model, len(tokenizer), done, scores)
        print(card[card.index("## Results") : card.index("## Vocabulary")])
        if missed := scores.missed():
            print("Not written:", *missed, sep="\n  ", file=sys.stderr)
            return 1
        (folder / "README.md").write_text(card, encoding="utf-8")
        options.out.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            shutil.copyfile(path, options.out / path.name)
    print(f"Written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
