"""Weights: the values at points follow from earlier points and the weights by name."""

import torch
from torch import Tensor, nn

from lensbridge.conformance.attention import Heads, every
from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.mlp import mlp_input
from lensbridge.conformance.native_calls import watch_calls
from lensbridge.conformance.passes import Block
from lensbridge.conformance.rows import at_tokens
from lensbridge.conformance.subject import Subject
from lensbridge.native.linear import fetch
from lensbridge.native.parts import AttentionPart, BlockPart, LatentPart, MLPPart, NormSlot


def attention_input(block: Block, part: BlockPart) -> str:
    """The point that attention's projections read."""
    normed = part.residual != "post_norm" and "ln1.hook_out" in block
    unread = "hook_attn_in" if part.residual is None else "hook_resid_pre"
    return "ln1.hook_out" if normed else unread


def check_projections_make_q_k_v(subject: Subject) -> None:
    """q, k and v are the norm's output times W plus b, through the norms of q and k."""
    for heads in every(subject):
        if heads.part.latent is not None:
            own = attention_input(heads.block, subject.parts[heads.block.at])
            _hold_latent(subject, heads, own)
        else:
            own = _own_input(heads.block, heads.sub, subject.parts[heads.block.at])
            for role in "qkv":
                crossed = heads.sub == "cross_attn" and role != "q"
                given = encoder_end(subject) if crossed else heads.block.name(own)
                if role in heads and given is not None:
                    _hold_projection(subject, heads, role, given)


def _hold_latent(subject: Subject, heads: Heads, given: str) -> None:
    """Queries come from the stream or from their latent; keys and values from theirs."""
    part, latent = heads.part, heads.part.latent
    assert latent is not None
    x = heads.block[given]
    with torch.no_grad():
        x = x if latent.q_down is None else latent.q_down.module(x)
        made = x if latent.q_norm is None else latent.q_norm.module(x)
        x = torch.cat([made, x], dim=-1) if latent.q_reads_latent else made
        query = part.roles["q"]
        fits = x.shape[-1] == query.linear.n_in
        subject.expect.holds(heads.name("q"), fits, f"its projection does not read {given}")
        queries = query.layout.split(query.linear.module(x)).clone() * query.scale
    _hold_up_projection(subject, heads, latent)
    subject.expect.close(heads.name("q"), heads["q"], queries, f"made from {given}")


def _hold_up_projection(subject: Subject, heads: Heads, latent: LatentPart) -> None:
    """Values and each head's own part of the keys are made of the normed latent."""
    with torch.no_grad():
        normed = latent.kv_norm.module(heads["kv_latent"]) * latent.kv_scale
        whole = latent.kv_up.module(normed)
    for letter, role in heads.part.roles.items():
        if letter != "q":
            made = role.layout.split(whole)
            own = heads[letter][..., : made.shape[-1]]
            words = "made of hook_kv_latent, through its norm and multiplier"
            subject.expect.close(heads.name(letter), own, made, words)


def _own_input(block: Block, sub: str, part: BlockPart) -> str:
    if sub == "attn":
        return attention_input(block, part)
    normed = part.residual != "post_norm" and "ln_cross.hook_out" in block
    return "ln_cross.hook_out" if normed else "hook_resid_mid"


def encoder_end(subject: Subject) -> str | None:
    """The point from which cross-attention makes its keys and values."""
    stack = subject.stacks.get("encoder.")
    if stack is None:
        return None
    normed = "encoder.ln_final.hook_out"
    last = f"{stack.prefix}.{len(stack.blocks) - 1}.hook_resid_post"
    return normed if normed in subject.clean.values else last


def _hold_projection(subject: Subject, heads: Heads, role: str, given: str) -> None:
    at = f"{heads.block.at}{heads.sub}."
    weight = subject.weight(f"{at}W_{role.upper()}")
    if weight is None:
        return
    crossed = given == encoder_end(subject)
    read = subject.clean[given]
    read = at_tokens(subject, "encoder.", read) if crossed else read
    wanted = torch.einsum("bpm,hmd->bphd", read, weight)
    bias = subject.weight(f"{at}b_{role.upper()}")
    bias = torch.zeros_like(wanted[0, 0]) if bias is None else bias
    norm = {"q": heads.part.q_norm, "k": heads.part.k_norm, "v": heads.part.v_norm}[role]
    words = f"{given} @ W_{role.upper()}"
    if norm is not None:
        made = _clipped(heads.part, _normed(norm, heads.part, wanted + bias))
        subject.expect.close(heads.name(role), heads[role], made, f"norm({words} + bias)")
    else:
        made = _clipped(heads.part, wanted + bias)
        subject.expect.close(heads.name(role), heads[role], made, f"{words} + bias")


def _clipped(part: AttentionPart, x: Tensor) -> Tensor:
    return x if part.clip is None else x.clamp(-part.clip, part.clip)


def _normed(norm: nn.Module, part: AttentionPart, raw: Tensor) -> Tensor:
    with torch.no_grad():
        if part.qk_norm_axes == "flat":
            return norm(raw.flatten(-2)).view(raw.shape)
        if part.qk_norm_axes == "heads_first":
            return norm(raw.transpose(1, 2)).transpose(1, 2)
        return norm(raw)


def check_output_projection_writes_attn_out(subject: Subject) -> None:
    """What heads write is z times W_O, up to the norm and the multiplier after attention."""
    found = [heads for heads in every(subject, "z", "result") if not heads.part.gated]
    if not found:
        raise NotApplicable("z is gated before it is projected")
    for heads in found:
        slot = heads.post_norm
        weight = subject.weight(f"{heads.block.at}{heads.sub}.W_O")
        if weight is not None and f"{slot}.hook_out" not in heads.block:
            wanted = torch.einsum("bphd,hdm->bphm", heads["z"], weight)
            wanted = wanted * heads.part.writer.scale.value(wanted)
            subject.expect.close(heads.name("result"), heads["result"], wanted, "z @ W_O by head")
        elif f"{slot}.hook_scale" in heads.block and weight is not None:
            _hold_behind_norm(subject, heads, slot, weight)


def _hold_behind_norm(subject: Subject, heads: Heads, slot: NormSlot, weight: Tensor) -> None:
    """The norm after attention reads the output projection."""
    out = torch.einsum("bphd,hdm->bpm", heads["z"], weight)
    bias = subject.weight(f"{heads.block.at}{heads.sub}.b_O")
    _hold_norm_reads(subject, heads.block, slot, out if bias is None else out + bias, "z @ W_O")


def _hold_norm_reads(
    subject: Subject, block: Block, slot: NormSlot, wanted: Tensor, words: str
) -> None:
    norm = subject.parts[block.at].norms[slot]
    wanted = wanted - wanted.mean(-1, keepdim=True) if norm.kind == "LN" else wanted
    read = block[f"{slot}.hook_normalized"] * block[f"{slot}.hook_scale"]
    subject.expect.proportional(f"what {block.name(slot)} reads", read, wanted, words)


def check_mlp_weights_make_neurons(subject: Subject) -> None:
    """pre and pre_linear are the input of the MLP times its weights."""
    for block in subject.clean.having("mlp.hook_pre"):
        given = mlp_input(block, subject.parts[block.at])
        gated = "mlp.hook_pre_linear" in block
        pairs = {"mlp.hook_pre": "gate" if gated else "in", "mlp.hook_pre_linear": "in"}
        for point, name in pairs.items():
            weight = subject.weight(f"{block.at}mlp.W_{name}")
            if point in block and weight is not None:
                bias = subject.weight(f"{block.at}mlp.b_{name}")
                wanted = _shifted(subject.parts[block.at], block[given]) @ weight
                wanted = wanted if bias is None else wanted + bias
                words = f"{given} @ W_{name} + b_{name}"
                subject.expect.close(block.name(point), block[point], wanted, words)


def _shifted(part: BlockPart, given: Tensor) -> Tensor:
    """What the first projections of an MLP read: a mix with the position before, in some."""
    shift = part.mlp.token_shift if isinstance(part.mlp, MLPPart) else None
    if shift is None:
        return given
    share = fetch(*shift).detach().view(-1).to(given)
    before = torch.cat([torch.zeros_like(given[:, :1]), given[:, :-1]], dim=1)
    return given * share + before * (1 - share)


def check_down_projection_writes_mlp_out(subject: Subject) -> None:
    """mlp_out is the neurons times W_out plus b_out, up to the norm and multiplier after it."""
    for block in subject.clean.having("mlp.hook_post"):
        shown = "no module gives it alone: say in written_by which one does"
        subject.expect.holds(block.name("hook_mlp_out"), "hook_mlp_out" in block, shown)
        weight = subject.weight(f"{block.at}mlp.W_out")
        if weight is None:
            continue
        bias = subject.weight(f"{block.at}mlp.b_out")
        part = subject.parts[block.at].mlp
        neurons = block["mlp.hook_post"]
        if isinstance(part, MLPPart) and part.inner_norm is not None:
            with torch.no_grad():
                neurons = part.inner_norm(neurons)
        wanted = neurons @ weight
        wanted = wanted if bias is None else wanted + bias
        if "ln2_post.hook_scale" in block:
            _hold_norm_reads(subject, block, "ln2_post", wanted, "post @ W_out + b_out")
            wanted = block["ln2_post.hook_out"]
        if isinstance(part, MLPPart) and part.out_gate is not None:
            wanted = wanted * _gates(subject, part.out_gate, wanted)
        if part is not None and len(part.writer.modules) == 1:
            wanted = wanted * part.writer.scale.value(wanted)
            added = block["hook_mlp_out"]
            subject.expect.close(block.name("hook_mlp_out"), added, wanted, "post @ W_out + b_out")


def _gates(subject: Subject, gate: nn.Module, like: Tensor) -> Tensor:
    """The sigmoid of what a projection gives, in the model without a lens."""
    found: list[Tensor] = []
    watch_calls(subject, [gate], lambda call: found.append(call.output))
    given = [one.sigmoid() for one in found if one.shape == like.shape]
    subject.expect.holds("out_gate", len(given) == 1, "it does not give one value for each channel")
    return given[0]


def check_post_norms_are_what_is_added(subject: Subject) -> None:
    """What a branch adds is its norm's output, up to the branch's multiplier."""
    slots = {
        "ln1_post": "hook_attn_out",
        "ln_cross_post": "hook_cross_attn_out",
        "ln2_post": "hook_mlp_out",
    }
    for block in subject.clean.blocks.values():
        for slot, added in slots.items():
            if f"{slot}.hook_out" in block and added in block:
                subject.expect.proportional(
                    block.name(added), block[added], block[f"{slot}.hook_out"], f"{slot}.hook_out"
                )


def check_embeddings_are_rows(subject: Subject) -> None:
    """The embedding of a token is its row of W_E, up to the embedding's scale."""
    pairs = [(at, subject.weight(f"{at}embed.W_E"), subject.ids_of(at)) for at in subject.stacks]
    for at, table, ids in pairs:
        if table is not None and ids is not None and f"{at}hook_embed" in subject.clean.values:
            embed = at_tokens(subject, at, subject.clean[f"{at}hook_embed"])
            subject.expect.proportional(f"{at}hook_embed", embed, table[ids], "W_E[tokens]")
    if all(table is None or ids is None for _, table, ids in pairs):
        raise NotApplicable("no table of embeddings")


def check_positions_are_rows(subject: Subject) -> None:
    """The positions' embeddings are consecutive rows of W_pos."""
    table, found = subject.weight("pos_embed.W_pos"), subject.clean.values.get("hook_pos_embed")
    if table is None or found is None:
        raise NotApplicable("no table of positions")
    found = at_tokens(subject, "", found)
    starts = (table == found[0, 0]).all(-1).nonzero().flatten().tolist()
    subject.expect.holds("hook_pos_embed", bool(starts), "position 0 is no row of W_pos")
    rows = table[starts[0] : starts[0] + found.shape[1]]
    rows = rows.expand(len(found), *rows.shape)
    subject.expect.close("hook_pos_embed", found, rows, "consecutive rows of W_pos")


def check_head_makes_logits(subject: Subject) -> None:
    """Logits are the input of the head times W_U plus b_U, scaled and capped as described."""
    run = subject.clean
    stack = subject.model.native.stacks[0]
    last = f"{stack.prefix}.{len(stack.blocks) - 1}.hook_resid_post"
    places = ("head.hook_hidden", f"{stack.prefix}.ln_final.hook_out", "ln_final.hook_out", last)
    before = next((point for point in places if point in run.values), None)
    weight = subject.weight("unembed.W_U")
    if before is None or weight is None or weight.shape[0] != run[before].shape[-1]:
        raise NotApplicable("what the head reads is not a point")
    bias = subject.weight("unembed.b_U")
    if run["hook_logits"].ndim != 3:
        raise NotApplicable("the head reads one vector for each sequence")
    read = run[before]
    if stack.end_to_end:
        width = run["hook_logits"].shape[1]
        read = read[:, width : 2 * width]
    if run["hook_logits"].shape[1] < read.shape[1]:
        read = at_tokens(subject, "", read)
    raw = read * subject.model.native.head_scale @ weight
    raw = raw if bias is None else raw + bias
    native, logits = subject.model.native, run["hook_logits"]
    if logits.ndim != raw.ndim:
        raise NotApplicable("the head reads one position, or a mean")
    subject.expect.holds("hook_logits", logits.shape == raw.shape, "its shape is not the head's")
    made, cap = raw * native.logit_scale, native.logit_softcap
    made = made if cap is None else cap * (made / cap).tanh()
    subject.expect.close("hook_logits", logits, made, f"{before} @ W_U + b_U, scaled and capped")
