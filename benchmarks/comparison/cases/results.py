"""Gradients, weights and generation."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison import oracle
from benchmarks.comparison.cases.bench import Bench, case
from benchmarks.comparison.families import HEADS, LAYERS
from benchmarks.comparison.outcomes import (
    NotOffered,
    Outcome,
    is_true,
    near,
)


@case("the gradient by an activation is autograd's")
def gradients(bench: Bench) -> Outcome:
    def scalar(logits: Tensor) -> Tensor:
        return (logits[:, -1, 5] - logits[:, -1, 9]).sum()

    with torch.enable_grad():
        found = bench.opened.gradient(bench.ids, ("resid_post", 0), scalar)
    path = bench.family.path("block", 0)
    return near(found, oracle.gradient(bench.bare(), path, bench.ids, scalar))


@case("an edit that detaches stops the gradient there, and only there")
def stop_gradient(bench: Bench) -> Outcome:
    with torch.enable_grad():
        logits = bench.opened.edit(bench.ids, ("resid_post", 0), lambda value: value.detach())
        logits.sum().backward()
    blocks = [bench.family.path("block", layer) + "." for layer in range(LAYERS)]
    grads = {
        name: parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        for name, parameter in bench.opened.model.named_parameters()
    }
    below = [here for name, here in grads.items() if blocks[0] in name + "."]
    above = [here for name, here in grads.items() if blocks[1] in name + "."]
    return is_true(bool(above) and any(above) and not any(below), "gradients flow below the edit")


@case("W_K has one matrix for each key/value head, equal to the native weights")
def key_weights(bench: Bench) -> Outcome:
    wanted = oracle.key_weights(bench.bare(), bench.family, 1)
    return near(bench.opened.keys(1), wanted)


@case("QK circuits pair every query head with its own key/value head", ("llama", "qwen2", "gemma2"))
def query_key(bench: Bench) -> Outcome:
    keys = oracle.key_weights(bench.bare(), bench.family, 1)
    keys = keys.repeat_interleave(HEADS // keys.shape[0], dim=0)
    path = bench.family.path("keys", 1).replace("k_proj", "q_proj")
    weight = bench.bare().get_submodule(path).weight.T
    queries = weight.unflatten(1, (HEADS, -1)).transpose(0, 1)
    return near(bench.opened.query_key(1), queries @ keys.transpose(1, 2))


def _generation(bench: Bench, **how: Any) -> Outcome:
    def change(value: Tensor) -> Tensor:
        return value * 0.7 + 0.1

    ids, new = bench.ids[:1], 5
    bare = bench.bare()
    for model in (bench.model, bare):
        model.generation_config.eos_token_id = None
    place = ("resid_post", 0)
    found = bench.opened.generate(ids, place, change, new, **how)
    plain = bare.generate(ids, max_new_tokens=new, do_sample=False, **how)
    with oracle.changed(bare, bench.family.path("block", 0), change):
        wanted = bare.generate(ids, max_new_tokens=new, do_sample=False, **how)
    if torch.equal(found, wanted):
        return Outcome("works")
    if torch.equal(found, plain):
        return Outcome("wrong", "the tokens are those without the edit")
    if torch.equal(found, _prompt_only(bench, change, new, how)):
        return Outcome("wrong", "the tokens are those of an edit of the prompt alone")
    with suppress(NotOffered):
        if torch.equal(bench.opened.generate_uncached(ids, place, change, new), wanted):
            return Outcome(
                "wrong", "other tokens with its key/value cache; without it the right ones"
            )
    return Outcome("wrong", "other tokens")


def _prompt_only(bench: Bench, change: oracle.Change, new: int, how: dict[str, Any]) -> Tensor:
    bare = bench.bare()
    bare.generation_config.eos_token_id = None
    length = bench.ids.shape[1]

    def once(value: Tensor) -> Tensor:
        return change(value) if value.shape[1] == length else value

    with oracle.changed(bare, bench.family.path("block", 0), once):
        return bare.generate(bench.ids[:1], max_new_tokens=new, do_sample=False, **how)


@case("greedy generation with an edit at every step gives the tokens of the same by hand")
def generation(bench: Bench) -> Outcome:
    return _generation(bench)


@case("the same with beams", ("gpt2", "llama", "gemma2"))
def beams(bench: Bench) -> Outcome:
    return _generation(bench, num_beams=3)
