"""What stands before the first layer and behind the last: embeddings, final norm, head."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lensbridge.derive.chain import Chain
from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import close, fitted_scale, unit
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
    front.missing["pos_embed"] = "the first layer is given more than the token embedding"
    for wanted, norm in _sums(trace, chain, token):
        found = _as_sum(trace, chain, token, wanted)
        if found is not None:
            scale, positions = found
            front.missing.clear()
            front.embed_norm = None if norm is None else norm.path
            front.pos_embed = None if positions is None else positions.path
            if not unit(scale, trace.tolerance):
                front.embed_scale = fields.number(scale)
            break
    return front


def _sums(trace: Trace, chain: Chain, token: Call) -> Iterator[tuple[Tensor, Call | None]]:
    """What may be the sum of the embeddings, with the norm that reads it.

    That is what the first layer is given, or what the norm reads that gives that; where the
    embeddings are narrower than the stream, what any norm between reads.
    """
    given, output = chain.given[0], token.output
    assert output is not None
    if given.shape == output.shape:
        yield given, None
    for call in trace.calls:
        between = token.end < call.start and call.end < chain.start and bool(call.inputs)
        if between and call.inputs[0].shape == output.shape:
            last = given.shape[-1] != output.shape[-1] or _gave(call, given)
            if last and looks_like_norm(call):
                yield call.inputs[0], call


def _as_sum(
    trace: Trace, chain: Chain, token: Call, wanted: Tensor
) -> tuple[float, Call | None] | None:
    """A sum of embeddings as the factor of the token's and the table of positions, if it is one."""
    assert token.output is not None
    scale = fitted_scale(token.output, wanted, trace.tolerance)
    if scale is not None:
        return scale, None
    given, summed = (one - one.mean((0, 1)) for one in (token.output, wanted))
    scale = fitted_scale(given, summed, 10 * trace.tolerance)
    if scale is not None:  # beside the token one vector, such as a token type's
        return scale, None
    found = _position_embedding(trace, chain, token, wanted)
    return None if found is None else (found[1], found[0])


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
    """The module between the stream and the head, where there is more than a final norm."""
    if not head.inputs or _is_stream(trace, chain, head.inputs[0]):
        return None
    for call in trace.calls:  # the outermost first
        if chain.end < call.start and call.end < head.start and _gave(call, head.inputs[0]):
            return call.path
    return None


def _is_stream(trace: Trace, chain: Chain, read: Tensor) -> bool:
    """Whether a tensor is the last layer's output, or its norm, at some of the positions."""
    final = find_final_norm(trace, chain)
    streams = [chain.last] if final is None or final.output is None else [chain.last, final.output]
    return any(
        stream.shape[-1] == read.shape[-1] and fitted_scale(stream, read, trace.tolerance)
        for stream in streams
        if stream.numel() == read.numel()
    )
