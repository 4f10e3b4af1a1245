"""The stream before the first layer is made of the embeddings."""

import torch
from torch import Tensor

from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.native_calls import NativeCall, inner_modules, watch_calls
from lensbridge.conformance.rows import at_tokens
from lensbridge.conformance.subject import Subject
from lensbridge.errors import ConformanceError


def check_embeddings_make_the_stream(subject: Subject) -> None:
    """Block 0 reads the token and position embeddings, after the embeddings' norm."""
    if not any(f"{at}hook_embed" in subject.names for at in subject.stacks):
        raise NotApplicable("no stack has embeddings")
    if subject.merges_pictures and "vision.hook_embed" not in subject.names:
        raise NotApplicable("images replace some of the embeddings")
    for at, stack in subject.stacks.items():
        first = f"{stack.prefix}.0.hook_resid_pre"
        if f"{at}hook_embed" not in subject.clean.values:
            continue
        if at == "" and subject.merges_pictures:
            _hold_text(subject, first)
        else:
            _hold_embeddings(subject, at, first)


def _hold_text(subject: Subject, first: str) -> None:
    """Where no image is, block 0 reads the embeddings of the tokens."""
    stream, embed = subject.clean[first], subject.clean["hook_embed"]
    if embed.shape != stream.shape:  # the images are before the text
        _hold_sum(subject, "", first)
        return
    text = subject.tokens != subject.image_token
    words = "hook_embed, where no image is"
    subject.expect.close(first, stream[text], embed[text], words)


def _hold_embeddings(subject: Subject, at: str, first: str) -> None:
    if at or not subject.model.architecture.embed_mixed:
        _hold_sum(subject, at, first)
        return
    try:
        _hold_sum(subject, at, first)
    except ConformanceError:
        return
    subject.expect.holds("embed_mixed", False, "the embeddings are the stream without mixing")


def _hold_sum(subject: Subject, at: str, first: str) -> None:
    run = subject.clean
    stream, embed = run[first], run[f"{at}hook_embed"]
    if subject.stacks[at].blocks[0].pair is not None:
        subject.expect.close(f"{first}[0]", stream[0], stream[1], "the second stream")
        stream = stream[1]
    width = embed.shape[1] if subject.stacks[at].end_to_end else None
    stream = stream[:, -embed.shape[1] :] if subject.merges_pictures else stream[:, :width]
    longer = embed.shape[-1] == stream.shape[-1] and embed.shape[1] < stream.shape[1]
    if longer:
        stream = at_tokens(subject, at, stream)
    if embed.shape != stream.shape:
        stream = _before_projection(subject, stream, embed)
    positions = run.values.get(f"{at}hook_pos_embed", torch.zeros_like(embed))
    positions = at_tokens(subject, at, positions) if longer else positions
    if f"{at}ln_embed.hook_out" not in run.values:
        rest = stream - embed - positions
        _hold_rest(subject, f"{first} holds", rest, "hook_embed + hook_pos_embed")
        _hold_no_module_gives(subject, at, rest)
        return
    normed = run[f"{at}ln_embed.hook_out"][:, :width]
    read = run[f"{at}ln_embed.hook_normalized"] * run[f"{at}ln_embed.hook_scale"]
    read = read[:, :width]
    if longer:
        normed, read = at_tokens(subject, at, normed), at_tokens(subject, at, read)
    if subject.expect.are_close(stream, normed):
        rest = _uncentered(read) - _uncentered(embed + positions)
        _hold_rest(subject, f"{at}ln_embed reads", rest, "hook_embed + hook_pos_embed")
        return
    subject.expect.close(first, stream, normed + positions, "ln_embed.hook_out")
    rest = _uncentered(read) - _uncentered(embed)
    _hold_rest(subject, f"{at}ln_embed reads", rest, "hook_embed")


def _hold_no_module_gives(subject: Subject, at: str, rest: Tensor) -> None:
    """No module gives what is in the stream beside the embeddings: positions that it computes."""
    tokens = at_tokens(subject, at, rest)  # the types of a prompt and of a text may differ
    if at or subject.expect.are_close(tokens, tokens[:1, :1].expand_as(tokens)):
        return
    found: list[str] = []

    def note(call: NativeCall) -> None:
        out, width = call.output, rest.shape[-1]
        if isinstance(out, Tensor) and out.numel() in (rest.numel(), rest[0].numel()):
            each = out.reshape(-1, *rest.shape[1:]) if out.shape[-1] == width else out
            if each.ndim == 3 and subject.expect.are_close(each.expand_as(rest), rest):
                found.append(type(call.module).__name__)

    watch_calls(subject, inner_modules(subject), note)
    shown = f"the output of a {' and a '.join(sorted(set(found)))} is added to the embeddings"
    subject.expect.holds(f"{at}pos_embed", not found, shown)


def _before_projection(subject: Subject, stream: Tensor, embed: Tensor) -> Tensor:
    """What the model projects to the width of the stream, if a module does it."""
    read: list[Tensor] = []

    def note(call: NativeCall) -> None:
        out = call.output
        given = [one for one in call.tensors if one.shape == embed.shape]
        if isinstance(out, Tensor) and given and subject.expect.are_close(out, stream):
            read.extend(one.clone() for one in given)

    watch_calls(subject, inner_modules(subject), note)
    if not read:
        raise NotApplicable("the embeddings are projected to another width")
    return read[-1]


def _uncentered(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _hold_rest(subject: Subject, what: str, rest: Tensor, words: str) -> None:
    """The rest without the embeddings is zero, one vector (token types), or computed positions.

    Learned positions are a point, so they must not be in the rest.
    """
    subject.expect.close(
        f"what {what}, minus {words},", rest, rest[:1].expand_as(rest), "the same for any tokens"
    )
    if subject.expect.are_close(rest, rest[:1, :1].expand_as(rest)):
        return
    weights = [p.detach() for p in subject.hf_model.parameters()]
    tables = [w for w in weights if w.ndim == 2 and w.shape[-1] == rest.shape[-1]]
    step = _uncentered(rest[0, 2] - rest[0, 1])
    learned = any(
        bool((_uncentered(table.diff(dim=0)) - step).abs().amax(-1).min() < 1e-4)
        for table in tables
        if len(table) > 1
    )
    subject.expect.holds(f"what {what}", not learned, f"{words} leaves out learned positions")
