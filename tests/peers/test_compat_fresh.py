"""Models that are made from a config: TransformerLens's weights go in, its activations come out."""

from typing import Any

import pytest
import torch
import transformer_lens as theirs

import lensbridge.compat.transformer_lens as ours
from lensbridge.compat.transformer_lens.initial_values import MODES

pytestmark = pytest.mark.peers

SMALL = {
    "n_layers": 2, "d_model": 24, "n_ctx": 16, "d_head": 6, "d_vocab": 40, "device": "cpu",
    "act_fn": "relu", "init_weights": True, "seed": 0,
}  # fmt: skip
LLAMA = {
    "positional_embedding_type": "rotary", "normalization_type": "RMS", "gated_mlp": True,
    "act_fn": "silu", "final_rms": True,
}  # fmt: skip
NTK = {
    "use_NTK_by_parts_rope": True, "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_by_parts_high_freq_factor": 3.0, "NTK_by_parts_factor": 7.0, "NTK_original_ctx_len": 12,
}  # fmt: skip
FIELDS = (
    "normalization_type", "attn_only", "positional_embedding_type", "attention_dir", "attn_types",
    "use_qk_norm", "use_normalization_before_and_after", "use_local_attn", "attn_scale",
    "use_attn_scale", "attn_scores_soft_cap", "output_logits_soft_cap", "n_key_value_heads",
    "final_rms", "gated_mlp", "parallel_attn_mlp", "rotary_dim", "rotary_base", "post_embedding_ln",
    *(name for name in NTK),
)  # fmt: skip
CONFIGS = {
    "as GPT-2": {"act_fn": "gelu_new"},
    "folded": {"act_fn": "gelu", "normalization_type": "LNPre", "d_vocab_out": 13},
    "course": {
        "attn_only": True, "act_fn": None, "normalization_type": None,
        "positional_embedding_type": "shortformer",
    },
    "attention with norms": {"attn_only": True, "act_fn": None, "normalization_type": "LNPre"},
    "modular addition": {"normalization_type": None, "n_layers": 1, "d_vocab_out": 11, "d_mlp": 50},
    "brackets": {"attention_dir": "bidirectional", "d_vocab_out": 2, "n_heads": 2, "d_head": 12},
    "softmax units": {"act_fn": "solu", "n_heads": 2},
    "scaled": {"attn_scale": 3.0},
    "rotary": {"positional_embedding_type": "rotary", "parallel_attn_mlp": True, "act_fn": "gelu"},
    "llama": LLAMA,
    "grouped": {"n_key_value_heads": 2, "act_fn": "silu"},
    "grouped attention": {"n_key_value_heads": 2, "attn_only": True, "act_fn": None},
    "llama 3": {**LLAMA, "n_key_value_heads": 2, **NTK},
    "qwen 3": {**LLAMA, "n_key_value_heads": 2, "use_qk_norm": True},
    "gemma 2": {
        **LLAMA, "act_fn": "gelu_pytorch_tanh", "n_key_value_heads": 2, "attn_scale": 3.0,
        "use_normalization_before_and_after": True, "attn_scores_soft_cap": 2.0,
        "output_logits_soft_cap": 3.0, "use_local_attn": True, "window_size": 4,
        "attn_types": ["global", "local"],
    },
}  # fmt: skip


def pair(name: str, **more: Any) -> tuple[Any, Any]:
    """Both, with the same random weights: no gain is one and no bias zero."""
    cfg = {**SMALL, **CONFIGS[name], **more}
    known = {one: value for one, value in cfg.items() if value is not None or "norm" in one}
    other = theirs.HookedTransformer(theirs.HookedTransformerConfig(**known))
    torch.manual_seed(1)
    for one, parameter in other.named_parameters():
        if not (cfg.get("gated_mlp") and one.endswith("b_in")):  # no HuggingFace model has it
            parameter.data += 0.3 * torch.randn_like(parameter)
    mine = ours.HookedTransformer(ours.HookedTransformerConfig(**cfg))
    mine.load_state_dict(other.state_dict())
    return mine, other


@pytest.mark.parametrize("name", CONFIGS)
def test_a_state_goes_in_and_every_activation_comes_out(name: str) -> None:
    mine, other = pair(name)
    ids = torch.randint(40, (3, 9))
    (logits, cache), (wanted, known) = (one.run_with_cache(ids) for one in (mine, other))
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    elsewhere = {"unembed.hook_in"} if mine.cfg.normalization_type is None else set()
    elsewhere |= {one for one in known if "q_norm." in one or "k_norm." in one}
    assert set(known) - elsewhere == set(cache)
    capped = {"unembed.hook_out"} if mine.cfg.output_logits_soft_cap > 0 else set()
    normed = {one for one in known if mine.cfg.use_qk_norm and one.endswith(("hook_q", "hook_k"))}
    for one in set(known) - elsewhere - capped - normed:
        torch.testing.assert_close(cache[one], known[one], atol=1e-4, rtol=1e-4)
    for one in FIELDS:
        assert vars(mine.cfg)[one] == pytest.approx(vars(other.cfg)[one]), one
    if name != "brackets" and mine.cfg.d_vocab_out == mine.cfg.d_vocab:
        for kind in ("Q", "K", "V"):
            scores = [one.all_composition_scores(kind) for one in (mine, other)]
            torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", ["standard", "shortformer"])
def test_keys_of_each_query_head(positions: str) -> None:
    both = pair("grouped", positional_embedding_type=positions)
    ids, found = torch.randint(40, (3, 9)), []

    def halve(value: Any, hook: Any) -> Any:
        value[:, :, 3] /= 2
        return value

    for one in both:
        one.set_use_split_qkv_input(True)
        one.set_ungroup_grouped_query_attention(True)
        names = [f"blocks.1.{name}" for name in ("hook_k_input", "hook_v_input", "attn.hook_k")]
        edited = [one.run_with_hooks(ids, fwd_hooks=[(name, halve)]) for name in names]
        keys = one.run_with_cache(ids)[1]["k", 0]
        one.set_ungroup_grouped_query_attention(False)
        one.set_use_split_qkv_input(False)
        found.append(torch.stack([one(ids), *edited]))
        assert keys.shape == (3, 9, 4, 6)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["as GPT-2", "folded", "course", "gemma 2"])
def test_new_weights_are_the_same_numbers(name: str, mode: str, seed: int | None) -> None:
    cfg = {**SMALL, **CONFIGS[name], "init_mode": mode, "seed": seed}
    known = {one: value for one, value in cfg.items() if value is not None or "norm" in one}
    states, after = [], []
    for library in (ours, theirs):
        torch.manual_seed(1)
        made = library.HookedTransformerConfig(**known)
        states.append(library.HookedTransformer(made).state_dict())
        after.append(torch.rand(3))
    assert torch.equal(*after)
    assert all(torch.equal(one, states[1][weight]) for weight, one in states[0].items())


@pytest.mark.parametrize("name", ["course", "modular addition", "brackets"])
def test_edits(name: str) -> None:
    def halve(value: Any, hook: Any) -> Any:
        return value / 2

    both, ids = pair(name), torch.randint(40, (3, 9))
    for point in ("hook_pos_embed", "blocks.0.attn.hook_q", "blocks.0.attn.hook_pattern"):
        edited = [one.run_with_hooks(ids, fwd_hooks=[(point, halve)]) for one in both]
        torch.testing.assert_close(*edited, atol=1e-4, rtol=1e-4)
    for one in both:
        one.set_use_split_qkv_input(True)
    for point in ("blocks.0.hook_q_input", "blocks.0.hook_k_input", "blocks.0.hook_v_input"):
        edited = [one.run_with_hooks(ids, fwd_hooks=[(point, halve)]) for one in both]
        torch.testing.assert_close(*edited, atol=1e-4, rtol=1e-4)
