"""What programs and TransformerLens's own tests ask of the layer beside the usual calls.

The oracles are the bare model, the formulas, and runs without the option that is tested;
tests/peers/test_compat_suite.py has TransformerLens itself.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from tiny_models import Shape, build
from torch import Tensor

from lensbridge.compat.transformer_lens import (
    FactoredMatrix,
    HookedEncoder,
    HookedEncoderDecoder,
    HookedTransformer,
    HookedTransformerConfig,
    HookedTransformerKeyValueCache,
    SVDInterpreter,
    head_detector,
    loading,
    utils,
)
from lensbridge.compat.transformer_lens.HookedTransformer import DTYPE_FROM_STRING
from lensbridge.compat.transformer_lens.raised import asserting
from lensbridge.conformance.tiny import tiny_from
from lensbridge.errors import (
    InputError,
    LoadError,
    ShapeError,
    TokenizerMissingError,
    UnsupportedArchitectureError,
)
from lensbridge.loading import demo_folder

TEXT = "The Eiffel Tower is in the city of"
SMALL = {"n_layers": 2, "d_model": 24, "n_ctx": 30, "d_head": 6, "act_fn": "gelu", "seed": 0}


@pytest.fixture(scope="module")
def demo() -> HookedTransformer:
    return HookedTransformer.from_pretrained("demo", device="cpu")


# --- slices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [-1, (1, 4), [0, 2, 3], torch.tensor([2, 0]), None])
def test_caches_take_slices_as_they_take_what_is_in_them(demo: Any, chosen: Any) -> None:
    _, cache = demo.run_with_cache(TEXT)
    one, plain = utils.Slice(chosen), chosen.tolist() if isinstance(chosen, Tensor) else chosen
    for name, more in {
        "accumulated_resid": {},
        "decompose_resid": {},
        "stack_head_results": {},
        "stack_neuron_results": {"neuron_slice": utils.Slice([1, 5])},
        "get_full_resid_decomposition": {},
    }.items():
        found = getattr(cache, name)(layer=2, pos_slice=one, **more)
        known = {key: [1, 5] for key in more}
        wanted = getattr(cache, name)(layer=2, pos_slice=plain, **known)
        assert torch.equal(found, wanted)
        assert found.shape[-1] == demo.cfg.d_model
    _, cut = demo.run_with_cache(TEXT, pos_slice=one)
    whole = cache["resid_post", 1]
    index = [plain] if isinstance(plain, int) else slice(*plain) if isinstance(plain, tuple) else (
        slice(None) if plain is None else plain
    )  # fmt: skip
    assert torch.equal(cut["resid_post", 1], whole[:, index])


def test_batches_are_cut_with_slices(demo: Any) -> None:
    _, cache = demo.run_with_cache([TEXT, "The Colosseum is in the city of", "The"])
    cut = cache.apply_slice_to_batch_dim(utils.Slice([2, 0]))
    assert torch.equal(cut["q", 1], cache["q", 1][[2, 0]])
    mask = utils.Slice(torch.tensor([True, False, True]))
    assert torch.equal(cache.apply_slice_to_batch_dim(mask)["q", 1], cache["q", 1][[0, 2]])
    with pytest.raises(ValueError, match="size of the axis"):
        utils.Slice([0, 2]).indices()


# --- positions and caches ------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_do_not_count_padding(demo: Any, side: str) -> None:
    tokens = torch.zeros(2, 5, dtype=torch.long)
    mask = torch.tensor(
        [[0, 0, 1, 1, 1], [1] * 5] if side == "left" else [[1, 1, 1, 0, 0], [1] * 5]
    )
    found = demo.pos_embed(tokens, 0, attention_mask=mask)
    for row in range(2):
        there = mask[row].bool()
        assert torch.equal(found[row][there], demo.W_pos[: there.sum()])
        assert not found[row][~there].any()
    later = demo.pos_embed(tokens[:, :2], 3, mask)
    assert torch.equal(later[1], demo.W_pos[3:5])
    assert torch.equal(
        later[0], demo.W_pos[1:3] if side == "left" else torch.zeros(2, later.shape[-1])
    )
    assert torch.equal(demo.pos_embed(tokens, 4)[0], demo.W_pos[4:9])
    with pytest.raises(InputError, match="3 before"):
        demo.pos_embed(tokens, 3, attention_mask=mask)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_later_layer_with_keys_of_earlier_positions(family: str) -> None:
    model = HookedTransformer.from_pretrained_no_processing("mine", hf_model=build(Shape(family)))
    ids = torch.randint(3, 60, (2, 9))
    whole = model(ids)
    kept = HookedTransformerKeyValueCache.init_cache(model.cfg, "cpu", 2)
    model(ids[:, :6], past_kv_cache=kept)
    with pytest.raises(InputError, match="Freeze it first"):
        model(torch.zeros(2, 3, model.cfg.d_model), start_at_layer=1, past_kv_cache=kept)
    kept.freeze()
    _, tokens, _, mask = model.input_to_embed(ids[:, 6:], past_kv_cache=kept)
    assert mask.shape == ids.shape
    _, cache = model.run_with_cache(ids[:, 6:], past_kv_cache=kept, stop_at_layer=1)
    for given in ({"attention_mask": mask}, {}):  # of all positions, or that of the new ones
        found = model(
            cache["resid_post", 0], start_at_layer=1, tokens=tokens, past_kv_cache=kept, **given
        )
        torch.testing.assert_close(found, whole[:, 6:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_new_tokens_is_not_text(demo: Any, side: str) -> None:
    texts = [" the city", " the city of a long and old river"]
    alone = demo(torch.cat([demo.to_tokens(TEXT), demo.to_tokens(texts[0], prepend_bos=False)], 1))
    count = demo.to_tokens(texts[0], prepend_bos=False).shape[1]
    kept = HookedTransformerKeyValueCache.init_cache(demo.cfg, "cpu", 2)
    demo([TEXT, TEXT], past_kv_cache=kept)
    found = demo(texts, past_kv_cache=kept, padding_side=side, prepend_bos=False)
    real = found[0, -count:] if side == "left" else found[0, :count]
    torch.testing.assert_close(real, alone[0, -count:], atol=1e-4, rtol=1e-4)
    assert kept.previous_attention_mask.sum(1)[0] < kept.previous_attention_mask.sum(1)[1]


def test_shortformer_positions_go_out_and_in() -> None:
    cfg = {**SMALL, "d_vocab": 40, "positional_embedding_type": "shortformer"}
    model = HookedTransformer(cfg)
    ids = torch.randint(40, (2, 7))
    residual, _, positions, _ = model.input_to_embed(ids)
    assert torch.equal(positions[1], model.W_pos[:7])
    given = {"start_at_layer": 0, "shortformer_pos_embed": positions}
    torch.testing.assert_close(model(residual, **given), model(ids))
    with pytest.raises(InputError, match="differs from the model's own"):
        model(residual, start_at_layer=0, shortformer_pos_embed=positions + 1)
    with pytest.raises(InputError, match="goes with start_at_layer"):
        model(ids, shortformer_pos_embed=positions)


# --- configs -------------------------------------------------------------------------------------


def test_the_config_names_the_tokenizer(demo: Any) -> None:
    model = HookedTransformer({**SMALL, "tokenizer_name": "demo"})
    assert model.cfg.d_vocab == demo.cfg.d_vocab
    assert torch.equal(model.to_tokens(TEXT), demo.to_tokens(TEXT))
    with pytest.raises(LoadError, match="no-such-tokenizer"):
        HookedTransformer({**SMALL, "tokenizer_name": "./no-such-tokenizer"})
    with pytest.raises(AssertionError, match="Must provide a tokenizer") as error:
        HookedTransformer(SMALL)
    assert isinstance(error.value, InputError)


def test_encoders_from_a_config() -> None:
    cfg = HookedTransformerConfig(**SMALL, d_vocab=22)
    model = HookedEncoder(cfg)
    ids = torch.randint(22, (2, 5))
    assert isinstance(model.hf_model, transformers.BertForMaskedLM)
    assert torch.equal(model(ids), model.hf_model(ids).logits)
    assert (model.tokenizer, model.cfg.d_mlp, model.cfg.attention_dir) == (
        None,
        96,
        "causal",
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_folder())
    assert HookedEncoder(HookedTransformerConfig(**SMALL), tokenizer).tokenizer is tokenizer
    with pytest.raises(UnsupportedArchitectureError, match="n_heads"):
        HookedEncoder({**SMALL, "d_vocab": 22, "n_heads": 2})
    with pytest.raises(InputError, match="from_pretrained"):
        HookedEncoderDecoder(cfg)


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"n_key_value_heads": 2}, "PlainForCausalLM"),
        ({"use_NTK_by_parts_rope": True}, "LlamaForCausalLM"),
        ({"use_normalization_before_and_after": True, "attn_scale": 3.0}, "Gemma2ForCausalLM"),
    ],
)
def test_the_class_of_a_config(more: dict[str, Any], kind: str) -> None:
    llama = {
        "normalization_type": "RMS", "positional_embedding_type": "rotary", "gated_mlp": True,
    }  # fmt: skip
    style = {} if kind == "PlainForCausalLM" else {**llama, "act_fn": "silu"}
    model = HookedTransformer({**SMALL, "d_vocab": 30, **style, **more})
    assert type(model.hf_model).__name__ == kind
    ids = torch.randint(30, (2, 6))
    assert torch.equal(model(ids), model.hf_model(ids).logits)
    kept = model.generate(
        ids, max_new_tokens=3, do_sample=False, verbose=False, use_past_kv_cache=True
    )
    whole = model.generate(
        ids, max_new_tokens=3, do_sample=False, verbose=False, use_past_kv_cache=False
    )
    assert torch.equal(kept, whole)


def test_keys_of_a_grouped_decoder_are_ungrouped() -> None:
    model = HookedTransformer({**SMALL, "d_vocab": 30, "n_key_value_heads": 2})
    model.set_use_split_qkv_input(True)
    ids = torch.randint(30, (1, 6))
    names = ["blocks.0.attn.hook_k", "blocks.0.hook_k_input"]
    before, cache = model.run_with_cache(ids, names_filter=names)
    model.set_ungroup_grouped_query_attention(True)
    after, wide = model.run_with_cache(ids, names_filter=names)
    torch.testing.assert_close(after, before)
    assert [(cache[name].shape[2], wide[name].shape[2]) for name in names] == [(2, 4), (2, 4)]


def test_what_gemma_2_cannot_compute_is_refused() -> None:
    cfg = {
        **SMALL, "d_vocab": 30, "normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu",
        "positional_embedding_type": "rotary", "use_normalization_before_and_after": True,
    }  # fmt: skip
    with pytest.raises(UnsupportedArchitectureError, match="not a whole number"):
        HookedTransformer({**cfg, "attn_scale": 1.3})
    with pytest.raises(UnsupportedArchitectureError, match="local attention without"):
        HookedTransformer({**cfg, "attn_scale": 3.0, "use_local_attn": True})


def test_configs_of_models_that_are_not_loaded() -> None:
    cfg = loading.get_pretrained_model_config(
        "demo", n_ctx=50, first_n_layers=2, fold_ln=True, dtype="bf16", device="cpu"
    )
    known = (cfg.n_ctx, cfg.n_layers, cfg.normalization_type, cfg.dtype, cfg.device)
    assert known == (50, 2, "LNPre", torch.bfloat16, "cpu")
    hf_cfg = build(Shape("gpt2")).config.to_dict()
    assert loading.get_pretrained_model_config("demo", hf_cfg=hf_cfg).d_model == 24
    assert DTYPE_FROM_STRING["bf16"] is torch.bfloat16


# --- functions -----------------------------------------------------------------------------------


def test_detection_patterns_of_one_row_have_no_batch_axis() -> None:
    ids = torch.tensor([[5, 6, 5, 6]])
    before = head_detector.get_previous_token_head_detection_pattern(ids)
    assert torch.equal(before, torch.ones(3).diag(-1))
    copies = head_detector.get_duplicate_token_head_detection_pattern(ids)
    assert copies.nonzero().tolist() == [[2, 0], [3, 1]]
    after = head_detector.get_induction_head_detection_pattern(ids)
    assert after.nonzero().tolist() == [[2, 1], [3, 2]]


def test_errors_are_those_that_programs_catch(demo: Any) -> None:
    with pytest.raises(AssertionError, match="later tokens"):
        head_detector.detect_head(demo, torch.arange(4), torch.ones(4, 4))
    with pytest.raises(AssertionError, match="layer_index"):
        SVDInterpreter(demo).get_singular_vectors("w_in", layer_index=9)
    with pytest.raises(AssertionError, match="2 examples"):
        demo.run_with_cache([TEXT, TEXT])[1].remove_batch_dim()
    for kind in (AssertionError, RuntimeError, ValueError):
        with pytest.raises(kind):
            FactoredMatrix(torch.ones(3, 6), torch.ones(6, 3)) @ torch.ones(5, 7)
    assert issubclass(ShapeError, RuntimeError)

    @asserting
    def fails() -> None:
        raise KeyError("its own")

    with pytest.raises(KeyError):
        fails()


def test_factors_keep_the_smallest_width() -> None:
    a, b, c, d = torch.randn(8, 6), torch.randn(6, 5), torch.randn(5, 7), torch.randn(7, 3)
    product = FactoredMatrix(a, b) @ FactoredMatrix(c, d)
    assert product.mdim == 5
    torch.testing.assert_close(product.AB, a @ b @ c @ d, atol=1e-4, rtol=1e-4)


def test_xielu_is_that_of_transformers() -> None:
    given = torch.linspace(-4, 4, 33)
    theirs = transformers.activations.XIELUActivation(dtype=torch.float32)
    wanted = theirs._xielu_python(given)
    torch.testing.assert_close(utils.XIELU()(given), wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(utils.xielu(given), wanted, atol=1e-6, rtol=1e-5)
    slopes = utils.XIELU(1.5, 0.9, 0.25)
    assert F.softplus(slopes.alpha_p).item() == pytest.approx(1.5)
    assert (slopes.beta + F.softplus(slopes.alpha_n)).item() == pytest.approx(0.9)
    assert utils.is_library_available("torch")
    assert not utils.is_library_available("no_such_one")


def test_ids_may_be_floats(demo: Any) -> None:
    assert demo.get_token_position(2, torch.tensor([2.0, 3, 4, 2]), mode="last") == 3
    with pytest.raises(InputError, match="whole numbers"):
        demo.get_token_position(2, torch.tensor([2.5, 3]))


# --- encoders ------------------------------------------------------------------------------------


def test_words_at_masks() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_folder())
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    fields = {"vocab_size": len(tokenizer)}
    bert = tiny_from(transformers.BertForMaskedLM, fields, torch.float32, "eager", 0)
    model = HookedEncoder.from_pretrained("x", hf_model=bert, tokenizer=tokenizer)
    ids = tokenizer("The [MASK] is", return_tensors="pt").input_ids
    best = bert(ids).logits[ids == tokenizer.mask_token_id].argmax(-1)
    found = model(ids, return_type="predictions")
    words = tokenizer.decode(best)
    assert found in (words, [f"Prediction {i}: {one}" for i, one in enumerate(words.split(" "))])
    assert torch.equal(model("The [MASK] is"), bert(ids).logits)


def test_a_decoder_writes() -> None:
    t5 = tiny_from(transformers.T5ForConditionalGeneration, {}, torch.float32, "eager", 0)
    t5.generation_config.decoder_start_token_id = 0
    model = HookedEncoderDecoder.from_pretrained("x", hf_model=t5)
    ids = torch.randint(2, 20, (2, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    found = model.generate(ids, mask, do_sample=False, max_new_tokens=5, verbose=False)
    wanted = t5.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=5)
    assert torch.equal(found, wanted)


def test_the_parts_of_an_encoder_and_a_decoder() -> None:
    t5 = tiny_from(transformers.T5ForConditionalGeneration, {}, torch.float32, "eager", 0)
    t5.config.decoder_start_token_id = 3
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_folder())
    tokenizer._tokenizer.enable_truncation(4)
    t5.resize_token_embeddings(len(tokenizer))
    model = HookedEncoderDecoder.from_pretrained("x", hf_model=t5, tokenizer=tokenizer)
    texts = ["The Eiffel Tower is", "The city"]
    encoded = model.tokenizer(texts, return_tensors="pt", padding=True)
    wanted = t5(**encoded, decoder_input_ids=torch.full((2, 1), 3)).logits
    assert torch.equal(model(texts), wanted)
    with pytest.raises(InputError, match="decoder"):
        model(encoded.input_ids)
    layers = list(model.encoder)
    assert [one.path for one in layers] == ["encoder.0", "encoder.1"]
    assert len(model.encoder[1:]) == 1
    stream = torch.randn(1, 3, t5.config.d_model)
    for ours, theirs in ((model.encoder[0], t5.encoder), (model.decoder[-1], t5.decoder)):
        own = theirs.block[0 if theirs is t5.encoder else -1].layer
        assert torch.equal(ours.ln1(stream), own[0].layer_norm(stream))
        assert torch.equal(ours.mlp(stream), own[-1].DenseReluDense(stream))
        for part in (ours, ours.attn):
            with pytest.raises(InputError, match="cannot be run alone"):
                part(stream)
    with pytest.raises(TypeError, match="without numbers"):
        model.encoder[0].attn[0]


# --- states and devices --------------------------------------------------------------------------


def test_what_a_state_lacks_is_filled_in(demo: Any, caplog: pytest.LogCaptureFixture) -> None:
    whole = demo.state_dict()
    part = {name: one for name, one in whole.items() if not name.endswith(("W_Q", "b_Q"))}
    filled = loading.fill_missing_keys(demo, dict(part))
    assert set(filled) == set(whole)
    assert torch.equal(filled["blocks.1.attn.W_Q"], demo.blocks[1].attn.W_Q)
    assert all(filled[name] is one for name, one in part.items())
    said = [record.getMessage().split()[0] for record in caplog.records]
    assert said == [f"blocks.{i}.attn.W_Q" for i in range(demo.cfg.n_layers)]


@pytest.mark.parametrize(("allowed", "kind"), [("", "cpu"), ("1", "mps")])
def test_the_gpu_of_a_mac_has_to_be_allowed(
    monkeypatch: pytest.MonkeyPatch, allowed: str, kind: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("is_built", "is_available"):
        monkeypatch.setattr(torch.backends.mps, name, lambda: True)
    monkeypatch.setenv("TRANSFORMERLENS_ALLOW_MPS", allowed)
    assert utils.get_device() == torch.device(kind)


# --- text without a model ------------------------------------------------------------------------


class TokenizerOnly(HookedTransformer):
    """What TransformerLens's tests and some programs do: no modules are made."""

    def __init__(self, cfg: HookedTransformerConfig, tokenizer: Any) -> None:
        self.cfg = cfg
        self.set_tokenizer(tokenizer, default_padding_side="left")


def test_a_subclass_that_makes_no_modules_has_the_methods_of_text(demo: Any) -> None:
    tokenizer = demo.tokenizer
    model = TokenizerOnly(HookedTransformerConfig(**SMALL, d_vocab=len(tokenizer)), tokenizer)
    assert model.tokenizer is not tokenizer
    bare = tokenizer(TEXT)["input_ids"]
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    assert model.to_tokens(TEXT).tolist() == [[bos, *bare]]
    assert model.to_tokens(TEXT * 9).shape == (1, 30)  # the context
    assert model.to_tokens(TEXT * 9, truncate=False).shape[1] > 30
    short = tokenizer("The")["input_ids"]
    rows = model.to_tokens([TEXT, "The"], prepend_bos=False)
    assert rows.tolist() == [bare, [pad] * (len(bare) - len(short)) + short]
    assert model.to_str_tokens(TEXT) == [tokenizer.decode([one]) for one in (bos, *bare)]
    assert model.get_token_position(bare[2], TEXT) == 3
    model.cfg.default_prepend_bos = False
    assert model.to_tokens(TEXT).tolist() == [bare]
    assert model.to_string(rows[0]) == TEXT
    assert model.to_single_token(" Paris") == tokenizer(" Paris")["input_ids"][0]
    assert model.to_single_str_token(bare[0]) == "The"
    with pytest.raises(AssertionError, match="does not occur"):
        model.get_token_position(bos, TEXT)
    with pytest.raises(AssertionError):
        model.to_single_token(TEXT)
    model.tokenizer = None
    with pytest.raises(TokenizerMissingError):
        model.to_tokens(TEXT)
    with pytest.raises(AttributeError):
        model(rows)
