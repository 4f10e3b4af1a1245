"""FSMT: positions before the batch in the layers of encoder and decoder, and nowhere else."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import FSMTConfig, FSMTForConditionalGeneration, PreTrainedModel

import lensbridge
from lensbridge.hooks.callbacks import Hook


def built(**fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "src_vocab_size": 53,
        "tgt_vocab_size": 61,
        "d_model": 24,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 20,
        "decoder_ffn_dim": 28,
        "encoder_attention_heads": 3,
        "decoder_attention_heads": 3,
        "max_position_embeddings": 16,
        "init_std": 0.3,
        "use_cache": False,
    }
    config = FSMTConfig(**{**sizes, **fields})
    return FSMTForConditionalGeneration(config).eval().requires_grad_(False)


def both() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(5, 53, (2, 7), generator=draw),
        "decoder_input_ids": torch.randint(5, 61, (2, 5), generator=draw),
    }


def run(lens: Any, **more: Any) -> Any:
    given = both()
    ids = given.pop("input_ids")
    return lens.run_with_hooks(ids, **given, **more)


def turned(value: Tensor) -> Tensor:
    return value.transpose(0, 1)


def heads(value: Tensor) -> Tensor:
    return turned(value).unflatten(-1, (3, 8))


@pytest.mark.parametrize("scaled", [True, False])
def test_values_are_those_of_the_bare_modules(scaled: bool) -> None:
    hf: Any = built(scale_embedding=scaled)
    encoder, decoder = hf.model.encoder, hf.model.decoder
    inner, outer = encoder.layers[1], decoder.layers[1]
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: Any, read: Any) -> Any:
        return module.register_forward_hook(
            lambda _, args, output: seen.__setitem__(name, read(args, output))
        )

    scale = 24**0.5 if scaled else 1.0
    handles = [
        keep("encoder.hook_embed", encoder.embed_tokens, lambda args, out: out * scale),
        keep("hook_embed", decoder.embed_tokens, lambda args, out: out * scale),
        keep("hook_pos_embed", decoder.embed_positions, lambda args, out: out),
        keep("encoder.1.attn.hook_k", inner.self_attn.k_proj, lambda args, out: heads(out)),
        keep("encoder.1.attn.hook_z", inner.self_attn.out_proj, lambda args, out: heads(args[0])),
        keep("encoder.1.mlp.hook_post", inner.fc2, lambda args, out: turned(args[0])),
        keep("encoder.1.hook_resid_post", inner, lambda args, out: turned(out[0])),
        keep("decoder.1.hook_resid_pre", outer, lambda args, out: turned(args[0])),
        keep("decoder.1.attn.hook_v", outer.self_attn.v_proj, lambda args, out: heads(out)),
        keep("decoder.1.cross_attn.hook_v", outer.encoder_attn.v_proj, lambda a, out: heads(out)),
        keep("decoder.1.hook_resid_post", outer, lambda args, out: turned(out[0])),
    ]
    raw = hf(**both(), output_attentions=True)
    for handle in handles:
        handle.remove()
    given = both()
    logits, cache = lensbridge.load(hf).run_with_cache(
        given["input_ids"], decoder_input_ids=given["decoder_input_ids"]
    )
    seen["hook_logits"] = raw.logits
    for i in range(2):
        seen[f"encoder.{i}.attn.hook_pattern"] = raw.encoder_attentions[i]
        seen[f"decoder.{i}.attn.hook_pattern"] = raw.decoder_attentions[i]
        seen[f"decoder.{i}.cross_attn.hook_pattern"] = raw.cross_attentions[i]
    assert torch.equal(logits, raw.logits)
    for name, value in seen.items():
        assert torch.equal(cache[name], value), name


EDITS: dict[str, tuple[str, bool]] = {
    "encoder.hook_embed": ("model.encoder.embed_tokens", False),
    "encoder.1.attn.hook_q": ("model.encoder.layers.1.self_attn.q_proj", True),
    "decoder.0.cross_attn.hook_k": ("model.decoder.layers.0.encoder_attn.k_proj", True),
    "decoder.1.mlp.hook_pre": ("model.decoder.layers.1.fc1", True),
}
"""A point, the module whose output it is, and whether positions are first there."""


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_one_position_of_one_text_is_that_of_the_module(name: str) -> None:
    hf: Any = built(scale_embedding=False)
    path, first = EDITS[name]

    def zeroed(module: Any, args: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        (turned(changed) if first else changed)[1, 3] = 0.0
        return changed

    handle = hf.get_submodule(path).register_forward_hook(zeroed)
    wanted = hf(**both()).logits
    handle.remove()

    def edit(value: Tensor, hook: Hook) -> None:
        value[1, 3] = 0.0

    found = run(lensbridge.load(hf), fwd_hooks=[(name, edit)])
    assert torch.equal(found, wanted)
    clean = hf(**both()).logits
    assert torch.equal(found[0], clean[0])
    assert not torch.equal(found[1], clean[1])


def test_an_edited_pattern_mixes_the_values_as_it_says() -> None:
    hf: Any = built()
    attn = hf.model.decoder.layers[1].self_attn
    seen: list[Tensor] = []
    handle = attn.v_proj.register_forward_hook(lambda m, args, out: seen.append(out))
    hf(**both())
    handle.remove()

    def first_only(module: Any, args: Any) -> tuple[Tensor]:
        return (seen[0][:1].expand_as(args[0]).contiguous(),)

    handle = attn.out_proj.register_forward_pre_hook(first_only)
    wanted = hf(**both()).logits
    handle.remove()

    def attend_to_first(pattern: Tensor, hook: Hook) -> Tensor:
        new = torch.zeros_like(pattern)
        new[..., 0] = 1.0
        return new

    hooks = [("decoder.1.attn.hook_pattern", attend_to_first)]
    found = run(lensbridge.load(hf), fwd_hooks=hooks)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, hf(**both()).logits)
