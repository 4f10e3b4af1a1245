"""The context's limit: what the bare model runs is not refused, what it cannot run is."""

from typing import Any

import pytest
import torch
from lensbridge_adapters import lensbridge_architectures
from test_tokens import letters
from tiny_models import Shape, build
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.errors import ContextLengthError, TokenError

TRAINED, FACTOR = 32, 4
WIDE: dict[str, Any] = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
SCALED: dict[str, dict[str, Any]] = {
    "yarn": {"rope_type": "yarn"},
    "linear": {"rope_type": "linear"},
    "dynamic": {"rope_type": "dynamic"},
    "longrope": {"rope_type": "longrope", **WIDE},
    "llama3": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}


def llama(rope: dict[str, Any], context: int = TRAINED) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        rope_parameters={"rope_theta": 10000.0, **rope},
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def ids(count: int) -> Tensor:
    return torch.randint(4, 30, (2, count))


@pytest.mark.parametrize("original", [None, TRAINED])
@pytest.mark.parametrize("kind", SCALED)
def test_scaled_rotary_embeddings_reach_further(kind: str, original: int | None) -> None:
    said = {"original_max_position_embeddings": original} if original and kind != "linear" else {}
    hf = llama({**SCALED[kind], "factor": float(FACTOR), **said})
    model = lensbridge.load(hf, tokenizer=letters())
    assert model.cfg.n_ctx == TRAINED * FACTOR
    for count in (TRAINED, TRAINED + 1, 48, TRAINED * FACTOR):
        with torch.no_grad():
            logits, cache = model.run_with_cache(ids(count), "resid_post")
            assert torch.equal(logits, hf(ids_of(cache.tokens)).logits)
    with torch.no_grad():
        bare = hf.generate(ids_of(cache.tokens)[:, :40], max_new_tokens=9, do_sample=False)
        found = model.generate(
            cache.tokens[:, :40], max_new_tokens=9, do_sample=False, verbose=False
        )
    assert torch.equal(found, bare)
    assert model.to_tokens("a" * 60).shape[1] == 61
    assert model.to_tokens("a" * 200, truncate=True).shape[1] == TRAINED * FACTOR
    with pytest.raises(ContextLengthError, match=str(TRAINED * FACTOR)):
        model(ids(TRAINED * FACTOR + 1))


def ids_of(tokens: Any) -> Tensor:
    assert isinstance(tokens, Tensor)
    return tokens


def test_a_config_that_says_the_scaled_context_is_not_scaled_again() -> None:
    """Llama 3.1 and YaRN checkpoints give the context that scaling reaches."""
    for rope in (SCALED["llama3"], SCALED["yarn"], SCALED["longrope"]):
        rope = {**rope, "factor": 4.0, "original_max_position_embeddings": 32}
        model = lensbridge.load(llama(rope, context=128))
        assert model.cfg.n_ctx == 128


def test_plain_rotary_embeddings_keep_the_configured_context() -> None:
    model = lensbridge.load(llama({"rope_type": "default"}))
    assert model.cfg.n_ctx == TRAINED
    with pytest.raises(ContextLengthError, match="the context is 32"):
        model(ids(TRAINED + 1))


def test_layers_with_rotary_embeddings_of_their_own() -> None:
    rope = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    description = next(d for d in lensbridge_architectures() if "Gemma3ForCausalLM" in d.classes)
    hf: Any = tiny_model(
        description,
        "Gemma3ForCausalLM",
        max_position_embeddings=20,
        rope_parameters={"full_attention": rope, "sliding_attention": plain},
    )
    model, given = lensbridge.load(hf), torch.randint(4, 30, (1, 50))
    assert model.cfg.n_ctx == 160
    with torch.no_grad():
        assert torch.equal(model(given), hf(given).logits)


def test_learned_positions_end_where_their_table_ends() -> None:
    hf = build(Shape("gpt2"))
    model, limit = lensbridge.load(hf), hf.config.n_positions
    given = ids(limit)
    with torch.no_grad():
        assert torch.equal(model(given), hf(given).logits)
    with pytest.raises(ContextLengthError, match=str(limit)):
        model(ids(limit + 1))


def test_encoder_and_decoder_have_limits_of_their_own() -> None:
    description = next(
        d for d in lensbridge_architectures() if "BartForConditionalGeneration" in d.classes
    )
    hf: Any = tiny_model(description, "BartForConditionalGeneration")
    model, limit = lensbridge.load(hf), hf.config.max_position_embeddings
    source, target = ids(limit), ids(limit)
    with torch.no_grad():
        bare = hf(source, decoder_input_ids=target).logits
        assert torch.equal(model(source, decoder_input_ids=target), bare)
    for options in (
        {"input": ids(limit + 1), "decoder_input_ids": target},
        {"input": source, "decoder_input_ids": ids(limit + 1)},
    ):
        with pytest.raises(ContextLengthError, match=str(limit)):
            model(**options)
    with pytest.raises(TokenError, match="vocabulary"):
        model(source, decoder_input_ids=target + hf.config.vocab_size)


@pytest.mark.parametrize("name", ["RobertaForMaskedLM", "MPNetForMaskedLM", "GPT2LMHeadModel"])
def test_the_limit_is_where_the_bare_models_table_ends(name: str) -> None:
    """RoBERTa's positions begin after the row of the padding token."""
    hf: Any = tiny_model(next(d for d in lensbridge_architectures() if name in d.classes), name)
    model = lensbridge.load(hf)
    limit = model.cfg.n_ctx
    assert limit is not None
    last, beyond = ids(limit), ids(limit + 1)
    with torch.no_grad():
        assert torch.equal(model(last), hf(last).logits)
        with pytest.raises((IndexError, RuntimeError)):
            hf(beyond)
    with pytest.raises(ContextLengthError, match=f"the context is {limit}"):
        model(beyond)
