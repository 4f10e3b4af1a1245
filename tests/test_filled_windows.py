"""LED: an encoder that fills its input up to whole windows, and embeds the padding apart."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LEDConfig, LEDForConditionalGeneration, PreTrainedModel

import lensbridge
from lensbridge.hooks.callbacks import Hook

WINDOW = 4


def built() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LEDConfig(
        vocab_size=61,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=20,
        decoder_ffn_dim=28,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        max_encoder_position_embeddings=16,
        max_decoder_position_embeddings=12,
        attention_window=WINDOW,
        init_std=0.3,
    )
    return LEDForConditionalGeneration(config).eval().requires_grad_(False)


def ids(length: int, seed: int) -> Tensor:
    return torch.randint(5, 61, (2, length), generator=torch.Generator().manual_seed(seed))


def both(length: int) -> dict[str, Tensor]:
    return {"input_ids": ids(length, 1), "decoder_input_ids": ids(5, 2)}


def run(lens: Any, length: int) -> Any:
    given = both(length)
    return lens.run_with_cache(given["input_ids"], decoder_input_ids=given["decoder_input_ids"])


@pytest.mark.parametrize("length", [6, 7, 8])
def test_values_are_those_of_the_bare_modules(length: int) -> None:
    hf: Any = built()
    encoder, decoder = hf.led.encoder, hf.led.decoder
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str, module: Any, read: Any) -> Any:
        return module.register_forward_hook(
            lambda _, args, output: seen.setdefault(name, []).append(read(args, output))
        )

    def output(args: Any, out: Any) -> Tensor:
        return out

    def first(args: Any, out: Any) -> Tensor:
        return out[0]

    handles = [
        keep("encoder.hook_embed", encoder.embed_tokens, output),
        keep("encoder.ln_embed.hook_out", encoder.layernorm_embedding, output),
        keep("encoder.1.hook_mixer_out", encoder.layers[1].self_attn, first),
        keep("encoder.1.mlp.hook_post", encoder.layers[1].fc2, lambda args, out: args[0]),
        keep("encoder.1.hook_resid_post", encoder.layers[1], first),
        keep("hook_embed", decoder.embed_tokens, output),
        keep("decoder.1.attn.hook_q", decoder.layers[1].self_attn.q_proj, output),
        keep("decoder.1.cross_attn.hook_v", decoder.layers[1].encoder_attn.v_proj, output),
        keep("decoder.1.hook_resid_post", decoder.layers[1], first),
    ]
    wanted = hf(**both(length)).logits
    for handle in handles:
        handle.remove()
    logits, cache = run(lensbridge.load(hf), length)
    assert torch.equal(logits, wanted)
    assert len(seen["encoder.hook_embed"]) == (1 if length % WINDOW == 0 else 2)
    for name, values in seen.items():
        assert torch.equal(cache[name].flatten(2), values[0]), name
    assert cache["encoder.hook_embed"].shape == (2, length, 24)
    assert cache["encoder.1.hook_resid_post"].shape == (2, 8, 24)


def test_an_edit_of_the_embedding_is_of_the_tokens_and_not_of_the_padding() -> None:
    hf: Any = built()
    calls: list[int] = []

    def zero_first(module: Any, args: Any, output: Tensor) -> Tensor | None:
        calls.append(output.shape[1])
        return torch.zeros_like(output) if len(calls) == 1 else None

    handle = hf.led.encoder.embed_tokens.register_forward_hook(zero_first)
    wanted = hf(**both(6)).logits
    handle.remove()
    assert calls == [6, 2]

    def zero(value: Tensor, hook: Hook) -> Tensor:
        return torch.zeros_like(value)

    given = both(6)
    found = lensbridge.load(hf).run_with_hooks(
        given["input_ids"],
        decoder_input_ids=given["decoder_input_ids"],
        fwd_hooks=[("encoder.hook_embed", zero)],
    )
    assert torch.equal(found, wanted)
    assert not torch.equal(found, hf(**given).logits)
