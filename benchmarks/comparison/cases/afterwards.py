"""What has become of the model."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.comparison.cases.bench import Bench, as_bare, case
from benchmarks.comparison.families import tokens
from benchmarks.comparison.outcomes import (
    Outcome,
    first_line,
    gap,
    is_true,
    near,
    same,
)


def _use(bench: Bench) -> None:
    bench.opened.read(bench.ids, [("resid_post", 0)])
    bench.opened.edit(bench.ids, ("resid_post", 0), lambda value: value * 0.5)


@case("afterwards the model has the modules, the state_dict and the attention kernel it had")
def unchanged(bench: Bench) -> Outcome:
    before = _state(bench.model)
    _use(bench)
    after = _state(bench.opened.model)
    told = [
        f"{what}: {_was(before[what], after[what])}"
        for what in before
        if before[what] != after[what]
    ]
    return is_true(not told, "; ".join(told))


def _state(model: nn.Module) -> dict[str, Any]:
    return {
        "classes of modules": [type(one).__name__ for one in model.modules()],
        "state_dict keys": list(model.state_dict()),
        "attention": model.config._attn_implementation,
        "parameters with gradients": [one.requires_grad for one in model.parameters()],
    }


def _was(before: Any, after: Any) -> str:
    if isinstance(before, str):
        return f"{before}, now {after}"
    if isinstance(before[0], bool):
        return f"{sum(before)} before, {sum(after)} now"
    return f"{len(before)} before, {len(after)} now"


@case("afterwards save_pretrained writes the model that it was")
def saving(bench: Bench) -> Outcome:
    _use(bench)
    with tempfile.TemporaryDirectory() as folder:
        bench.opened.model.save_pretrained(folder)
        again = type(bench.bare()).from_pretrained(folder).eval()
    return near(again(bench.ids).logits, bench.bare()(bench.ids).logits)


@case("the model object itself still gives its own logits, bit for bit")
def still_itself(bench: Bench) -> Outcome:
    _use(bench)
    return as_bare(bench, bench.opened.model(bench.ids).logits)


@case("PyTorch hooks of the user's own run inside the tool's runs, and stay")
def own_hooks(bench: Bench) -> Outcome:
    runs: list[int] = []
    module = bench.model.get_submodule(bench.family.path("attn", 0))
    module.register_forward_hook(lambda *_: runs.append(1))
    _use(bench)
    inside = len(runs)
    bench.opened.model(bench.ids)
    if inside and len(runs) > inside:
        return Outcome("works")
    return Outcome("wrong", "they do not run" if not inside else "they are gone afterwards")


@case("a hook that raises leaves nothing behind")
def raising(bench: Bench) -> Outcome:
    def fail(value: Tensor) -> Tensor:
        raise ArithmeticError("on purpose")

    before = bench.opened.logits(bench.ids).clone()
    try:
        bench.opened.edit(bench.ids, ("resid_post", 0), fail)
    except Exception:
        return same(bench.opened.logits(bench.ids), before)
    return Outcome("wrong", "the error was swallowed")


@case("threads that read from one model at once each get their own activations", ("gpt2", "llama"))
def threads(bench: Bench) -> Outcome:
    place, rounds = [("resid_post", 1)], 8
    inputs = [tokens(1, 6, seed=seed) for seed in range(8)]
    wanted = [bench.opened.read(one, place)[1][0] for one in inputs]

    @torch.no_grad()
    def work(index: int) -> list[str]:
        told = []
        for _ in range(rounds):
            try:
                found = bench.opened.read(inputs[index], place)[1][0]
            except Exception as error:
                told.append(first_line(error))
                continue
            if found.shape != wanted[index].shape or gap(found, wanted[index]) > 1e-4:
                told.append("")
        return told

    with ThreadPoolExecutor(8) as pool:
        failures = [one for some in pool.map(work, range(8)) for one in some]
    total = rounds * len(inputs)
    silent, loud = failures.count(""), [one for one in failures if one]
    parts = [f"{silent / total:.0%} of reads were another input's"] if silent else []
    parts += [f"{len(loud) / total:.0%} of reads raised ({loud[0]})"] if loud else []
    return Outcome("wrong" if silent else "error" if loud else "works", "; ".join(parts))
