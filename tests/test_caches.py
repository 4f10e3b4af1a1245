"""Caches as objects: slices of the batch, files, memory, labelled axes."""

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_models import FAMILIES, Shape, build, left_padded, shapes, tokens
from torch import Tensor

import lensbridge
from lensbridge.cache import ActivationCache
from lensbridge.cache.files import FORMAT
from lensbridge.errors import InputError, NotCachedError, UnknownPointError
from lensbridge.model import LensModel


def run(model: LensModel, ids: Tensor, **how: object) -> ActivationCache:
    _, cache = model.run_with_cache(ids, **how)  # type: ignore[arg-type]
    assert isinstance(cache, ActivationCache)
    return cache


@pytest.fixture(scope="module")
def llama() -> LensModel:
    return lensbridge.load(build(Shape("llama")))


# --- made by hand ------------------------------------------------------------------------------


def test_a_dictionary_of_activations_is_a_cache(llama: LensModel) -> None:
    whole = run(llama, tokens())
    plain = {name: value.clone() for name, value in whole.items()}
    made = ActivationCache(plain, llama)
    assert list(made) == list(whole)
    assert torch.equal(made.decompose_resid(check=True), whole.decompose_resid())  # type: ignore[arg-type]
    one = ActivationCache({"blocks.0.hook_in": plain["blocks.0.hook_resid_pre"][0]}, llama, False)
    assert list(one) == ["blocks.0.hook_resid_pre"]
    assert one.axes("resid_pre0") == "p m"
    with pytest.raises(UnknownPointError, match="no point"):
        ActivationCache({"nonsense": torch.zeros(1)}, model=llama)
    with pytest.raises(InputError, match="needs the model"):
        ActivationCache({})


def test_a_deep_copy_shares_the_model_and_no_tensor(llama: LensModel) -> None:
    whole = run(llama, tokens())
    twin = copy.deepcopy(whole)
    assert twin.model is llama
    assert twin.nbytes == whole.nbytes
    whole["q", 0].zero_()
    repr(whole)  # says how large it is, although one of it cannot be read any more
    assert twin["q", 0].any()
    assert torch.equal(twin.decompose_resid(check=True)[-1], whole["mlp_out", -1])


def test_names_that_are_no_names(llama: LensModel) -> None:
    for name in (0, None, ()):
        with pytest.raises(UnknownPointError, match="named by"):
            run(llama, tokens())[name]  # type: ignore[index]


# --- the batch axis ---------------------------------------------------------------------------


@given(shapes(), st.sampled_from([0, 2, -1, (1, 3), [2, 0], slice(0, 2), torch.tensor([1, 1])]))
def test_some_examples_are_what_they_are_alone(shape: Shape, chosen: object) -> None:
    model = lensbridge.load(build(shape))
    ids = tokens(batch=3)
    cache = run(model, ids)
    some = cache.apply_slice_to_batch_dim(chosen)  # type: ignore[arg-type]
    index = slice(*chosen) if isinstance(chosen, tuple) else chosen
    assert some.tokens is not None
    assert torch.equal(some.tokens, ids[index])
    assert some.has_batch_dim == (not isinstance(chosen, int))
    for name in ("resid_post", "pattern", "q"):
        assert torch.equal(some[name, -1], cache[name, -1][index])
    if isinstance(chosen, int):
        with pytest.raises(InputError, match="no batch axis"):
            some.apply_slice_to_batch_dim(0)


def test_what_all_examples_share_stays() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=61, d_model=24, d_kv=6, d_ff=20, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = lensbridge.load(T5ForConditionalGeneration(config).eval())
    cache = run(model, tokens(batch=3), decoder_input_ids=tokens(batch=3, length=4))
    bias = cache["encoder.0.attn.hook_rel_pos_bias"]
    some = cache.apply_slice_to_batch_dim([0, 2])
    assert torch.equal(some["encoder.0.attn.hook_rel_pos_bias"], bias)
    one = cache.apply_slice_to_batch_dim(1)
    assert torch.equal(one["encoder.0.attn.hook_rel_pos_bias"], bias[0])
    assert torch.equal(one["encoder.1.hook_resid_post"], cache["encoder.1.hook_resid_post"][1])


def test_the_mask_goes_along(llama: LensModel) -> None:
    ids, mask = left_padded()
    cache = run(llama, ids, attention_mask=mask).apply_slice_to_batch_dim((1, None))
    assert cache.attention_mask is not None
    assert torch.equal(cache.attention_mask, mask[1:])


# --- memory -----------------------------------------------------------------------------------


def test_bytes_by_name_and_in_all(llama: LensModel) -> None:
    cache = run(llama, tokens(), names_filter=["resid_pre", "resid_post"])
    each = cache.nbytes_by_name
    one = cache["resid_pre", 0].numel() * 4
    assert set(each.values()) == {one}
    assert len(each) == 2 * llama.cfg.n_layers
    assert cache.nbytes == one * (llama.cfg.n_layers + 1)  # what one layer leaves the next reads
    assert cache.dtype == torch.float32


def test_moved_and_converted_tensors_are_still_shared(llama: LensModel) -> None:
    cache = run(llama, tokens(), names_filter=["resid_pre", "resid_post"])
    half = cache.to(dtype=torch.float16)
    assert half.dtype == torch.float16
    assert half["resid_post", 0].data_ptr() == half["resid_pre", 1].data_ptr()
    assert half.nbytes == cache.nbytes // 2
    assert cache.to("cpu")["resid_pre", 0].data_ptr() == cache["resid_pre", 0].data_ptr()


def test_a_dtype_may_be_given_by_its_name(llama: LensModel) -> None:
    whole = run(llama, tokens(), names_filter="resid_pre")
    half = run(llama, tokens(), names_filter="resid_pre", dtype="bf16")
    assert torch.equal(half["resid_pre", 1], whole["resid_pre", 1].bfloat16())
    assert whole.to(dtype="float16").dtype == torch.float16
    with pytest.raises(InputError, match=r"no dtype 'float7'.*float32"):
        run(llama, tokens(), names_filter="resid_pre", dtype="float7")


def test_gradients_are_switched_for_all_that_follows(llama: LensModel) -> None:
    cache = run(llama, tokens(), names_filter="resid_pre")
    try:
        cache.toggle_autodiff(False)
        assert not torch.is_grad_enabled()
    finally:
        cache.toggle_autodiff(True)
    assert torch.is_grad_enabled()


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_saved_is_what_is_read(family: str, tmp_path: Path) -> None:
    model = lensbridge.load(build(Shape(family)))
    cache = run(model, tokens())
    cache.save(tmp_path / "run.safetensors")
    found = ActivationCache.load(tmp_path / "run.safetensors", model=model)
    assert list(found) == list(cache)
    assert all(torch.equal(found[name], cache[name]) for name in cache)
    assert found.tokens is not None
    assert torch.equal(found.tokens, tokens())
    assert torch.equal(found.decompose_resid(check=True), cache.decompose_resid())  # type: ignore[arg-type]


def test_each_tensor_is_written_once(llama: LensModel, tmp_path: Path) -> None:
    cache = run(llama, tokens(batch=4, length=30))
    path = tmp_path / "run.safetensors"
    cache.save(path)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    ids = tokens(batch=4, length=30)
    assert path.stat().st_size - 8 - header <= cache.nbytes + ids.nbytes
    found = ActivationCache.load(path)
    assert found["resid_post", 0].data_ptr() == found["resid_pre", 1].data_ptr()


def test_without_its_model_a_cache_still_reads_names(llama: LensModel, tmp_path: Path) -> None:
    cache = run(llama, tokens(batch=1), names_filter=["q", "pattern"]).remove_batch_dim()
    cache.save(tmp_path / "few.safetensors")
    found = ActivationCache.load(tmp_path / "few.safetensors")
    assert not found.has_batch_dim
    assert torch.equal(found["q", -1], cache["q", -1])
    assert torch.equal(found["blocks.0.attn.q.hook_out"], cache["q", 0])
    with pytest.raises(InputError, match="has no model"):
        found.stack_head_results()
    with pytest.raises(NotCachedError):
        found["v", 0]


def test_files_that_are_no_caches(llama: LensModel, tmp_path: Path) -> None:
    whole = tmp_path / "run.safetensors"
    run(llama, tokens()).save(whole)
    short = tmp_path / "short.safetensors"
    short.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(InputError, match="incomplete"):
        ActivationCache.load(short)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    with pytest.raises(InputError, match="not an ActivationCache"):
        ActivationCache.load(foreign)
    text = tmp_path / "notes.txt"
    text.write_text(json.dumps({"a": 1}))
    with pytest.raises(InputError, match="cannot be read"):
        ActivationCache.load(text)
    with pytest.raises(InputError, match="no file"):
        ActivationCache.load(tmp_path / "nothing")
    for header in ("{", "{}", "[]"):
        save_file({"x": torch.zeros(2)}, foreign, metadata={"format": FORMAT, "cache": header})
        with pytest.raises(InputError, match="header is incomplete"):
            ActivationCache.load(foreign)
    with pytest.raises(InputError, match="is a folder"):
        run(llama, tokens()).save(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        run(llama, tokens()).save(tmp_path / "nowhere" / "run.safetensors")
    other = lensbridge.load(build(Shape("llama", layers=3)))
    with pytest.raises(InputError, match="another model: n_layers 2, not 3"):
        ActivationCache.load(whole, model=other)


# --- labelled axes ----------------------------------------------------------------------------


def test_axes_have_names_and_positions_have_tokens(llama: LensModel) -> None:
    ids = tokens(batch=2)
    cache = run(llama, ids)
    pattern = cache.to_xarray(("pattern", 1))
    assert pattern.dims == ("batch", "head", "query_pos", "key_pos")
    assert pattern.sel(batch=1, head=2).values.tolist() == cache["pattern", 1][1, 2].tolist()
    stream = cache.to_xarray("blocks.0.hook_resid_pre")
    assert stream.token.values.tolist() == ids.tolist()
    alone = run(llama, ids[:1]).remove_batch_dim().to_xarray(("k", 0))
    assert alone.dims == ("pos", "kv_head", "d_head")
    assert alone.token.values.tolist() == ids[0].tolist()
