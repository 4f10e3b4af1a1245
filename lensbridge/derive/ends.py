"""What stands before the first layer and behind the last: embeddings, final norm, head."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lensbridge.derive.chain import Chain
from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import close, fitted_scale, is_projection, unit
from lensbridge.derive.norms import looks_like_norm
from lensbridge.derive.trace import Call, Trace
from lensbridge.spec import Scale


@dataclass
class Front:
    """The embeddings of a stack, as the fields of `Stack` name them."""

    embed: str | None = None
    embed_scale: Scale | None = None
    pos_embed: str | None = None
    embed_norm: str | None = None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass
class Back:
    """The head, as the fields of `Architecture` name it."""

    unembed: str | None = None
    head_hidden: str | None = None
    logit_scale: Scale | None = None
    logit_softcap: str | None = None
    missing: dict[str, str] = field(default_factory=dict)


def find_front(trace: Trace, chain: Chain, embed: nn.Module | None, fields: Fields) -> Front:
    """How the first layer's input comes from the embeddings."""
    calls = [
        call
        for call in trace.calls
        if call.module is embed and call.end < chain.start and call.output is not None
    ]
    if not calls:
        return Front(missing={"embed": "the embedding does not run before the first layer"})
    token = calls[-1]
    front = Front(embed=token.path)
    assert token.output is not None
    wanted, norm = _behind_norm(trace, chain.given[0], token)
    front.embed_norm = None if norm is None else norm.path
    if token.output.shape != wanted.shape:
        front.missing["embed"] = "the first layer is given something of another shape"
        return front
    scale = fitted_scale(token.output, wanted, trace.tolerance)
    positions = None if scale is not None else _position_embedding(trace, chain, token, wanted)
    if positions is not None:
        front.pos_embed, scale = positions[0].path, positions[1]
    if scale is None:
        front.missing["pos_embed"] = "the first layer is given more than the token embedding"
    elif not unit(scale, trace.tolerance):
        front.embed_scale = fields.number(scale)
    return front


def _behind_norm(trace: Trace, given: Tensor, token: Call) -> tuple[Tensor, Call | None]:
    for call in trace.calls:
        behind = call.start > token.end and _gave(call, given)
        if behind and looks_like_norm(call):
            return call.inputs[0], call
    return given, None


def _position_embedding(
    trace: Trace, chain: Chain, token: Call, wanted: Tensor
) -> tuple[Call, float] | None:
    """The table of positions in the sum, alone or beside another (of token types)."""
    assert token.output is not None
    tables = [
        call
        for call in trace.calls
        if call.end < chain.start
        and call.output is not None
        and call.module is not token.module
        and call.output.shape[-1] == wanted.shape[-1]
        and _holds_table(call.module)
    ]
    terms = [_expanded(call, wanted) for call in tables]
    zero = torch.zeros_like(wanted)
    for call, term in zip(tables, terms, strict=True):
        if term is None or close(term, term[:, :1].expand_as(term), 1e-6):
            continue  # the same at every position
        for other in (zero, *(one for one in terms if one is not None and one is not term)):
            scale = fitted_scale(token.output, wanted - term - other, 10 * trace.tolerance)
            if scale is not None and scale > 1e-3:
                return call, scale
    return None


def _expanded(call: Call, like: Tensor) -> Tensor | None:
    assert call.output is not None
    try:
        return call.output.expand_as(like)
    except RuntimeError:
        return None


def _gave(call: Call, value: Tensor) -> bool:
    output = call.output
    return output is not None and output.shape == value.shape and close(output, value, 1e-6)


def _holds_table(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(tensor.ndim == 2 for tensor in own)


def find_final_norm(trace: Trace, chain: Chain) -> Call | None:
    """The norm outside the layers that reads the last layer's output."""
    for call in trace.calls:
        if call.start > chain.end and call.inputs and not call.path.startswith(f"{chain.path}."):
            given = call.inputs[0]
            reads = given.shape == chain.last.shape and close(given, chain.last, 1e-6)
            if reads and looks_like_norm(call):
                return call
    return None


def find_back(trace: Trace, chain: Chain, head: nn.Module | None, fields: Fields) -> Back:
    """How the logits come from the head."""
    calls = [call for call in trace.calls if call.module is head and call.start > chain.end]
    if head is None or not calls or calls[-1].output is None:
        return Back()
    back = Back(unembed=calls[-1].path)
    back.head_hidden = _head_hidden(trace, chain, calls[-1])
    output, logits = calls[-1].output, trace.logits
    assert output is not None
    if logits is None or logits.shape != output.shape:
        back.missing["unembed"] = "the logits are not of the shape that the head gives"
        return back
    scale = fitted_scale(output, logits, trace.tolerance)
    if scale is None:
        _softcap(back, output, logits, fields, trace.tolerance)
    elif not unit(scale, trace.tolerance):
        back.logit_scale = fields.number(scale)
    return back


def _softcap(back: Back, output: Tensor, logits: Tensor, fields: Fields, tolerance: float) -> None:
    caps = fields.numbers()
    for name in sorted(caps, key=lambda name: "cap" not in name):
        if close(torch.tanh(output / caps[name]) * caps[name], logits, 10 * tolerance):
            back.logit_softcap = name
            return
    back.missing["logit_scale"] = "the logits are no multiple of what the head gives"


def _head_hidden(trace: Trace, chain: Chain, head: Call) -> str | None:
    """The module between the stream and the head, where it computes more than a norm."""
    between = [
        call
        for call in trace.calls
        if call.start > chain.end
        and call.end < head.start
        and call.output is not None
        and call.output.shape == head.inputs[0].shape
        and close(call.output, head.inputs[0], 1e-6)
    ]
    for call in between:  # the outermost first
        inside = [c for c in trace.within(call.path) if is_projection(c.module)]
        reads = call.inputs and call.inputs[0].shape == chain.last.shape
        if inside and reads:
            return call.path
    return None
