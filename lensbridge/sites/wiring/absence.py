"""Why a model lacks a point that other models have."""

import re

from lensbridge.native.parts import BlockPart, ResolvedModel

_NOT_PROJECTED = re.compile(r"blocks\.\{i\}\.(attn\.hook_[qk]|hook_[qkv]_input)")


def reason(row: str, native: ResolvedModel) -> str:
    """Why a model has no point of a row of the table."""
    if row.startswith("{point}."):
        return "no SAE with this value is spliced in there"
    block = native.blocks[0]
    kind = type(block.module if block.members is None else block.runner).__name__
    spec = native.architecture.name
    reasons = {
        "hook_pos_embed": "it has no learned absolute positions",
        "hook_logits": f"{type(native.core).__name__} has no head",
        "hook_pooler_out": _no_pooler(native),
        "projector.hook_out": "it has no vision tower",
        "head.hook_hidden": "its head reads the stream or the final norm directly",
        "blocks.{i}.mlp.hook_pre_linear": "its MLP is not gated",
        "blocks.{i}.hook_per_layer_out": "its layers have no per-layer input",
        "blocks.{i}.attn.hook_rel_pos_bias": "it has no relative-position bias",
    }
    if row == "blocks.{i}.hook_resid_mid" and block.residual == "parallel":
        return "attention and MLP run in parallel, so there is no residual between them"
    if row in reasons:
        return reasons[row]
    if block.residual is None and row.startswith("blocks."):
        if not block.has_branches:
            return f"the inside of {kind} is not described ('{spec}'){_because(native, 'residual')}"
        if "resid_mid" in row or "_post.hook" in row or "hook_head_out" in row:
            return (
                f"how the branches of {kind} write to the stream is not described ('{spec}')"
                f"{_because(native, 'residual')}"
            )
    if row == "blocks.{i}.hook_resid_mid" and not any(map(_has_two_branches, native.blocks)):
        return f"'{spec}' describes one branch of {kind}, so there is no residual between two"
    if row.startswith("blocks.{i}.ln2.") and block.residual == "parallel":
        return "attention and MLP read the same norm, which is ln1"
    attn = next((one.attention for one in native.blocks if one.attention is not None), None)
    if _NOT_PROJECTED.fullmatch(row) and attn is not None and attn.q is None:
        return (
            f"no projections make the queries and keys of {type(attn.module).__name__}; "
            "hook_rot_q and hook_rot_k are what its kernel gets"
        )
    if any(word in row for word in _EXPERTS) and "experts" in native.architecture.undescribed:
        return f"the experts of {kind} are not described ('{spec}'){_because(native, 'experts')}"
    for part, what in _PARTS:
        if part in row:
            return f"{kind} has no {what}"
    if "rot_" in row:
        return "its attention has no rotary embedding"
    if "_post.hook" in row or "hook_head_out" in row:
        return f"{kind} has no norm after that branch"
    if "attn" in row and any(b.mixer is not None and b.mixer.feeder for b in native.blocks):
        return "its attention feeds the mixer, and neither reads nor writes the stream alone"
    mixer = next((b.mixer for b in native.blocks if b.mixer is not None), None)
    if "attn" in row and mixer and not {"attn", "mixer"} & native.architecture.undescribed.keys():
        return f"{kind} has {type(mixer.module).__name__} in the place of attention"
    if "attn" in row and not any(b.attn for b in native.blocks):
        return f"{kind} has no attention that '{spec}' describes{_because(native, 'attn')}"
    if "mlp" in row and not any(b.mlp for b in native.blocks):
        return f"{kind} has no MLP that '{spec}' describes{_because(native, 'mlp')}"
    if ".mlp." in row:
        return f"{kind} has no MLP of that form{_because(native, 'mlp')}"
    return f"{kind} has no norm in that place" if "ln" in row else f"{kind} has no such point"


def _has_two_branches(block: BlockPart) -> bool:
    before = (block.attn, block.cross, block.mixer)
    return block.mlp is not None and any(one is not None for one in before)


def _no_pooler(native: ResolvedModel) -> str:
    kind = type(native.core).__name__
    if "pooler" not in native.architecture.undescribed:
        return f"{kind} has no pooler"
    why = _because(native, "pooler")
    return f"the pooler of {kind} is not described ('{native.architecture.name}'){why}"


def _because(native: ResolvedModel, part: str) -> str:
    """The reason that the description gives, if it gives one."""
    told = native.architecture.undescribed.get(part)
    return "" if told is None else f": {told}"


_EXPERTS = (".experts.", "hook_expert_")
_PARTS = (
    ("cross", "cross-attention"),
    ("mixer", "mixer, beside attention or in its place"),
    (".experts.", "experts that can be read one by one"),
    (".shared.", "MLP that all tokens share"),
    ("router", "router"),
    ("hook_expert_", "experts"),
    ("_latent", "latent attention"),
)
