"""Interventions against plain PyTorch hooks on the bare model, each written out by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from described import of_class
from test_core_set import built_in
from test_inputs import padded
from tiny_models import VOCAB, Layer, Shape, build, join_heads, left_padded, split_heads, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge.errors import AbsentPointError, InputError, UnknownPointError
from lensbridge.interventions import (
    Add,
    Intervention,
    Mean,
    Noise,
    Project,
    Replace,
    Resample,
    Scale,
    Steer,
    Swap,
    When,
    Zero,
    cells_of,
    from_json,
    to_json,
)
from lensbridge.testing import tiny_model

FAMILIES = ("gpt2", "llama", "mistral", "neox")
Edit = Callable[[Tensor], Tensor]


@contextmanager
def editing(module: nn.Module, side: str, edit: Edit) -> Iterator[None]:
    """A plain hook that replaces a module's input or output."""

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (edit(args[0].clone()), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"].clone())}

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0].clone()), *output[1:])
        return edit(output.clone())

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if side == "input"
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


def bare(hf: nn.Module, module: nn.Module, side: str, edit: Edit, **call: Any) -> Tensor:
    with torch.no_grad(), editing(module, side, edit):
        return hf(**call).logits


def hooks_on(hf: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


def basis(d: int, k: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, k)).Q


def agree(found: Any, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# --- each kind, on the residual stream -----------------------------------------------------------

D = {"gpt2": 24, "llama": 28, "mistral": 28, "neox": 24}
TENSORS = {family: torch.randn(3, 2, d, generator=torch.Generator().manual_seed(d))
           for family, d in D.items()}  # fmt: skip


def at_columns(change: Edit, columns: list[int]) -> Edit:
    def edit(x: Tensor) -> Tensor:
        x[:, columns] = change(x[:, columns])
        return x

    return edit


def cases(family: str) -> dict[str, tuple[Intervention, Edit]]:
    """Interventions at columns 2 and 5 of three rows of seven, and the same by hand."""
    value, vector = TENSORS[family], TENSORS[family][0, 0]
    site: Any = ("resid_post", 0)
    there = {"positions": [2, -2]}
    return {
        "replace": (Replace(site, value, **there), lambda x: value),
        "number": (Replace(site, 0.5, **there), lambda x: torch.full_like(x, 0.5)),
        "add": (Add(site, vector, 2.0, **there), lambda x: x + 2 * vector),
        "scale": (Scale(site, -0.5, **there), lambda x: x * -0.5),
        "zero": (Zero(site, **there), torch.zeros_like),
        "mean": (Mean(site, **there), lambda x: x.mean(0, keepdim=True).expand_as(x)),
        "steer": (Steer(site, vector, 3.0, **there), lambda x: x + 3 * vector),
        "steer by norm": (
            Steer(site, vector, 0.5, unit="norm", **there),
            lambda x: x + 0.5 * x.norm(dim=-1, keepdim=True) * vector / vector.norm(),
        ),
        "swap": (Swap(site, partners=[1, 2, 0], **there), lambda x: x[[1, 2, 0]]),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_is_the_same_raw_hook_on_the_bare_model(family: str) -> None:
    hf = build(Shape(family))
    model, ids = lensbridge.load(hf), tokens(3, 7)
    block = Layer(hf, family, 0).block
    plain = hf(ids).logits
    for name, (one, change) in cases(family).items():
        wanted = bare(hf, block, "output", at_columns(change, [2, 5]), input_ids=ids)
        found = model.run_with_interventions(ids, one)
        agree(found, wanted)
        assert not torch.allclose(found, plain, atol=1e-2), name
    assert hooks_on(hf) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_neurons_and_subspaces(family: str) -> None:
    shape = Shape(family)
    hf, ids = build(shape), tokens(3, 7)
    model, layer = lensbridge.load(hf), Layer(hf, family, 1)
    rot, q, d = basis(6, 2), basis(6, 3), basis(D[family], 4)

    def heads(x: Tensor) -> Tensor:
        z = x.unflatten(-1, (4, 6))
        z[:, [1, 4], 3] -= z[:, [1, 4], 3] @ rot @ rot.T
        return z.flatten(-2)

    found = model.run_with_interventions(
        ids, Zero(("z", 1), heads=3, positions=[1, 4], subspace=rot)
    )
    agree(found, bare(hf, layer.o, "input", heads, input_ids=ids))

    def queries(x: Tensor) -> Tensor:
        share = split_heads(x, shape, "q").clone()
        share[:, :, [0, 2]] = share[:, :, [0, 2]] @ q @ q.T
        return join_heads(x, share, shape, "q")

    found = model.run_with_interventions(ids, Project(("q", 1), q, keep=True, heads=[0, 2]))
    agree(found, bare(hf, layer.qkv["q"], "output", queries, input_ids=ids))

    def neurons(x: Tensor) -> Tensor:
        x[:, :, [3, 19]] *= 4
        return x

    found = model.run_with_interventions(ids, Scale(("post", 1), 4.0, neurons=[3, -1]))
    agree(found, bare(hf, layer.down, "input", neurons, input_ids=ids))
    coordinates = torch.randn(3, 7, 4)
    found = model.run_with_interventions(ids, Replace(("resid_post", 0), coordinates, subspace=d))
    wanted = bare(
        hf,
        Layer(hf, family, 0).block,
        "output",
        lambda x: x - x @ d @ d.T + coordinates @ d.T,
        input_ids=ids,
    )
    agree(found, wanted)


def test_positions_in_every_form_and_for_each_example() -> None:
    hf = build(Shape("llama"))
    model, ids = lensbridge.load(hf), tokens(3, 7)
    block = Layer(hf, "llama", 0).block
    forms: list[tuple[Any, list[list[int]]]] = [
        (3, [[3]] * 3),
        (-1, [[6]] * 3),
        ("last", [[6]] * 3),
        (slice(1, -2), [[1, 2, 3, 4]] * 3),
        (slice(None, None, 3), [[0, 3, 6]] * 3),
        (range(2), [[0, 1]] * 3),
        (torch.tensor([2, 5]), [[2, 5]] * 3),
        ([[1], [2], [-1]], [[1], [2], [6]]),
        ([[1, 4], [2], [0, 3, 6]], [[1, 4], [2], [0, 3, 6]]),
    ]
    for given, rows in forms:

        def zero(x: Tensor, rows: Any = rows) -> Tensor:
            for i, columns in enumerate(rows):
                x[i, columns] = 0
            return x

        found = model.run_with_interventions(ids, Zero(("resid_post", 0), positions=given))
        agree(found, bare(hf, block, "output", zero, input_ids=ids))


@pytest.mark.parametrize("side", ["left", "right"])
def test_last_is_each_rows_last_token_and_padding_is_no_part_of_a_mean(side: Any) -> None:
    hf = build(Shape("llama"))
    model = lensbridge.load(hf)
    _, ids, mask = padded(side)
    ends = [int(row.nonzero()[-1]) for row in mask]
    block = Layer(hf, "llama", 0).block

    def zero(x: Tensor) -> Tensor:
        x[torch.arange(len(ends)), ends] = 0
        return x

    call = {"input_ids": ids, "attention_mask": mask}
    found = model.run_with_interventions(
        ids, Zero(("resid_post", 0), positions="last"), attention_mask=mask
    )
    real = mask.bool()
    agree(found[real], bare(hf, block, "output", zero, **call)[real])

    def mean(x: Tensor) -> Tensor:
        return x[real].mean(0).expand_as(x)

    found = model.run_with_interventions(
        ids, Mean(("resid_post", 0), over="all"), attention_mask=mask
    )
    agree(found[real], bare(hf, block, "output", mean, **call)[real])


def test_means_and_examples_of_a_source() -> None:
    hf = build(Shape("gpt2"))
    model, ids, other = lensbridge.load(hf), tokens(3, 7), tokens(5, 7, seed=4)
    block = Layer(hf, "gpt2", 0).block
    site: Any = ("resid_post", 0)
    _, cache = model.run_with_cache(other)
    there = cache[site]
    mean = at_columns(lambda x: there.mean(0)[[1, 3]].expand_as(x), [1, 3])
    wanted = bare(hf, block, "output", mean, input_ids=ids)
    for source in (cache, {site: there}, there):
        agree(model.run_with_interventions(ids, Mean(site, source, positions=[1, 3])), wanted)
    whole = bare(hf, block, "output", lambda x: there.mean((0, 1)).expand_as(x), input_ids=ids)
    agree(model.run_with_interventions(ids, Mean(site, cache, "all")), whole)
    found = model.run_with_interventions(ids, Resample(site, cache, seed=3, positions=2))

    def drawn(p: tuple[int, ...]) -> Tensor:
        edit = at_columns(lambda x: there[list(p), 2:3], [2])
        return bare(hf, block, "output", edit, input_ids=ids)

    options = [drawn(p) for p in permutations(range(5), 3)]
    assert sum(torch.allclose(found, one, atol=1e-4) for one in options) == 1


def test_resampling_within_a_run_gives_each_example_anothers_value() -> None:
    hf = build(Shape("gpt2"))
    model, ids = lensbridge.load(hf), tokens(5, 6)
    sites: Any = [("resid_post", 0), ("mlp_out", 1)]
    with model.intervene(Resample(sites, seed=7)):
        _, cache = model.run_with_cache(ids)
    _, plain = model.run_with_cache(ids)
    same = (cache[sites[0]][:, None] == plain[sites[0]][None]).flatten(2).all(-1)
    assert same.sum(0).eq(1).all()
    assert same.sum(1).eq(1).all()
    assert not same.diagonal().any()
    assert torch.equal(
        model.run_with_interventions(ids, Resample(sites, seed=7)),
        model.run_with_interventions(ids, Resample(sites, seed=7)),
    )


def test_swapping_interchanges_different_positions_of_two_examples() -> None:
    hf = build(Shape("llama"))
    model, ids = lensbridge.load(hf), tokens(4, 7)

    def swap(x: Tensor) -> Tensor:
        old = x.clone()
        x[0, 1], x[1, 4], x[2, 6], x[3, 0] = old[1, 4], old[0, 1], old[3, 0], old[2, 6]
        return x

    one = Swap(("resid_post", 0), positions=[[1], [4], [6], [0]])
    wanted = bare(hf, Layer(hf, "llama", 0).block, "output", swap, input_ids=ids)
    agree(model.run_with_interventions(ids, one), wanted)


def test_noise_is_gaussian_and_each_places_own() -> None:
    hf = build(Shape("gpt2", heads=8, d_head=8))
    model, ids = lensbridge.load(hf), tokens(6, 30)
    _, plain = model.run_with_cache(ids, names_filter="hook_embed")

    def noise(batch: Tensor, **where: Any) -> Tensor:
        with model.intervene(Noise("hook_embed", 2.0, seed=5, **where)):
            _, cache = model.run_with_cache(batch, names_filter="hook_embed")
        return cache["embed"] - plain["embed"][: len(batch), : batch.shape[1]]

    whole = noise(ids)
    assert abs(float(whole.std()) - 2) < 0.05
    assert abs(float(whole.mean())) < 0.05
    assert torch.equal(whole, noise(ids))
    torch.testing.assert_close(whole[:2], noise(ids[:2]))
    torch.testing.assert_close(whole[:, 4], noise(ids, positions=4)[:, 4])
    assert float(noise(ids, positions=4)[:, 5:].abs().max()) == 0
    assert len(whole.flatten().round(decimals=4).unique()) > 0.9 * 2 * 10**4 * 0.5


def test_attention_knocked_out_between_two_positions() -> None:
    """Scores of query 5 at keys 1 and 2 in heads 0 and 3: out of the softmax by hand."""
    model, ids = lensbridge.load(build(Shape("llama"))), tokens(2, 7)
    _, plain = model.run_with_cache(ids)
    off = Replace(("attn_scores", 0), -torch.inf, positions=5, keys=[1, 2], heads=[0, 3])
    with model.intervene(off):
        _, cache = model.run_with_cache(ids)
    scores = plain["attn_scores", 0].clone()
    for head in (0, 3):
        scores[:, head, 5, 1:3] = -torch.inf
    torch.testing.assert_close(cache["pattern", 0], scores.softmax(-1))


# --- families ------------------------------------------------------------------------------------

PLACES: dict[str, list[tuple[Any, str, str]]] = {
    "Gemma2ForCausalLM": [
        (("resid_post", 0), "model.layers.0", "output"),
        (("attn_out", 1), "model.layers.1.post_attention_layernorm", "output"),
    ],
    "MixtralForCausalLM": [
        (("mlp_out", 0), "model.layers.0.mlp", "output"),
        (("resid_pre", 1), "model.layers.1", "input"),
    ],
    "BertForMaskedLM": [
        (("resid_post", 0), "bert.encoder.layer.0", "output"),
        (("post", 1), "bert.encoder.layer.1.output.dense", "input"),
    ],
    "JambaForCausalLM": [
        (("resid_post", 0), "model.layers.0", "output"),
        ("blocks.0.mixer.hook_in", "model.layers.0.mamba", "input"),
    ],
    "T5ForConditionalGeneration": [
        ("encoder.0.hook_resid_post", "encoder.block.0", "output"),
        ("decoder.1.cross_attn.hook_z", "decoder.block.1.layer.1.EncDecAttention.o", "input"),
    ],
}


@pytest.mark.parametrize("name", PLACES)
def test_families(name: str) -> None:
    hf = tiny_model(built_in(name), name)
    model, ids = lensbridge.load(hf), torch.randint(3, 20, (3, 6))
    more = {"decoder_input_ids": torch.randint(3, 20, (3, 6))} if name.startswith("T5") else {}
    with torch.no_grad():
        plain = hf(input_ids=ids, **more).logits
    for site, path, side in PLACES[name]:
        if site[0] != "post":
            one: Intervention = Swap(site, partners=[2, 0, 1], positions=[[1], [3], [2]])

            def swap(x: Tensor) -> Tensor:
                old = x.clone()
                x[0, 1], x[1, 3], x[2, 2] = old[2, 2], old[0, 1], old[1, 3]
                return x

        else:
            one = Scale(site, 3.0, positions=[0, 4], neurons=[1, 2])

            def swap(x: Tensor) -> Tensor:
                x[:, [0, 4], 1:3] *= 3
                return x

        with torch.no_grad():
            found = model.run_with_interventions(ids, one, **more)
        agree(found, bare(hf, hf.get_submodule(path), side, swap, input_ids=ids, **more))
        assert not torch.allclose(found, plain, atol=1e-3)


def test_choices_of_experts_are_swapped_and_not_scaled() -> None:
    hf = tiny_model(built_in("MixtralForCausalLM"), "MixtralForCausalLM")
    model, ids = lensbridge.load(hf), torch.randint(3, 20, (2, 6))
    site: Any = ("expert_indices", 0)
    _, plain = model.run_with_cache(ids, names_filter=site)
    with model.intervene(Swap(site)):
        _, cache = model.run_with_cache(ids, names_filter=site)
    assert torch.equal(cache[site], plain[site].flip(0))
    with pytest.raises(InputError, match="indices of chosen experts"):
        model.run_with_interventions(ids, Scale(site, 2.0))


# --- together ------------------------------------------------------------------------------------


def test_a_list_acts_in_its_order_with_hooks_and_caches() -> None:
    hf = build(Shape("neox"))
    model, ids = lensbridge.load(hf), tokens()
    block = Layer(hf, "neox", 0).block
    site: Any = ("resid_post", 0)
    seen: list[Tensor] = []
    with model.intervene([Add(site, 1.0), Scale(site, 3.0)]):
        found, cache = model.run_with_cache(ids)
        hooked = model.run_with_hooks(ids, [(site, lambda x, hook: seen.append(x.clone()))])
    agree(found, bare(hf, block, "output", lambda x: 3 * (x + 1), input_ids=ids))
    assert torch.equal(hooked, found)
    assert torch.equal(seen[0], cache[site])
    other = model.run_with_interventions(ids, [Scale(site, 3.0), Add(site, 1.0)])
    agree(other, bare(hf, block, "output", lambda x: 3 * x + 1, input_ids=ids))
    globbed = model.run_with_interventions(ids, Zero("blocks.*.hook_mlp_out"))
    assert torch.equal(globbed, model.run_with_interventions(ids, Zero("mlp_out")))


def test_gradients_pass_through() -> None:
    hf = build(Shape("llama"))
    model, ids = lensbridge.load(hf), tokens()
    vector = torch.randn(28, requires_grad=True)
    model.run_with_interventions(
        ids, Steer(("resid_post", 0), vector, positions=3)
    ).sum().backward()
    grad = vector.grad
    vector.grad = None
    with editing(Layer(hf, "llama", 0).block, "output", at_columns(lambda x: x + vector, [3])):
        hf(ids).logits.sum().backward()
    torch.testing.assert_close(grad, vector.grad, rtol=1e-3, atol=1e-3)


def test_features_of_a_spliced_sae() -> None:
    """An SAE that passes everything on: its features are the stream's dimensions."""

    class Identity:
        def encode(self, x: Tensor) -> Tensor:
            return x

        def decode(self, features: Tensor) -> Tensor:
            return features

    hf, ids = build(Shape("llama")), tokens(2, 7)
    model = lensbridge.load(hf)
    one = Zero("blocks.1.hook_resid_pre.hook_sae_acts_post", neurons=[3, 5], positions=2)
    with model.spliced({("resid_pre", 1): Identity()}):
        found = model.run_with_interventions(ids, one)

    def zero(x: Tensor) -> Tensor:
        x[:, 2, [3, 5]] = 0
        return x

    agree(found, bare(hf, Layer(hf, "llama", 1).block, "input", zero, input_ids=ids))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_a_sweep_runs_each_as_it_runs_alone(family: str, exact: bool) -> None:
    model, ids = lensbridge.load(build(Shape(family))), tokens(2, 6)
    several = [
        *(Zero(("z", layer), heads=head) for layer in range(2) for head in range(4)),
        Swap(("resid_pre", 1), positions=[[1], [4]]),
        Noise(("mlp_out", 0), 1.0, positions="last"),
        Scale(("post", 1), 2.0, neurons=[1, 3]),
    ]

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1, 5] - logits[:, 2, 7]

    result = model.sweep(ids, cells_of(model, several), metric, reduce="none", exact=exact)
    with torch.no_grad():
        alone = torch.stack([metric(model.run_with_interventions(ids, one)) for one in several])
    torch.testing.assert_close(result.values, alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="A cell is of one point"):
        cells_of(model, [Zero("z")])


# --- generation ----------------------------------------------------------------------------------

QUIET: dict[str, Any] = {"max_new_tokens": 5, "verbose": False, "do_sample": False}
IN_GENERATION: dict[str, tuple[dict[str, Any], list[int]]] = {
    "everywhere": ({}, list(range(11))),
    "prompt": ({"when": "prefill"}, list(range(7))),
    "new": ({"when": "decode"}, [7, 8, 9, 10]),
    "steps": ({"when": When("decode", slice(2, None))}, [8, 9, 10]),
    "last": ({"positions": "last"}, [6, 7, 8, 9, 10]),
    "columns": ({"positions": [2, 9]}, [2, 9]),
    "open": ({"positions": slice(5, None)}, [5, 6, 7, 8, 9, 10]),
}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_generation_is_a_plain_loop_with_raw_hooks(family: str, cached: bool) -> None:
    hf, ids = build(Shape(family)), tokens(2, 7)
    model, block = lensbridge.load(hf), Layer(hf, family, 0).block
    vector = TENSORS[family][0, 0]
    plain = model.generate(ids, stop_at_eos=False, **QUIET)
    changed = 0
    for where, columns in IN_GENERATION.values():

        def steer(x: Tensor, columns: list[int] = columns) -> Tensor:
            x[:, [one for one in columns if one < x.shape[1]]] += 6 * vector
            return x

        wanted = ids
        for _ in range(5):
            best = bare(hf, block, "output", steer, input_ids=wanted)[:, -1].argmax(-1)
            wanted = torch.cat([wanted, best[:, None]], dim=1)
        found = model.generate(
            ids,
            stop_at_eos=False,
            use_past_kv_cache=cached,
            interventions=[Steer(("resid_post", 0), vector, 6.0, **where)],
            **QUIET,
        )
        assert torch.equal(found, wanted), where
        with model.intervene(Steer(("resid_post", 0), vector, 6.0, **where)):
            inside = model.generate(ids, stop_at_eos=False, use_past_kv_cache=cached, **QUIET)
        assert torch.equal(inside, wanted), where
        changed += not torch.equal(found, plain)
    assert changed == len(IN_GENERATION)
    assert hooks_on(hf) == 0


def test_beams_take_what_is_their_examples() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(2, 7)
    value = torch.randn(2, 1, 24)
    one = [Add(("resid_post", 0), value, positions=[[2], [5]])]
    both = model.generate(ids, interventions=one, num_beams=3, stop_at_eos=False, **QUIET)
    for i in range(2):
        alone = Add(("resid_post", 0), value[i : i + 1], positions=[[2, 5][i]])
        found = model.generate(
            ids[i : i + 1], interventions=[alone], num_beams=3, stop_at_eos=False, **QUIET
        )
        assert torch.equal(both[i : i + 1], found)


@pytest.mark.parametrize("one", [Swap, Resample, Mean])
def test_examples_are_not_mixed_among_beams(one: Any) -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(2, 7)
    with pytest.raises(InputError, match="6 rows for 2 examples"):
        model.generate(ids, interventions=[one(("resid_post", 0))], num_beams=3, **QUIET)
    model.generate(ids, interventions=[one(("resid_post", 0))], **QUIET)
    assert hooks_on(model.hf_model) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    """The residual after the last block, which nothing follows: the arithmetic alone."""
    model, ids = lensbridge.load(build(Shape("llama", dtype=dtype))), tokens(3, 7)
    site, space, vector = ("resid_post", 1), basis(28, 3), torch.randn(28)
    x = model.run_with_cache(ids)[1][site].double()
    b, v = space.double(), vector.double()
    wanted = {
        Zero(site, subspace=space): x - x @ b @ b.T,
        Project(site, space, keep=True): x @ b @ b.T,
        Scale(site, 3.0, subspace=space): x + 2 * x @ b @ b.T,
        Mean(site, over="all"): x.mean((0, 1)).expand_as(x),
        Steer(site, vector, 2.0, unit="norm"): x + 2 * x.norm(dim=-1, keepdim=True) * v / v.norm(),
        Swap(site, partners=[1, 2, 0]): x[[1, 2, 0]],
    }
    size = 0.02 if dtype == torch.bfloat16 else 1e-6
    for one, value in wanted.items():
        with model.intervene(one):
            found = model.run_with_cache(ids)[1][site]
        assert found.dtype == dtype
        scale = float(value.abs().max())
        torch.testing.assert_close(found.double(), value, rtol=size, atol=size * scale)


# --- JSON ----------------------------------------------------------------------------------------


def everything(model: lensbridge.LensModel, ids: Tensor) -> list[Intervention]:
    _, cache = model.run_with_cache(ids, names_filter=["resid_post"])
    space = basis(24, 2)
    return [
        Replace(("z", 1), torch.randn(6), heads=[0, 1], positions=[[1], [2]]),
        Replace(("attn_scores", 1), -torch.inf, positions=-1, keys=[1]),
        Add(["blocks.0.hook_attn_out", ("mlp_out", 1)], 0.5, 2.0),
        Scale(("resid_mid", 0), 0.5, subspace=space, when=When("both", [0, 2])),
        Zero(("post", 1), neurons=range(3), when="prefill"),
        Mean(("resid_post", 0), cache, positions=slice(1, None, 2)),
        Resample(("mlp_out", 0), seed=3, positions="last"),
        Project(("resid_pre", 1), space, keep=True, positions=2),
        Steer(("resid_post", 1), torch.randn(24), 0.1, unit="norm", when=When("both", slice(0, 3))),
        Swap(("resid_post", 1), cache, source_positions=3, positions=4),
        Noise("hook_embed", 0.1, seed=2),
    ]


@pytest.mark.parametrize("beside", [False, True])
def test_json_and_back(beside: bool, tmp_path: Path) -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(2, 7)
    given = everything(model, ids)
    file = tmp_path / "tensors.safetensors" if beside else None
    text = to_json(given, file)
    back = from_json(text, file)
    assert to_json(back, file) == text
    assert back == given
    for one, other in zip(given, back, strict=True):
        wanted = model.run_with_interventions(ids, one)
        assert torch.equal(model.run_with_interventions(ids, other), wanted), one
    if beside:
        with pytest.raises(InputError, match="pass it as tensors"):
            from_json(text)


@pytest.mark.parametrize("beside", [False, True])
def test_the_padding_of_a_source_goes_into_the_document(beside: bool, tmp_path: Path) -> None:
    model, (ids, mask) = lensbridge.load(build(Shape("gpt2"))), left_padded()
    _, cache = model.run_with_cache(ids.flip(1), attention_mask=mask.flip(1))
    site: Any = ("resid_post", 0)
    file = tmp_path / "tensors.safetensors" if beside else None
    for one in (
        Mean(site, cache),
        Swap(site, cache, source_positions="last", positions="last"),
        Resample(site, cache, seed=1),
    ):
        (back,) = from_json(to_json(one, file), file)
        wanted = model.run_with_interventions(ids, one, attention_mask=mask)
        found = model.run_with_interventions(ids, back, attention_mask=mask)
        assert torch.equal(found, wanted), one  # type: ignore[arg-type]
        assert back == one
        _, other = model.run_with_cache(ids.flip(1))
        assert back != one.at(source=other)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("kind", [Swap, Mean, Resample])
def test_the_padding_of_a_decoder_goes_into_the_document(
    kind: Any, beside: bool, tmp_path: Path
) -> None:
    """Against the source's run of each text alone, where nothing is padding."""
    model = of_class("BartForConditionalGeneration")
    ids, site = tokens(1, 5), "decoder.0.hook_resid_post"
    texts = [tokens(1, 6, seed=1)[0, :length] for length in (6, 4)]
    decoded, mask = torch.full((2, 6), 1), torch.zeros(2, 6, dtype=torch.long)
    for row, text in enumerate(texts):
        decoded[row, : len(text)], mask[row, : len(text)] = text, 1
    run: dict[str, Any] = {"decoder_input_ids": decoded, "decoder_attention_mask": mask}
    _, cache = model.run_with_cache(ids.expand(2, -1), **run)
    alone = [model.run_with_cache(ids, decoder_input_ids=t[None])[1][site][0, -1] for t in texts]
    more = {"source_positions": -1} if kind is Swap else {}
    one = kind(site, cache, positions=-1, **more)
    file = tmp_path / "tensors.safetensors" if beside else None
    (back,) = from_json(to_json(one, file), file)
    assert back == one

    def last(ids: Tensor, **call: Any) -> Tensor:
        seen: list[Tensor] = []
        with model.intervene(back):
            model.run_with_hooks(ids, [(site, lambda v, hook: seen.append(v.clone()))], **call)
        return seen[0][:, -1]

    found = last(ids.expand(2, -1), decoder_input_ids=tokens(2, 5, seed=2))
    if kind is Resample:
        assert all(any(torch.allclose(row, one, atol=1e-5) for one in alone) for row in found)
        return
    wanted = torch.stack(alone)
    wanted = wanted.mean(0).expand_as(wanted) if kind is Mean else wanted
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_decoder_whose_padding_differs_from_that_of_the_source_is_refused() -> None:
    model, ids, decoded = of_class("BartForConditionalGeneration"), tokens(2, 5), tokens(2, 6)
    site, mask = "decoder.0.hook_resid_post", torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    _, cache = model.run_with_cache(ids, decoder_input_ids=decoded, decoder_attention_mask=mask)
    swap = Swap(site, cache)
    for one in (swap, *from_json(to_json(swap))):
        with pytest.raises(InputError, match="the source has padding at other columns"):
            model.run_with_interventions(ids, one, decoder_input_ids=decoded)
        model.run_with_interventions(
            ids, one, decoder_input_ids=decoded, decoder_attention_mask=mask
        )
    cells = [(site, (slice(None), 5), cache)]
    with pytest.raises(InputError, match="Example 1 has 4 positions in the clean run and 6"):
        model.sweep({"input_ids": ids, "decoder_input_ids": decoded}, cells, lambda x: x.mean())


def test_a_representation_says_what_was_said() -> None:
    _, cache = lensbridge.load(build(Shape("gpt2"))).run_with_cache(tokens(1, 3))
    shown = {
        repr(Zero(("z", 1), heads=0)): "Zero(('z', 1), heads=(0,))",
        repr(Steer("resid_post", torch.ones(24))): "Steer('resid_post', vector=Tensor[24])",
        repr(Noise("hook_embed", 1.0, when="decode")): (
            "Noise('hook_embed', when=When(phase='decode', steps=None), std=1.0)"
        ),
        repr(Swap("z", {("z", 0): cache["z", 0]})): (
            "Swap('z', source={('z', 0): Tensor[1, 3, 4, 6]})"
        ),
    }
    assert all(found == wanted for found, wanted in shown.items())


def test_what_is_no_document_is_refused() -> None:
    for text in ("[", "[]", '{"format": "other"}'):
        with pytest.raises(InputError, match=r"JSON|not a list of interventions"):
            from_json(text)
    known = '{"format": "lensbridge.interventions/1", "interventions": [%s]}'
    with pytest.raises(InputError, match="Did you mean 'Zero'"):
        from_json(known % '{"kind": "Zeros", "site": "z"}')
    with pytest.raises(InputError, match="has no axis"):
        from_json(known % '{"kind": "Zero", "site": "z", "axis": 1}')
    with pytest.raises(InputError, match="cannot be written"):
        to_json(Zero(lambda name: True))


# --- what is refused -----------------------------------------------------------------------------

BAD: list[tuple[Callable[[], Intervention], type[Exception], str]] = [
    (lambda: Zero("hook_resid_pots"), UnknownPointError, "There is no point"),
    (lambda: Zero("blocks.0.mlp.hook_router_logits"), AbsentPointError, "hook_router_logits"),
    (lambda: Zero(("z", 0), heads=4), InputError, "head 4 is out of range; there are 4"),
    (lambda: Zero(("v", 0), heads=[2]), InputError, "there are 2"),
    (lambda: Zero(("post", 0), neurons=20), InputError, "neuron 20"),
    (lambda: Zero(("resid_post", 0), neurons=28), InputError, "there are 28"),
    (lambda: Zero(("resid_post", 0), heads=0), InputError, "heads were given"),
    (lambda: Zero(("resid_post", 0), keys=0), InputError, "keys are for attention scores"),
    (lambda: Zero(("resid_post", 0), positions=7), InputError, "position 7 is out of range"),
    (lambda: Zero(("resid_post", 0), positions=-8), InputError, "position -8"),
    (lambda: Zero(("pattern", 0), keys=7), InputError, "key 7"),
    (lambda: Zero(("resid_post", 0), positions=[[1], [2], [3]]), InputError, "3 lists"),
    (lambda: Zero(("resid_post", 0), positions="first"), InputError, "positions is"),
    (lambda: Zero(("resid_post", 0), positions=slice(8, 9)), InputError, "8:9 are none"),
    (lambda: Zero(("resid_post", 0), positions=slice(3, 3)), InputError, "3:3 are none"),
    (lambda: Zero(("resid_post", 0), positions=[True]), InputError, "positions is"),
    (lambda: Zero(("z", 0), heads="0"), InputError, "heads is an int or a list"),
    (lambda: Add(("resid_post", 0), "much"), InputError, "value is a number or a tensor"),
    (lambda: Noise(("resid_post", 0), -1.0), InputError, "0 or more"),
    (
        lambda: Steer(("resid_post", 0), torch.zeros(28), unit="norm"),
        InputError,
        "which is zero",
    ),
    (lambda: Project(("resid_post", 0), torch.zeros(28)), InputError, "is not zero"),
    (lambda: Zero(("resid_post", 0), when="later"), InputError, "'prefill', 'decode'"),
    (lambda: Zero(("resid_post", 0), subspace=torch.ones(28, 2)), InputError, "not orthonormal"),
    (lambda: Zero(("resid_post", 0), subspace=basis(24, 2)), InputError, "the point has 28"),
    (lambda: Zero(("pattern", 0), subspace=basis(7, 2)), InputError, "neurons or a subspace"),
    (lambda: Replace(("resid_post", 0), torch.zeros(27)), InputError, "has to broadcast"),
    (lambda: Replace(("resid_post", 0), torch.zeros(3, 28)), InputError, "has to broadcast"),
    (lambda: Add(("resid_post", 0), torch.zeros(2, 3, 28), positions=[1, 2]), InputError, "broad"),
    (lambda: Swap(("resid_post", 0), partners=[0, 2]), InputError, "partner 2 is out of range"),
    (lambda: Swap(("resid_post", 0), partners=[0]), InputError, "1 partners for 2 examples"),
    (lambda: Zero(("resid_post", 0), examples=2), InputError, "example 2 is out of range"),
    (lambda: Zero(("resid_post", 0), examples=[1, -1]), InputError, "name one twice"),
    (lambda: Swap(("resid_post", 0), torch.zeros(2, 5, 28)), InputError, "positions correspond"),
    (lambda: Swap(("resid_post", 0), torch.zeros(3, 7, 28)), InputError, "3 examples"),
    (lambda: Swap(("resid_post", 0), torch.zeros(2, 7, 24)), InputError, "the source has"),
    (
        lambda: Swap(("resid_post", 0), torch.zeros(2, 9, 28), [1, 2], positions=3),
        InputError,
        "cannot be paired",
    ),
    (
        lambda: Swap(("resid_post", 0), torch.zeros(2, 9, 28), 9, positions=3),
        InputError,
        "source position 9",
    ),
    (lambda: Mean("resid_post", torch.zeros(2, 7, 28)), InputError, "means 2 points"),
    (lambda: Mean(("resid_post", 0), {("resid_post", 1): torch.zeros(2, 7, 28)}), InputError, "no"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_what_does_not_fit_is_refused_before_anything_runs(number: int) -> None:
    make, error, message = BAD[number]
    hf = build(Shape("llama"))
    model, ids = lensbridge.load(hf), tokens(2, 7)
    ran: list[int] = []
    hf.get_input_embeddings().register_forward_hook(lambda *_: ran.append(1))
    before = hooks_on(hf)
    with pytest.raises(error, match=message):
        model.run_with_interventions(ids, make())
    with pytest.raises(error, match=message), model.intervene(make()):
        model(ids)
    assert not ran
    assert hooks_on(hf) == before


def test_columns_of_other_padding_are_not_paired_by_guessing() -> None:
    model, (ids, mask) = lensbridge.load(build(Shape("gpt2"))), left_padded(2, 7)
    site: Any = ("resid_post", 0)
    _, padded_source = model.run_with_cache(ids, attention_mask=mask)
    _, plain_source = model.run_with_cache(ids)
    right = {"attention_mask": mask.flip(1)}
    for source, call in ((padded_source, {}), (plain_source, right), (padded_source, right)):
        with pytest.raises(InputError, match="padding at other columns"):
            model.run_with_interventions(ids, Swap(site, source), **call)
        swap = Swap(site, source, "last", positions="last")
        model.run_with_interventions(ids, swap, **call)
    swapped = model.run_with_interventions(ids, Swap(site, padded_source), attention_mask=mask)
    agree(swapped, model(ids, attention_mask=mask))  # type: ignore[arg-type]
    model.run_with_interventions(ids, Swap(site, plain_source[site]), **right)


def test_what_never_acts_is_refused() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(2, 7)
    for when in ("decode", When("both", 2), When("prefill", [1, 3])):
        one = Zero(("resid_post", 0), when=when)
        with pytest.raises(InputError, match="acts on tokens that generation adds"):
            model.run_with_interventions(ids, [one])
        with pytest.raises(InputError, match="acts on tokens that generation adds"):
            model.sweep(ids, [one], lambda logits: logits[0, -1, 0])


def test_numbers_of_numpy_lists_and_directions() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(2, 7)
    site: Any = ("resid_post", 0)
    direction = torch.randn(24)
    unit = (direction / direction.norm())[:, None]
    pairs: list[tuple[Intervention, Intervention]] = [
        (Zero(site, positions=np.int64(2)), Zero(site, positions=2)),
        (Zero(site, positions=np.array([[1], [2]])), Zero(site, positions=[[1], [2]])),
        (Zero(("z", 1), heads=np.arange(2)), Zero(("z", 1), heads=[0, 1])),
        (Add(site, [0.5] * 24), Add(site, torch.full((24,), 0.5))),
        (Steer(site, direction.numpy()), Steer(site, direction)),  # type: ignore[arg-type]
        (Project(site, 3 * direction), Project(site, unit)),
        (Scale(site, 0.0, subspace=direction), Project(site, unit)),
    ]
    for one, other in pairs:
        found, wanted = (model.run_with_interventions(ids, each) for each in (one, other))
        torch.testing.assert_close(found, wanted)
        assert from_json(to_json(one)) == [one]
    assert from_json(to_json(Replace(site, float("nan"))))[0].value != 0  # type: ignore[attr-defined]


def test_positions_of_a_generation_end_with_it() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(2, 7)
    last = [Zero(("resid_post", 0), positions=10)]
    model.generate(ids, interventions=last, stop_at_eos=False, **QUIET)
    with pytest.raises(
        InputError,
        match="position 11 is out of range; there are 7 positions, and generation adds 4",
    ):
        model.generate(ids, interventions=[Zero(("resid_post", 0), positions=11)], **QUIET)
    with pytest.raises(InputError, match="one example"):
        model.generate(ids[:1], interventions=[Resample(("resid_post", 0))], **QUIET)
    wide = Replace(("resid_post", 0), torch.zeros(2, 7, 24))
    with pytest.raises(InputError, match="has to broadcast"):
        model.generate(ids, interventions=[wide], **QUIET)
    model.generate(ids, interventions=[wide.at(when="prefill")], **QUIET)
    assert VOCAB == 61


# --- what only the run can tell ------------------------------------------------------------------


def test_positions_of_a_decoder_that_makes_its_own_ids() -> None:
    model, ids = of_class("BartForConditionalGeneration"), tokens(2, 5)
    site: Any = "decoder.1.hook_resid_pre"
    with pytest.raises(InputError, match="position 5 is out of range; there are 5 positions"):
        model.run_with_interventions(ids, Zero(site, positions=5))
    options: Any = {"max_new_tokens": 4, "do_sample": False, "verbose": False}
    one = {"interventions": [Zero(site, positions=4)], **options}
    with pytest.raises(InputError, match="there are 1 positions, and generation adds 3"):
        model.generate(ids, **one)
    model.generate(ids, interventions=[Zero(site, positions=3)], **options)
    assert hooks_on(model.hf_model) == 0


def test_edits_that_latent_attention_forgets_are_refused_in_generation() -> None:
    model, ids = of_class("DeepseekV2ForCausalLM", dtype=torch.float64), tokens(2, 5)
    edit = Scale(("v", 0), 1.7, positions=2)
    options: Any = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "stop_at_eos": False}
    with pytest.raises(InputError, match="latent attention keeps latents from pass to pass"):
        model.generate(ids, interventions=[edit], **options)
    assert hooks_on(model.hf_model) == 0
    found = model.generate(ids, interventions=[edit], use_past_kv_cache=False, **options)
    wanted = ids
    for _ in range(4):
        logits: Any = model.run_with_interventions(wanted, edit)
        wanted = torch.cat([wanted, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, wanted)
