"""Functions of a user's own as interventions, and steering that keeps norms or has a gate.

The oracle is the bare model under plain PyTorch hooks.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from raw_patching import run_changing
from tiny_models import Layer, Shape, build, left_padded, tokens
from torch import Tensor

import lensbridge
from lensbridge.errors import EditError, InputError
from lensbridge.interventions import (
    Add,
    Apply,
    GatedSteer,
    NormPreservingSteer,
    Steer,
    Zero,
    from_json,
    functions,
    register_function,
    to_json,
)

pytestmark = pytest.mark.usefixtures("one_thread")
FAMILIES = ("gpt2", "llama", "neox")
LENGTH, LAYERS = 6, 3


def pair(
    family: str, dtype: torch.dtype = torch.float64
) -> tuple[lensbridge.LensModel, Any, Shape]:
    shape = Shape(family, layers=LAYERS, dtype=dtype)
    return lensbridge.load(build(shape)), build(shape), shape


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def last(logits: Tensor) -> Tensor:
    return logits[:, -1].pow(2).mean(-1)


@pytest.fixture
def names() -> Iterator[None]:
    """No name that a test registers stays."""
    before = dict(functions._KNOWN)
    yield
    functions._KNOWN.clear()
    functions._KNOWN.update(before)


def squared(value: Tensor) -> Tensor:
    return value * value.abs()


def in_place(value: Tensor) -> None:
    value.mul_(value.abs())


def at(positions: list[int], change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def changed(whole: Tensor) -> Tensor:
        new = whole.clone()
        new[:, positions] = change(whole[:, positions])
        return new

    return changed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fn", [squared, in_place])
def test_a_function_is_a_plain_hook(family: str, fn: Any) -> None:
    model, bare, _ = pair(family)
    ids = tokens(2, LENGTH)
    with torch.no_grad():
        found = model.run_with_interventions(ids, Apply(("mlp_out", 1), fn, positions=[1, -1]))
    change = at([1, LENGTH - 1], squared)
    near(found, run_changing(bare, [(Layer(bare, family, 1).mlp, "output", change)], ids))


def test_what_the_function_is_given() -> None:
    model, _, shape = pair("llama")
    ids, seen = tokens(2, LENGTH), dict[str, Tensor]()

    def look(name: str) -> Callable[[Tensor], Tensor]:
        return lambda value: seen.setdefault(name, value)

    _, cache = model.run_with_cache(ids)
    basis = torch.linalg.qr(torch.randn(shape.d_model, 2, dtype=torch.float64)).Q
    model.run_with_interventions(
        ids,
        [
            Apply(("z", 1), look("z"), heads=[3, 1], positions=[[1], [4]]),
            Apply(("resid_post", 1), look("coordinates"), subspace=basis),
            Apply(("pattern", 1), look("pattern"), keys=[0, 2], positions=slice(3, None)),
        ],
    )
    near(seen["z"][:, 0], torch.stack([cache["z", 1][0, 1], cache["z", 1][1, 4]])[:, [3, 1]])
    near(seen["coordinates"], cache["resid_post", 1] @ basis)
    near(seen["pattern"], cache["pattern", 1][:, :, 3:][..., [0, 2]].transpose(1, 2))


@pytest.mark.parametrize("exact", [True, False])
def test_sweeps(exact: bool) -> None:
    model, bare, _ = pair("gpt2")
    ids = tokens(2, LENGTH)
    places = [(layer, pos) for layer in range(LAYERS) for pos in range(LENGTH)]
    cells = [Apply(("mlp_out", layer), squared, positions=pos) for layer, pos in places]
    found = model.sweep(ids, cells, last, reduce="none", exact=exact)
    assert found.engine == ("one by one: asked for" if exact else "batched")
    for i, (layer, pos) in enumerate(places):
        change = (Layer(bare, "gpt2", layer).mlp, "output", at([pos], squared))
        near(found[i], last(run_changing(bare, [change], ids)))


def centred(value: Tensor) -> Tensor:
    """Mixes the positions and the examples that it is given."""
    return value - value.mean((0, 1), keepdim=True)


def test_sweeps_of_functions_that_mix_what_they_are_given() -> None:
    model, _, _ = pair("llama")
    ids = tokens(2, LENGTH)
    cells = [
        [Apply((site, layer), centred, positions=positions), Apply(("mlp_out", 2), centred)]
        for site in ("resid_pre", "attn_out", "resid_post")
        for layer in range(2)
        for positions in (None, [2, 4], -1)
    ]
    found = model.sweep(ids, cells, last, reduce="none", exact=False)
    with torch.no_grad():
        wanted = [last(model.run_with_interventions(ids, cell)) for cell in cells]
    near(found.values, torch.stack(wanted))


@pytest.mark.parametrize(("by_row", "engine"), [(True, "batched"), (False, "one by one: other")])
def test_around_sweeps(by_row: bool, engine: str) -> None:
    model, _, _ = pair("gpt2")
    ids, cells = tokens(1, LENGTH), [Zero(("z", 2), heads=head) for head in range(4)]
    outer = Apply(("mlp_out", 1), squared, by_row=by_row)
    with model.intervene(outer):
        found = model.sweep(ids, cells, last, reduce="none")
        wanted = torch.stack([last(model.run_with_interventions(ids, one)) for one in cells])
    assert found.engine.startswith(engine)
    near(found.values, wanted.detach())


def test_generation() -> None:
    model, _, _ = pair("llama")
    ids = tokens(2, LENGTH)
    options: Any = {"max_new_tokens": 4, "do_sample": False, "verbose": False}

    def shift(value: Tensor) -> Tensor:
        return value + 3.0 * torch.arange(value.shape[-1]).to(value)

    site, vector = ("resid_post", 1), 3.0 * torch.arange(28.0).double()
    for at_ in ({"when": "decode"}, {"positions": "last"}, {"when": "prefill"}):
        found = model.generate(ids, interventions=Apply(site, shift, **at_), **options)
        wanted = model.generate(ids, interventions=Add(site, vector, **at_), **options)
        assert torch.equal(found, wanted)


def test_what_a_function_may_not_give() -> None:
    model, _, _ = pair("gpt2")
    bad: list[tuple[Any, str]] = [
        (lambda value: value[:, :1], r"gives shape \(2, 1, .*a tensor of shape \(2, 6"),
        (lambda value: 3.0, "gives float; it is given"),
    ]
    for fn, message in bad:
        with pytest.raises(EditError, match=message):
            model.run_with_interventions(tokens(2, LENGTH), Apply(("mlp_out", 0), fn))
    with pytest.raises(InputError, match="fn is a function of the value"):
        Apply(("mlp_out", 0), 3)  # type: ignore[arg-type]


@pytest.mark.usefixtures("names")
def test_names() -> None:
    register_function("squared")(squared)
    one = Apply(("mlp_out", 1), "squared", positions=[1, -1], when="prefill", by_row=True)
    assert one.fn is squared
    assert repr(one).endswith("fn='squared', by_row=True)")
    text = to_json([one, Zero("z")])
    assert from_json(text) == [one, Zero("z")]
    assert '{"function": "squared"}' in text
    register_function("squared")(squared)
    with pytest.raises(InputError, match=r"'squared' is the name of .*squared already"):
        register_function("squared")(in_place)
    with pytest.raises(InputError, match="gets the name 'number', not a int"):
        register_function("number")(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"No function is registered as 'squarde'.*squared"):
        Apply(("mlp_out", 1), "squarde")
    with pytest.raises(InputError, match=r"give a function that Apply calls a name: @register"):
        to_json(Apply(("mlp_out", 1), in_place))
    functions._KNOWN.clear()
    with pytest.raises(InputError, match="Import the module that registers it"):
        from_json(text)


@pytest.mark.usefixtures("names")
def test_a_cell_of_a_notebook_may_run_again() -> None:
    for _ in range(2):
        scope: dict[str, Any] = {"__name__": "__main__", "register_function": register_function}
        exec("@register_function('f')\ndef f(x): return x * 2", scope)
    assert functions.function_of("f") is scope["f"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unit", ["vector", "norm"])
def test_steering_that_keeps_the_norm(family: str, unit: Any) -> None:
    model, bare, shape = pair(family)
    ids = tokens(2, LENGTH)
    vector = torch.randn(shape.d_model, dtype=torch.float64)
    steer = Steer(("mlp_out", 1), vector, strength=2.0, unit=unit, positions=[2, 4])

    def turned(value: Tensor) -> Tensor:
        size = value.norm(dim=-1, keepdim=True)
        added = vector if unit == "vector" else vector / vector.norm() * size
        new = value + 2.0 * added
        return new / new.norm(dim=-1, keepdim=True) * size

    with torch.no_grad():
        found = model.run_with_interventions(ids, NormPreservingSteer.of(steer))
    change = (Layer(bare, family, 1).mlp, "output", at([2, 4], turned))
    near(found, run_changing(bare, [change], ids))
    sweep = model.sweep(ids, [NormPreservingSteer.of(steer)], last, reduce="none", exact=False)
    near(sweep[0], last(found))


@pytest.mark.parametrize("score", ["cosine", "dot"])
@pytest.mark.parametrize("softness", [0.0, 0.3])
@pytest.mark.parametrize("invert", [False, True])
def test_steering_with_a_gate(score: Any, softness: float, invert: bool) -> None:
    model, bare, shape = pair("llama")
    ids = tokens(2, LENGTH)
    vector, gate = torch.randn(2, shape.d_model, dtype=torch.float64)
    how: Any = {"score": score, "softness": softness, "invert": invert, "threshold": 0.05}

    def gated(value: Tensor) -> Tensor:
        dot = value @ gate
        found = dot / (value.norm(dim=-1) * gate.norm()) if score == "cosine" else dot
        above = (0.05 - found) if invert else (found - 0.05)
        opening = torch.sigmoid(above / softness) if softness else (above > 0).double()
        assert softness or 0 < opening.mean() < 1
        return value + 1.5 * opening[..., None] * vector

    one = GatedSteer.of(Steer(("mlp_out", 1), vector, 1.5), gate, **how)
    with torch.no_grad():
        found = model.run_with_interventions(ids, one)
    near(found, run_changing(bare, [(Layer(bare, "llama", 1).mlp, "output", gated)], ids))
    near(model.sweep(ids, [one], last, reduce="none", exact=False)[0], last(found))
    assert from_json(to_json(one)) == [one]
    assert isinstance(from_json(to_json(NormPreservingSteer.of(one)))[0], NormPreservingSteer)


def test_steering_of_padded_texts_in_half_precision() -> None:
    model, _, shape = pair("llama", torch.bfloat16)
    ids, mask = left_padded(3, LENGTH)
    both = {"input_ids": ids, "attention_mask": mask}
    _, before = model.run_with_cache(both, "resid_post")
    steer = Steer(("resid_post", 1), torch.randn(shape.d_model), 4.0, positions=-1)
    with model.intervene(NormPreservingSteer.of(steer)):
        _, after = model.run_with_cache(both, "resid_post")
    old, new = before["resid_post", 1], after["resid_post", 1]
    assert new.dtype == torch.bfloat16
    assert torch.equal(old[:, :-1], new[:, :-1])
    norms = [one[:, -1].float().norm(dim=-1) for one in (old, new)]
    torch.testing.assert_close(*norms, rtol=2e-2, atol=0)


def test_what_has_no_gate() -> None:
    vector = torch.ones(28)
    with pytest.raises(InputError, match="gate is the direction"):
        GatedSteer(("resid_post", 0), vector)
    with pytest.raises(InputError, match="score is 'cosine' or 'dot'"):
        GatedSteer(("resid_post", 0), vector, gate=vector, score="cos")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="softness is 0 or more"):
        GatedSteer(("resid_post", 0), vector, gate=vector, softness=-1)
    with pytest.raises(InputError, match="gate has shape"):
        pair("llama")[0].run_with_interventions(
            tokens(1, 3), GatedSteer(("resid_post", 0), vector, gate=torch.ones(27))
        )
