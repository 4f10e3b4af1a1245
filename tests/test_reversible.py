"""Reformer: layers that take and give two streams."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, ReformerConfig, ReformerModelWithLMHead

import lensbridge
from lensbridge.errors import InputError
from lensbridge.hooks.callbacks import Hook


def built(kinds: tuple[str, ...] = ("local", "lsh"), chunk: int = 4) -> PreTrainedModel:
    torch.manual_seed(0)
    config = ReformerConfig(
        vocab_size=61,
        hidden_size=24,
        num_attention_heads=3,
        attention_head_size=8,
        feed_forward_size=20,
        attn_layers=list(kinds),
        num_hidden_layers=len(kinds),
        axial_pos_shape=(4, 8),
        axial_pos_embds_dim=(12, 12),
        max_position_embeddings=32,
        lsh_attn_chunk_length=chunk,
        local_attn_chunk_length=chunk,
        num_buckets=2,
        num_hashes=1,
        hash_seed=5,
        is_decoder=True,
        initializer_range=0.3,
    )
    return ReformerModelWithLMHead(config).eval().requires_grad_(False)


def ids(length: int = 8) -> Tensor:
    return torch.randint(5, 61, (2, length), generator=torch.Generator().manual_seed(1))


def raw_layer(hf: PreTrainedModel, i: int) -> dict[str, Tensor]:
    """What plain hooks see in one layer."""
    seen: dict[str, Tensor] = {}
    layer = hf.reformer.encoder.layers[i]

    def streams(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen["hook_resid_pre"] = torch.stack([kwargs["prev_attn_output"], kwargs["hidden_states"]])
        seen["hook_resid_post"] = torch.stack([output.attn_output, output.hidden_states])

    def keep(name: str) -> Any:
        return lambda module, args, output: seen.__setitem__(name, output)

    def between(module: Any, args: Any, output: Any) -> None:
        seen["hook_resid_mid"] = args[0]

    handles = [
        layer.register_forward_hook(streams, with_kwargs=True),
        layer.attention.output.register_forward_hook(keep("hook_mixer_out")),
        layer.attention.layer_norm.register_forward_hook(keep("ln1.hook_out")),
        layer.feed_forward.register_forward_hook(keep("hook_mlp_out")),
        layer.feed_forward.register_forward_hook(between),
        layer.feed_forward.dense.dense.register_forward_hook(keep("mlp.hook_pre")),
        layer.feed_forward.dense.register_forward_hook(keep("mlp.hook_post")),
    ]
    hf(ids())
    for handle in handles:
        handle.remove()
    return seen


def test_both_streams_are_read_with_chunked_attention() -> None:
    hf = built()
    logits, cache = lensbridge.load(hf).run_with_cache(ids())
    assert torch.equal(logits, hf(ids()).logits)
    for i in range(2):
        raw = raw_layer(hf, i)
        assert len(raw) == 8
        for point, value in raw.items():
            assert torch.equal(cache[f"blocks.{i}.{point}"], value), point


def test_streams_are_what_branches_add_to() -> None:
    _, cache = lensbridge.load(built()).run_with_cache(ids())
    first, second = cache["resid_pre", 1]
    assert torch.equal(first + cache["mixer_out", 1], cache["resid_mid", 1])
    wanted = torch.stack([cache["resid_mid", 1], second + cache["mlp_out", 1]])
    assert torch.equal(cache["resid_post", 1], wanted)
    embedded = cache["hook_embed"] + cache["hook_pos_embed"]
    assert torch.equal(cache["resid_pre", 0], torch.stack([embedded, embedded]))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("point", ["blocks.1.hook_resid_pre", "blocks.0.hook_resid_post"])
def test_an_edit_of_one_stream_is_that_of_an_argument(which: int, point: str) -> None:
    hf, name = built(), ("prev_attn_output", "hidden_states")[which]

    def zeroed(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, name: torch.zeros_like(kwargs[name])}

    layer = hf.reformer.encoder.layers[1]
    handle = layer.register_forward_pre_hook(zeroed, with_kwargs=True)
    wanted = hf(ids()).logits
    handle.remove()

    def edit(streams: Tensor, hook: Hook) -> None:
        streams[which] = 0.0

    found = lensbridge.load(hf).run_with_hooks(ids(), fwd_hooks=[(point, edit)])
    assert torch.equal(found, wanted)
    assert not torch.equal(found, hf(ids()).logits)


def test_an_edit_between_the_branches_reaches_the_mlp_and_the_first_stream() -> None:
    hf, lens = (hf := built(("local",))), lensbridge.load(hf)
    layer, head = hf.reformer.encoder.layers[0], hf.lm_head.decoder

    def zero(stream: Tensor, hook: Hook) -> Tensor:
        return torch.zeros_like(stream)

    found = lens.run_with_hooks(ids(), fwd_hooks=[("blocks.0.hook_resid_mid", zero)])
    second = hf.reformer.embeddings(ids())
    first = torch.zeros_like(second)
    streams = torch.cat([first, second + layer.feed_forward(first)], dim=-1)
    assert torch.equal(found, head(hf.reformer.encoder.layer_norm(streams)))


def test_positions_that_the_model_adds_are_inside_its_layers() -> None:
    hf = built()
    logits, cache = lensbridge.load(hf).run_with_cache(ids(7))
    assert torch.equal(logits, hf(ids(7)).logits)
    assert logits.shape[1] == 7
    assert cache["resid_post", 1].shape == (2, 2, 8, 24)  # a multiple of the chunks


def test_runs_between_layers_are_refused() -> None:
    lens = lensbridge.load(built())
    with pytest.raises(InputError, match="two streams"):
        lens(ids(), stop_at_layer=1)
    with pytest.raises(InputError, match="two streams"):
        lens(torch.zeros(2, 8, 24), start_at_layer=1)


def test_attention_says_why_it_has_no_pattern() -> None:
    with pytest.raises(KeyError, match="chunks of positions"):
        lensbridge.load(built()).run_with_cache(ids(), names_filter="blocks.0.attn.hook_pattern")
