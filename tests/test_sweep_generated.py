"""Sweeps that are scored on generated text: each cell writes what it writes alone.

The oracle is `model.generate` with one cell at a time, which other tests compare with a plain loop
under raw hooks, and here a loop over the bare model.
"""

from copy import deepcopy
from typing import Any

import pytest
import torch
from raw_patching import run_changing
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import InputError
from lensbridge.interventions import (
    Apply,
    Intervention,
    Mean,
    Noise,
    Replace,
    Resample,
    Scale,
    Steer,
    Swap,
    Zero,
)
from lensbridge.metrics import LogitDiff

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = "The Eiffel Tower is in the city of"
PROMPTS = [PROMPT, "The Galata Tower is in", "Paris and the Colosseum"]
QUIET: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "verbose": False}


@pytest.fixture(scope="module")
def model() -> LensModel:
    return lensbridge.load("demo")


def length(text: str) -> int:
    return len(text)


def vowels(text: str) -> float:
    return sum(text.count(one) for one in "aeiou") / 2


def cells_of(model: LensModel) -> list[Any]:
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache("The Galata Tower is in the city of")
    return [
        [],
        Zero("mlp_out", positions=2),
        [Scale(("z", layer), 0.0, heads=[0, 1]) for layer in range(4)],
        *(Steer(("resid_post", 2), vector, 20.0 * i, positions="last") for i in (-1, 1)),
        Steer(("resid_post", 1), vector, 30.0, when="decode"),
        Replace(("resid_post", 1), cache["resid_post", 1][0, 2], positions=2),
        Apply(("mlp_out", 1), torch.relu),
    ]


def alone(model: LensModel, given: Any, cells: list[Any], **options: Any) -> list[Any]:
    lists = [cell if isinstance(cell, list) else [cell] for cell in cells]
    return [model.generate(given, interventions=cell, **{**QUIET, **options}) for cell in lists]


@pytest.mark.parametrize("exact", [None, True])
def test_one_prompt(model: LensModel, exact: bool | None) -> None:
    cells = cells_of(model)
    found = model.sweep(
        PROMPT, cells, length, generate={"max_new_tokens": 5}, exact=exact, baseline=True
    )
    assert found.texts == alone(model, PROMPT, cells)
    assert found.values.tolist() == [len(text) for text in found.texts]
    assert found.baseline_texts == model.generate(PROMPT, **QUIET)
    assert found.baseline == len(found.baseline_texts)
    assert found.engine == ("one by one: asked for" if exact else "batched")
    assert len(set(found.texts)) > 3


def pairwise(model: LensModel) -> list[Any]:
    """Cells in which examples of the run look at each other."""
    site = ("resid_post", 1)
    return [
        Mean(site, positions=-1),
        Resample(site, positions=-1),
        Swap(site, partners=[1, 2, 0], positions=[[2], [3], [-1]]),
        Swap(site, partners=[1, 1, 1], positions=[[2], [3], [-1]]),
        Swap(site, partners=[0], examples=[2], positions=-1, source_positions=2),
        Zero("mlp_out", examples=[-1]),
        [Zero("mlp_out", examples=[0, 1], positions=[[1], [2]]), Zero(("z", 2), heads=1)],
        Replace(site, torch.randn(3, 1, model.cfg.d_model) * 9, positions=[[1], [2], [3]]),
        Noise(site, 3.0),
    ]


def test_texts_of_different_lengths(model: LensModel) -> None:
    cells = [*cells_of(model), *pairwise(model)]
    named, how = {"length": length, "vowels": vowels}, {"max_new_tokens": 3}
    found = model.sweep(PROMPTS, cells, named, generate=how, reduce="none")
    wanted = alone(model, PROMPTS, cells, **how)
    assert found.texts == wanted
    assert found.engine == "one by one: noise depends on the row of an example"
    assert found.values.shape == (2, len(cells), 3)
    assert found["vowels"].values.tolist() == [[vowels(one) for one in row] for row in wanted]
    few = model.sweep(PROMPTS, cells, vowels, generate=how, max_batch_tokens=100)
    assert few.texts == wanted
    assert torch.equal(few.values, found["vowels"].values.mean(-1))
    table = found.to_dataframe()
    assert list(table["text"][:6]) == [*wanted[0], *wanted[1]]


def test_many_cells_run_in_one_batch(model: LensModel) -> None:
    seen: list[int] = []
    handle = model.hf_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    cells = [Zero(("z", layer), heads=head) for layer in range(4) for head in range(4)]
    model.sweep(PROMPT, cells, length, generate={"max_new_tokens": 3}, exact=False)
    handle.remove()
    assert seen == [16, 16, 16]


def test_a_loop_over_the_bare_model(model: LensModel) -> None:
    """One token after the other, under raw hooks."""
    bare: Any = deepcopy(model.hf_model)
    ids = model.to_tokens(PROMPT)
    cells = [Zero(("mlp_out", layer), positions=3) for layer in range(3)]
    how = {"max_new_tokens": 4, "stop_at_eos": False, "skip_prompt": True}
    found = model.sweep(ids, cells, length, generate=how)

    def zero(whole: Tensor) -> Tensor:
        changed = whole.clone()
        changed[:, 3] = 0.0
        return changed

    for layer, text in enumerate(found.texts or []):
        written, change = ids, (bare.transformer.h[layer].mlp, "output", zero)
        for _ in range(4):
            logits = run_changing(bare, [change], written)
            written = torch.cat([written, logits[:, -1].argmax(-1, keepdim=True)], 1)
        new = written[0, ids.shape[1] :]
        assert text == model.tokenizer.decode(new, skip_special_tokens=True)


def test_sampled_texts_have_a_seed(model: LensModel) -> None:
    cells = cells_of(model)[:4]
    how = {"max_new_tokens": 6, "do_sample": True, "temperature": 2.0, "seed": 3}
    state = torch.random.get_rng_state()
    found = model.sweep(PROMPTS, cells, length, generate=how, baseline=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.engine.startswith("one by one: sampled texts")
    for text, cell in zip(found.texts or [], cells, strict=True):
        torch.manual_seed(3)
        listed = cell if isinstance(cell, list) else [cell]
        assert text == model.generate(
            PROMPTS,
            max_new_tokens=6,
            do_sample=True,
            temperature=2.0,
            verbose=False,
            interventions=listed,
        )
    assert found.texts[0] == found.baseline_texts
    again = model.sweep(PROMPTS, cells, length, generate=how)
    other = model.sweep(PROMPTS, cells, length, generate={**how, "seed": 4})
    assert again.texts == found.texts != other.texts
    with pytest.raises(InputError, match="cannot be run in batches: sampled texts"):
        model.sweep(PROMPTS, cells, length, generate=how, exact=False)


def test_beams_names_and_contexts(model: LensModel) -> None:
    named = {"plain": [], "steered": cells_of(model)[3]}
    how = {"max_new_tokens": 4, "num_beams": 3}
    found = model.sweep(PROMPTS, named, length, generate=how, reduce="none")
    assert found.texts == alone(model, PROMPTS, list(named.values()), max_new_tokens=4, num_beams=3)
    assert found.axis_labels == {"cell": ("plain", "steered")}
    with model.intervene(Zero(("mlp_out", 1))):
        inside = model.sweep(PROMPT, named, length, generate={"max_new_tokens": 4})
        wanted = alone(model, PROMPT, list(named.values()), max_new_tokens=4)
    assert inside.engine == "batched"
    assert inside.texts == wanted
    with model.hooks([(("mlp_out", 1), lambda value, hook: value * 0)]):
        hooked = model.sweep(PROMPT, named, length, generate={"max_new_tokens": 4})
    assert hooked.engine.startswith("one by one: other hooks")
    assert hooked.texts == wanted


def test_inputs_of_every_form(model: LensModel, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    monkeypatch.setattr(model.tokenizer, "chat_template", template, raising=False)
    ids, mask = model.to_tokens(PROMPTS, padding_side="left", return_mask=True)
    chat = [{"role": "user", "content": PROMPT}]
    cells = [[], Zero(("mlp_out", 1))]
    inputs: list[Any] = [
        ids[:1, -6:],
        {"input_ids": ids, "attention_mask": mask},
        chat,
        [chat, chat],
        [PROMPT],
    ]
    for given in inputs:
        found = model.sweep(given, cells, length, generate={"max_new_tokens": 3})
        assert found.texts == alone(model, given, cells, max_new_tokens=3, return_type="str")


def test_an_interrupt_keeps_what_was_written(model: LensModel) -> None:
    calls: list[int] = []

    def interrupted(value: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return value

    cells = [Apply(("mlp_out", 1), interrupted, when="prefill") for _ in range(3)]
    found = model.sweep(PROMPT, cells, length, generate={"max_new_tokens": 2}, exact=True)
    assert found.partial
    assert found.values.isnan().tolist() == [False, True, True]
    assert [one is None for one in found.texts or []] == [False, True, True]
    assert "text" in found.to_dataframe()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"cells": [(("z", 0), (0, 1), 0.0)]}, "an intervention or a list of them, not"),
    ({"cells": []}, "cells is empty"),
    ({"cells": [Zero(("z", 0), positions=40)]}, "position 40 is out of range"),
    ({"generate": {"return_cache": True}}, "generate has 'return_cache', and a sweep keeps texts"),
    ({"generate": {"num_return_sequences": 2}}, "one text for each example"),
    ({"generate": 8}, "generate is the options of model.generate"),
    ({"metric": lambda text: text}, "gives a str; with generate=... it is a function of one text"),
    ({"metric": LogitDiff(" Paris", " Rome")}, "is a metric of logits"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_what_does_not_fit(model: LensModel, wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "cells": [Zero(("z", 0))],
        "metric": length,
        "generate": {"max_new_tokens": 2},
    }
    with pytest.raises(InputError, match=message):
        model.sweep(PROMPT, **{**right, **wrong})


def test_one_intervention_is_no_list(model: LensModel) -> None:
    one: Intervention = Zero(("z", 0))
    with pytest.raises(InputError, match=r"cells is a list of cells; for one, pass \[cell\]"):
        model.sweep(PROMPT, one, length, generate={"max_new_tokens": 2})  # type: ignore[arg-type]
