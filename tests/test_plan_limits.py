"""Limits on what a run may keep, and plans of models however they are held."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from command import run
from peft import LoraConfig, get_peft_model
from planned import IDS, model_of, require_as_told, storages
from tiny_models import Shape, build

import lensbridge
from lensbridge.errors import InputError
from lensbridge.plans.budget import size_of

pytestmark = pytest.mark.usefixtures("one_thread")


def compiled_layer(hf: Any) -> Any:
    hf.model.layers[0] = torch.compile(hf.model.layers[0], backend="eager")
    return hf


def compiled_forward(hf: Any) -> Any:
    layer = hf.model.layers[0]
    layer.forward = torch.compile(layer.forward, backend="eager")
    return hf


HELD: dict[str, Callable[[Any], Any]] = {
    "compiled": partial(torch.compile, backend="eager"),
    "a compiled layer": compiled_layer,
    "a compiled forward": compiled_forward,
    "adapted": lambda hf: get_peft_model(hf, LoraConfig(r=2, target_modules=["q_proj"])),
    "in training": lambda hf: hf.train(),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", HELD)
def test_models_are_planned_however_they_are_held(how: str) -> None:
    model = lensbridge.load(HELD[how](build(Shape("llama"))))
    require_as_told(model.plan(IDS), dict(model.run_with_cache(IDS)[1]))


def suggested(message: str) -> list[dict[str, Any]]:
    """The changes that a message names, as keywords."""
    told = message.partition("It fits with ")[2].partition(" model.plan")[0]
    codes = [re.sub(r" \([\d.]+ k?B\)\.?.*$", "", one) for one in told.split("; ")]
    return [eval(f"dict({code})") for code in codes if code]


@pytest.mark.parametrize(
    ("asked", "most", "changes"),
    [
        (None, 60_000, ["dtype", "pos_slice", "names_filter"]),
        (None, 20_000, ["pos_slice", "names_filter"]),
        (["z", "pattern", "resid_post"], "12 kB", ["dtype", "pos_slice", "names_filter"]),
        ("resid_post", "800B", ["pos_slice"]),
        ("resid_post", "200B", ["dtype and pos_slice"]),
    ],
)
def test_a_run_that_keeps_too_much_is_refused_with_what_fits(
    asked: Any, most: int | str, changes: list[str]
) -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    ran: list[None] = []
    model.hf_model.register_forward_pre_hook(lambda *args: ran.append(None))
    with pytest.raises(InputError, match=r"would keep .* max_bytes=") as refused:
        model.run_with_cache(IDS, asked, max_bytes=most)
    assert not ran
    found = suggested(str(refused.value))
    assert [" and ".join(one) for one in found] == changes
    for change in found:
        _, kept = model.run_with_cache(IDS, **{"names_filter": asked, "max_bytes": most, **change})
        assert 0 < storages(dict(kept)) <= size_of(most)


def test_what_fits_is_run_and_is_the_same() -> None:
    model = model_of("gpt2")
    plain, limited = (model.run_with_cache(IDS, "z", **more) for more in ({}, {"max_bytes": "1MB"}))
    assert torch.equal(limited[0], plain[0])
    assert all(torch.equal(limited[1][name], plain[1][name]) for name in plain[1])
    exact = model.plan(IDS, "z").total
    model.run_with_cache(IDS, "z", max_bytes=exact)
    with pytest.raises(InputError, match="A batch of about 1 fits"):
        model.run_with_cache(IDS, "z", max_bytes=exact - 1)


@pytest.mark.parametrize("wrong", ["2 gigs", "", -1, True, 1.5])
def test_a_limit_that_is_no_size_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="number of bytes"):
        model_of("gpt2").run_with_cache(IDS, "z", max_bytes=wrong)


def test_the_command_gives_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", "demo", "--batch", 2, "--tokens", 9, "--points", "resid_post", "--gradients"]
    told = run(capsys, *argv, "--json").json
    plan = lensbridge.load("demo").plan((2, 9), "resid_post", incl_bwd=True, return_type="loss")
    assert (told["cache_bytes"], told["peak_bytes"]) == (plan.total, sum(plan.peak.values()))
    assert told["weight_bytes"] == sum(plan.weights.values())
    wanted = [{**vars(kind), "shape": list(kind.shape)} for kind in plan.kinds]
    assert told["points"] == wanted
