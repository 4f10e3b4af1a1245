"""Positions in padded batches: each text is compared with a run of it alone, without padding."""

from typing import Any

import pytest
import torch
from described import of_class
from hypothesis import given, settings
from hypothesis import strategies as st
from test_interventions import bare
from tiny_models import VOCAB, Layer, Shape, build
from torch import Tensor

import lensbridge
from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.interventions import (
    Mean,
    Replace,
    Resample,
    Steer,
    Swap,
    Zero,
    from_json,
    steering_vector,
    to_json,
)

LONGEST = 7
SITE: Any = ("resid_post", 0)


def rows_of(lengths: list[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (1, n), generator=generator) for n in lengths]


def batch_of(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of padded rows."""
    width = max(row.shape[1] for row in rows)
    ids = torch.ones(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        n = row.shape[1]
        place = slice(0, n) if side == "right" else slice(width - n, width)
        ids[i, place], mask[i, place] = row[0], 1
    return ids, mask


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


MODELS = {family: build(Shape(family)) for family in ("gpt2", "llama")}
sides = st.sampled_from(["left", "right"])
families = st.sampled_from(sorted(MODELS))
several = st.lists(st.integers(3, LONGEST), min_size=1, max_size=4)
common = st.sampled_from(
    [0, 2, -1, -3, "last", [0, -1], [2, 1], slice(0, 2), slice(-2, None), (1, 3), (0, 3, 2)]
)


@settings(max_examples=40, deadline=None)
@given(families, sides, several, common, st.integers(0, 99))
def test_a_cache_has_the_tokens_of_each_text(
    family: str, side: str, lengths: list[int], asked: Any, seed: int
) -> None:
    hf = MODELS[family]
    model, rows = lensbridge.load(hf), rows_of(lengths, seed)
    ids, mask = batch_of(rows, side)
    names = ["resid_post", "q", "pattern", "logits"]
    _, cache = model.run_with_cache(ids, names, pos_slice=asked, attention_mask=mask)
    block = Layer(hf, family, 0).block
    index = slice(*asked) if isinstance(asked, tuple) else -1 if asked == "last" else asked
    for i, row in enumerate(rows):
        stream = output(hf, block, row)[0][index]
        near(cache[SITE][i], stream[None] if stream.ndim == 1 else stream)
        with torch.no_grad():
            logits = hf(row).logits[0][index]
        near(cache["logits"][i], logits[None] if logits.ndim == 1 else logits)
    assert cache["pattern", 0].shape[2] == cache[SITE].shape[1]


def output(hf: Any, module: Any, ids: Tensor) -> Tensor:
    """What a module puts out for one text, without lensbridge."""
    kept: list[Tensor] = []

    def keep(_: Any, __: Any, value: Any) -> None:
        kept.append((value[0] if isinstance(value, tuple) else value).detach())

    handle = module.register_forward_hook(keep)
    with torch.no_grad():
        hf(ids)
    handle.remove()
    return kept[0]


anywhere = st.one_of(common, st.sampled_from([slice(1, None), slice(None, -1), slice(None, 5)]))


@settings(max_examples=40, deadline=None)
@given(families, sides, several, anywhere, st.integers(0, 99))
def test_an_intervention_edits_the_tokens_of_each_text(
    family: str, side: str, lengths: list[int], asked: Any, seed: int
) -> None:
    hf = MODELS[family]
    model, rows = lensbridge.load(hf), rows_of(lengths, seed)
    ids, mask = batch_of(rows, side)
    asked = list(asked) if isinstance(asked, tuple) else asked
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    steer = Steer(SITE, vector, positions=asked)
    index = -1 if isinstance(asked, str) else asked

    def add(value: Tensor) -> Tensor:
        value[:, index] += vector
        return value

    block = Layer(hf, family, 0).block
    wanted = [bare(hf, block, "output", add, input_ids=row)[0] for row in rows]
    found = model.run_with_interventions(ids, steer, attention_mask=mask)
    for i in range(len(rows)):
        near(found[i][mask[i].bool()], wanted[i])
    metric = lambda logits: torch.stack([row[m.bool()].sum() for row, m in zip(logits, mask)])  # noqa: E731, B905
    swept = model.sweep({"input_ids": ids, "attention_mask": mask}, [steer], metric, reduce="none")
    torch.testing.assert_close(
        swept.values[0], torch.stack([one.sum() for one in wanted]), rtol=1e-3, atol=1e-2
    )


@settings(max_examples=20, deadline=None)
@given(several, anywhere, st.integers(0, 99))
def test_generation_edits_the_same_tokens_as_each_text_alone(
    lengths: list[int], asked: Any, seed: int
) -> None:
    model, rows = lensbridge.load(MODELS["llama"]), rows_of(lengths, seed)
    ids, mask = batch_of(rows, "left")
    asked = list(asked) if isinstance(asked, tuple) else asked
    vector = 3 * torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    options: dict[str, Any] = {
        "max_new_tokens": 3,
        "do_sample": False,
        "verbose": False,
        "stop_at_eos": False,
        "interventions": [Steer(SITE, vector, positions=asked)],
    }
    for kept in (True, False):
        found = model.generate(ids, attention_mask=mask, use_past_kv_cache=kept, **options)
        for i, row in enumerate(rows):
            alone = model.generate(row, use_past_kv_cache=kept, **options)
            assert torch.equal(found[i, -3:], alone[0, -3:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_keys_of_a_pattern_are_tokens_of_each_text(side: str) -> None:
    model, rows = lensbridge.load(MODELS["llama"]), rows_of([3, 6, 4], 0)
    ids, mask = batch_of(rows, side)
    for keys in (1, [0, 2], slice(0, 2)):
        off = Replace("blocks.1.attn.hook_attn_scores", -1e9, positions=-1, keys=keys)
        found = model.run_with_interventions(ids, off, attention_mask=mask)
        for i, row in enumerate(rows):
            near(found[i][mask[i].bool()], model.run_with_interventions(row, off)[0])
    ragged = Replace("blocks.1.attn.hook_attn_scores", -1e9, positions=-1, keys=slice(1, None))
    with pytest.raises(InputError, match="keys are 2 to 5 positions"):
        model.run_with_interventions(ids, ragged, attention_mask=mask)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_source_is_paired_token_by_token(side: str) -> None:
    model, rows, others = lensbridge.load(MODELS["gpt2"]), rows_of([3, 6], 0), rows_of([5, 3], 1)
    ids, mask = batch_of(rows, side)
    there, source_mask = batch_of(others, "left" if side == "right" else "right")
    _, source = model.run_with_cache(there, attention_mask=source_mask)
    found = model.run_with_interventions(
        ids, Swap(SITE, source, [0, -1], positions=[1, -2]), attention_mask=mask
    )
    for i, (row, other) in enumerate(zip(rows, others, strict=True)):
        _, cache = model.run_with_cache(other)
        alone = model.run_with_interventions(row, Swap(SITE, cache, [0, -1], positions=[1, -2]))
        near(found[i][mask[i].bool()], alone[0])
    with pytest.raises(InputError, match="example 0: 2 positions of the input cannot be paired"):
        model.run_with_interventions(
            ids, Swap(SITE, source, slice(1, None), positions=slice(1, None)), attention_mask=mask
        )


def test_examples_of_a_padded_run_are_exchanged_token_by_token() -> None:
    model, rows = lensbridge.load(MODELS["gpt2"]), rows_of([4, 4, 6], 0)
    found = {}
    for side in ("left", "right"):
        ids, mask = batch_of(rows, side)
        logits = model.run_with_interventions(ids, Resample(SITE, seed=1), attention_mask=mask)
        found[side] = [logits[i][mask[i].bool()] for i in range(3)]
    for left, right in zip(found["left"], found["right"], strict=True):
        near(left, right)


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_that_a_text_lacks_are_refused(side: str) -> None:
    model, rows = lensbridge.load(MODELS["gpt2"]), rows_of([3, 6], 0)
    ids, mask = batch_of(rows, side)
    for position in (3, -4):
        with pytest.raises(InputError, match="example 0 has 3 tokens"):
            model.run_with_cache(ids, "resid_post", pos_slice=position, attention_mask=mask)
        with pytest.raises(InputError, match="example 0 has 3 tokens"):
            model.run_with_interventions(ids, Zero(SITE, positions=position), attention_mask=mask)
    with pytest.raises(InputError, match="2 positions of example 0, which has 3 tokens, and 5 of"):
        model.run_with_cache(ids, "resid_post", pos_slice=slice(1, None), attention_mask=mask)
    with pytest.raises(InputError, match="count is 'tokens' or 'columns'"):
        model.run_with_cache(ids, pos_slice=1, count="token", attention_mask=mask)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="count is 'tokens' or 'columns'"):
        Zero(SITE, count="rows")  # type: ignore[arg-type]


@pytest.mark.parametrize("side", ["left", "right"])
def test_columns_on_request(side: str) -> None:
    model, rows = lensbridge.load(MODELS["gpt2"]), rows_of([3, 6], 0)
    ids, mask = batch_of(rows, side)
    _, whole = model.run_with_cache(ids, attention_mask=mask)
    _, part = model.run_with_cache(ids, pos_slice=5, count="columns", attention_mask=mask)
    assert torch.equal(part[SITE], whole[SITE][:, 5:])
    with model.intervene(Zero(SITE, positions=5, count="columns")):
        _, cache = model.run_with_cache(ids, attention_mask=mask)
    assert not cache[SITE][:, 5].any()
    assert torch.equal(cache[SITE][:, :5], whole[SITE][:, :5])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("asked", [-1, "last", 2, [0, -1], (0, 3)])
def test_the_stream_is_decomposed_at_the_tokens_of_each_text(side: str, asked: Any) -> None:
    model, rows = lensbridge.load(MODELS["gpt2"]), rows_of([3, 6, 4], 0)
    ids, mask = batch_of(rows, side)
    _, cache = model.run_with_cache(ids, attention_mask=mask)
    for method in ("accumulated_resid", "decompose_resid", "stack_head_results"):
        found = getattr(cache, method)(apply_ln=True, pos_slice=asked)
        part = getattr(cache, method)(pos_slice=asked)
        answers = cache.logit_attrs(part, 5, pos_slice=asked)
        for i, row in enumerate(rows):
            _, alone = model.run_with_cache(row)
            near(found[:, i], getattr(alone, method)(apply_ln=True, pos_slice=asked)[:, 0])
            wanted = alone.logit_attrs(getattr(alone, method)(pos_slice=asked), 5, pos_slice=asked)
            near(answers[:, i], wanted[:, 0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_and_jacobians_at_the_tokens_of_each_text(side: str) -> None:
    model, rows = lensbridge.load(MODELS["gpt2"]), rows_of([3, 6], 0)
    ids, mask = batch_of(rows, side)
    at_end = lambda cache: cache[("resid_post", 1)][mask.bool()].square().sum()  # noqa: E731
    _, grads = model.gradients(
        ids, [SITE], at_end, at=("resid_post", 1), pos_slice="last", attention_mask=mask
    )
    found = model.jacobian(
        ids, SITE, ("resid_post", 1), positions=2, source_positions=-2, attention_mask=mask
    )
    for i, row in enumerate(rows):
        _, alone = model.gradients(
            row,
            [SITE],
            lambda cache: cache[("resid_post", 1)].square().sum(),
            at=("resid_post", 1),
            pos_slice=-1,
        )
        near(grads[SITE][i], alone[SITE][0])
        wanted = model.jacobian(row, SITE, ("resid_post", 1), positions=2, source_positions=-2)
        near(found[i], wanted[0])


# --- means without special tokens -----------------------------------------------------------------

TEXTS = ["The Eiffel Tower is in the city of", "The Louvre is in"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_means_leave_special_tokens_out(side: Any) -> None:
    model = lensbridge.load("demo")
    streams = [model.run_with_cache(text)[1][SITE][0] for text in TEXTS]
    without = torch.cat([stream[1:] for stream in streams]).mean(0)
    everything = torch.cat(streams).mean(0)
    assert not torch.allclose(without, everything, rtol=0.1)
    ids, mask = model.to_tokens(TEXTS, padding_side=side, return_mask=True)
    call: dict[str, Any] = {"attention_mask": mask}
    _, cache = model.run_with_cache(ids, **call)
    bos = int(model.to_tokens("The")[0, 0])
    for source in (None, cache):
        for excluded, wanted in ((True, without), (False, everything), ([bos], without)):
            mean = Mean(SITE, source, "all", exclude_special_tokens=excluded)
            (back,) = from_json(to_json(mean))
            for one in (mean, back):
                with model.intervene(one):
                    _, edited = model.run_with_cache(ids, SITE, **call)
                near(edited[SITE][mask.bool()], wanted.expand(int(mask.sum()), -1))
            metric = lambda logits: logits[mask.bool()].sum()  # noqa: E731
            given = {"input_ids": ids, **call}
            swept = model.sweep(given, [mean], metric).values[0]
            torch.testing.assert_close(
                swept, metric(model.run_with_interventions(ids, mean, **call)), rtol=1e-3, atol=0.1
            )


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_steering_vector_of_means_leaves_special_tokens_out(side: Any) -> None:
    model = lensbridge.load("demo")
    up, down = [[model.run_with_cache(text)[1][SITE][0] for text in TEXTS[::s]] for s in (1, -1)]
    down = down[:1]
    for first, options in ((1, {}), (0, {"exclude_special_tokens": False})):
        means = [torch.stack([one[first:].mean(0) for one in rows]).mean(0) for rows in (up, down)]
        found = steering_vector(
            model, TEXTS, TEXTS[1:], SITE, "mean", padding_side=side, **options
        ).vector
        near(found, means[0] - means[1])
    last = steering_vector(model, TEXTS, TEXTS[1:], SITE, "last", padding_side=side).vector
    near(last, torch.stack([one[-1] for one in up]).mean(0) - down[0][-1])
    with pytest.raises(InputError, match="Example 0 has only special tokens"):
        steering_vector(model, model.to_tokens("The")[:, :1], TEXTS, SITE, "mean")


# --- encoder-decoders, caches of a generation -----------------------------------------------------


def test_encoder_and_decoder_have_masks_of_their_own(tmp_path: Any) -> None:
    model = of_class("BartForConditionalGeneration")
    sources, targets = rows_of([3, 5], 0), rows_of([6, 4], 1)
    (ids, mask), (decoded, decoded_mask) = batch_of(sources, "right"), batch_of(targets, "right")
    call: dict[str, Any] = {
        "attention_mask": mask,
        "decoder_input_ids": decoded,
        "decoder_attention_mask": decoded_mask,
    }
    names = ["encoder.*.hook_resid_post", "decoder.*.hook_resid_post"]
    _, last = model.run_with_cache(ids, names, pos_slice="last", **call)
    _, whole = model.run_with_cache(ids, **call)
    whole.save(tmp_path / "cache.safetensors")
    loaded = ActivationCache.load(tmp_path / "cache.safetensors", model)
    zero = Zero("decoder.0.hook_resid_post", positions=-1)
    edited = model.run_with_interventions(ids, zero, **call)
    steer = steering_vector(model, ids, ids, "encoder.0.hook_resid_post")
    assert not steer.vector.any()
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        alone: dict[str, Any] = {"decoder_input_ids": target}
        _, cache = model.run_with_cache(source, **alone)
        for name in last:
            near(last[name][i, 0], cache[name][0, -1])
        for stack, position in (("encoder", 2), ("decoder", -1), (None, 3)):
            options: dict[str, Any] = {"pos_slice": position, "stack": stack}
            wanted = cache.accumulated_resid(**options)
            for one in (whole, loaded):
                near(one.accumulated_resid(**options)[:, i], wanted[:, 0])
        wanted = model.run_with_interventions(source, zero, **alone)[0]
        near(edited[i][decoded_mask[i].bool()], wanted)
    with pytest.raises(InputError, match="pos_slice=4: example 0 has 3 tokens"):
        model.run_with_cache(ids, names, pos_slice=4, **call)
    model.run_with_cache(ids, [names[1], "decoder.*.cross_attn.hook_k"], pos_slice=3, **call)


def test_the_cache_of_a_generation_is_read_at_the_tokens_of_each_text() -> None:
    model, rows = lensbridge.load(MODELS["llama"]), rows_of([3, 6], 0)
    ids, mask = batch_of(rows, "left")
    options: dict[str, Any] = {
        "max_new_tokens": 2,
        "do_sample": False,
        "verbose": False,
        "stop_at_eos": False,
        "return_cache": True,
    }
    _, cache = model.generate(ids, attention_mask=mask, **options)
    for i, row in enumerate(rows):
        _, alone = model.generate(row, **options)
        for position in (0, 3, "last"):
            found = cache.accumulated_resid(pos_slice=position)[:, i]
            near(found, alone.accumulated_resid(pos_slice=position)[:, 0])
