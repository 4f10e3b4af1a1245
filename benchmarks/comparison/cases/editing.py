"""Edits, against the same edits by hand."""

import warnings

import torch
from torch import Tensor

from benchmarks.comparison import oracle
from benchmarks.comparison.cases.bench import HEAD, SEQUENTIAL, Bench, case, noted
from benchmarks.comparison.families import HEADS
from benchmarks.comparison.outcomes import (
    Outcome,
    gap,
    near,
)


@case("an edit of the stream after a layer gives the logits of the same edit by hand")
def edit_stream(bench: Bench) -> Outcome:
    found = bench.opened.edit(bench.ids, ("resid_post", 0), lambda value: value * 0.5)
    bare = bench.bare()
    with oracle.changed(bare, bench.family.path("block", 0), lambda value: value * 0.5):
        return near(found, bare(bench.ids).logits)


@case("an edit of the stream between attention and MLP reaches the MLP and the skip", SEQUENTIAL)
def edit_middle(bench: Bench) -> Outcome:
    delta = torch.linspace(-1, 1, bench.model.config.hidden_size)
    found = bench.opened.edit(bench.ids, ("resid_mid", 0), lambda value: value + delta)
    bare = bench.bare()
    with oracle.changed(bare, bench.family.path("adds", 0), lambda value: value + delta):
        return near(found, bare(bench.ids).logits)


@case("an edit of one head's z")
def edit_head(bench: Bench) -> Outcome:
    shape = bench.ids.shape

    def without(z: Tensor) -> Tensor:
        heads = z.reshape(*shape, HEADS, -1).clone()
        heads[:, :, HEAD] = 0
        return heads.reshape(z.shape)

    found = bench.opened.edit(bench.ids, ("z", 1), without)
    bare = bench.bare()
    with oracle.changed(bare, bench.family.path("out", 1), without, "input"):
        return near(found, bare(bench.ids).logits)


@case("an edited pattern changes the output as it must, on a model with sdpa attention")
def edit_pattern(bench: Bench) -> Outcome:
    def first(pattern: Tensor) -> Tensor:
        pattern = pattern.clone()
        pattern[:, HEAD] = 0
        pattern[:, HEAD, :, 0] = 1
        return pattern

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = bench.opened.edit(bench.ids, ("pattern", 1), first)
    bare = bench.bare()
    if gap(found, bare(bench.ids).logits) < 1e-4:
        warned = any("pattern" in str(one.message) for one in told)
        word = "a warning says so" if warned else "nothing says so"
        return Outcome("wrong", f"the edit has no effect; {word}")
    wanted = oracle.attends_to_first(bare, bench.family, bench.ids, 1, HEAD)
    return noted(bench, near(found, wanted))


@case("editing in place does what returning a new tensor does")
def edit_in_place(bench: Bench) -> Outcome:
    def half(value: Tensor) -> Tensor:
        value[:, 2] *= 0.5
        return value

    def new(value: Tensor) -> Tensor:
        return half(value.clone())

    found = bench.opened.edit(bench.ids, ("resid_post", 0), half)
    bare = bench.bare()
    with oracle.changed(bare, bench.family.path("block", 0), new):
        return near(found, bare(bench.ids).logits)


@case("an edit of one row of a batch leaves the other row's logits as they are")
def rows_apart(bench: Bench) -> Outcome:
    def first_row(value: Tensor) -> Tensor:
        value = value.clone()
        value[0] = 0
        return value

    found = bench.opened.edit(bench.ids, ("resid_post", 0), first_row)
    return near(found[1], bench.opened.logits(bench.ids)[1])


@case("a row of a batch gives the activations that it gives alone")
def batch_or_alone(bench: Bench) -> Outcome:
    place = [("resid_post", 1)]
    _, (together,) = bench.opened.read(bench.ids, place)
    alone = [bench.opened.read(row[None], place)[1][0] for row in bench.ids]
    return near(together, torch.cat(alone))


@case("a left-padded row, with its mask, has the last logits that it has without padding")
def left_padding(bench: Bench) -> Outcome:
    pad = 2
    ids = torch.cat([torch.zeros(1, pad, dtype=torch.long), bench.ids[:1, pad:]], dim=1)
    batch = torch.cat([ids, bench.ids[1:]])
    mask = torch.ones_like(batch)
    mask[0, :pad] = 0
    found = bench.opened.logits(batch, mask)[0, -1]
    outcome = near(found, bench.bare()(bench.ids[:1, pad:]).logits[0, -1])
    as_bare = gap(found, bench.bare()(batch, attention_mask=mask).logits[0, -1]) < 1e-4
    if outcome.kind == "wrong" and as_bare:
        return Outcome("caveat", "as the bare model: the user must pass position_ids")
    return outcome
