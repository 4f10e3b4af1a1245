"""Names that are looked for on a part of a model, such as `model.blocks[1].attn`."""

from lensbridge.elsewhere.hinted import Instead, Table, entries

_READ: Instead = [
    ("model.run_with_cache(input, ('resid_post', 1))", "reads activations: parts have weights"),
]
_EDIT: Instead = [
    (
        "model.run_with_hooks(input, fwd_hooks=[('blocks.1.hook_resid_post', fn)])",
        "runs the model with fn(activation, hook) at a point",
    ),
]


def _weight(name: str) -> Instead:
    return [(f"model.blocks[1].{name}", "is the weight")]


VIEW: Table = {
    **entries(
        ("output", "outputs", "input", "inputs", "source", "hidden_states", "attentions"), _READ
    ),
    **entries(("register_forward_hook", "register_forward_pre_hook", "add_hook"), _EDIT),
    "q_proj": _weight("attn.W_Q"),
    "k_proj": _weight("attn.W_K"),
    "v_proj": _weight("attn.W_V"),
    "o_proj": _weight("attn.W_O"),
    "up_proj": _weight("mlp.W_in"),
    "down_proj": _weight("mlp.W_out"),
    "c_attn": _weight("attn.W_Q"),
    "c_fc": _weight("mlp.W_in"),
    **entries(("attention", "self_attention"), _weight("attn.W_Q")),
}
"""What to write for names of nnsight, PyTorch and transformers' modules."""
