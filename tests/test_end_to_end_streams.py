"""ProphetNet: a decoder whose streams are one after another in one row of positions."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lensbridge_adapters.prophetnet import PROPHETNET_DECODER
from torch import Tensor
from transformers import (
    PreTrainedModel,
    ProphetNetConfig,
    ProphetNetForCausalLM,
    ProphetNetForConditionalGeneration,
)

import lensbridge
from lensbridge.errors import ArchitectureMismatchError
from lensbridge.hooks.callbacks import Hook

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 3,
    "num_decoder_attention_heads": 3,
    "max_position_embeddings": 16,
    "ngram": 2,
    "init_std": 0.3,
}


def built(cls: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = ProphetNetConfig(**SIZES, is_encoder_decoder=cls is not ProphetNetForCausalLM)
    return cls(config).eval().requires_grad_(False)


def ids(length: int = 5, seed: int = 1) -> Tensor:
    return torch.randint(5, 61, (2, length), generator=torch.Generator().manual_seed(seed))


def test_the_decoder_alone_is_read_with_all_its_streams() -> None:
    hf = built(ProphetNetForCausalLM)
    raw = hf(ids(), output_hidden_states=True)
    lens = lensbridge.load(hf)
    logits, cache = lens.run_with_cache(ids())
    assert torch.equal(logits, raw.logits)
    assert torch.equal(cache["hook_logits"], raw.logits)
    for i, points in enumerate((("resid_pre", 0), ("resid_pre", 1), ("resid_post", 1))):
        streams = torch.cat([raw.hidden_states[i], raw.hidden_states_ngram[i]], dim=1)
        assert torch.equal(cache[points], streams)
    assert lens.explain("blocks.0.hook_resid_pre").axes == "b s m"
    assert cache["mlp_post", 0].shape == (2, 15, 28)


def test_the_logits_are_those_of_the_second_stream() -> None:
    hf = built(ProphetNetForCausalLM)
    _, cache = lensbridge.load(hf).run_with_cache(ids())
    read = cache["resid_post", 1][:, 5:10]
    torch.testing.assert_close(cache["hook_logits"], hf.lm_head(read))


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_an_edit_of_one_stream_is_that_of_its_positions(stream: int) -> None:
    hf = built(ProphetNetForCausalLM)
    own = slice(5 * stream, 5 * stream + 5)

    def zeroed(module: Any, args: Any) -> Any:
        changed = args[0].clone()
        changed[:, own] = 0.0
        return (changed, *args[1:])

    handle = hf.prophetnet.decoder.layers[1].register_forward_pre_hook(zeroed)
    wanted = hf(ids()).logits
    handle.remove()

    def edit(streams: Tensor, hook: Hook) -> None:
        streams[:, own] = 0.0

    found = lensbridge.load(hf).run_with_hooks(ids(), fwd_hooks=[("blocks.1.hook_resid_pre", edit)])
    assert torch.equal(found, wanted)
    assert not torch.equal(found, hf(ids()).logits)


def test_encoder_and_cross_attention_are_read() -> None:
    hf = built(ProphetNetForConditionalGeneration)
    both = {"input_ids": ids(7, seed=2), "decoder_input_ids": ids()}
    seen: dict[str, Tensor] = {}
    encoder, decoder = hf.prophetnet.encoder.layers[1], hf.prophetnet.decoder.layers[1]

    def keep(name: str, inner: Any) -> Any:
        return lambda module, args, output: seen.__setitem__(name, inner(args, output))

    handles = [
        encoder.self_attn.query_proj.register_forward_hook(
            keep("encoder.1.attn.hook_q", lambda args, out: out.unflatten(-1, (3, 8)))
        ),
        encoder.self_attn.out_proj.register_forward_hook(
            keep("encoder.1.attn.hook_z", lambda args, out: args[0].unflatten(-1, (3, 8)))
        ),
        encoder.feed_forward.output.register_forward_hook(
            keep("encoder.1.mlp.hook_post", lambda args, out: args[0])
        ),
        decoder.self_attn.register_forward_hook(
            keep("decoder.1.hook_mixer_out", lambda args, out: out[0])
        ),
        decoder.cross_attn.key_proj.register_forward_hook(
            keep("decoder.1.cross_attn.hook_k", lambda args, out: out.unflatten(-1, (3, 8)))
        ),
        decoder.register_forward_hook(keep("decoder.1.hook_resid_post", lambda args, out: out[0])),
    ]
    wanted = hf(**both).logits
    for handle in handles:
        handle.remove()
    logits, cache = lensbridge.load(hf).run_with_cache(
        both["input_ids"], decoder_input_ids=both["decoder_input_ids"]
    )
    assert torch.equal(logits, wanted)
    assert len(seen) == 6
    for name, value in seen.items():
        assert torch.equal(cache[name], value), name
    pattern = cache["decoder.1.cross_attn.hook_pattern"]
    assert pattern.shape == (2, 3, 15, 7)


def test_a_word_for_streams_that_there_is_not_is_refused() -> None:
    wrong = replace(PROPHETNET_DECODER, streams="end_by_end")
    with pytest.raises(ArchitectureMismatchError, match=r"'end_by_end' is not understood.*'flat'"):
        lensbridge.load(built(ProphetNetForCausalLM), architecture=wrong)


def test_attention_of_the_decoder_says_why_it_has_no_pattern() -> None:
    lens = lensbridge.load(built(ProphetNetForCausalLM))
    with pytest.raises(KeyError, match="two kernels"):
        lens.run_with_cache(ids(), names_filter="blocks.0.attn.hook_pattern")
