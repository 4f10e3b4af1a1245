"""What comes before the first layer and after the last: embeddings, final norm, head."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.derive.chain import ModuleChain
from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import close, fitted_scale, is_projection, unit
from lensbridge.derive.norms import looks_like_norm
from lensbridge.derive.trace import Trace, TracedCall
from lensbridge.native.calling import is_plain
from lensbridge.native.wrappers import unwrapped
from lensbridge.spec import Scale


@dataclass
class EmbeddingSide:
    """The embeddings of a stack, under the names of the fields of `Stack`."""

    embed: str | None = None
    embed_scale: Scale | None = None
    pos_embed: str | None = None
    embed_norm: str | None = None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass
class HeadSide:
    """The head, under the names of the fields of `Architecture`."""

    unembed: str | None = None
    unembed_bias: str | None = None
    head_scale: Scale | None = None
    head_hidden: str | None = None
    logit_scale: Scale | None = None
    logit_softcap: str | None = None
    missing: dict[str, str] = field(default_factory=dict)


def find_front(
    trace: Trace, chain: ModuleChain, embed: nn.Module | None, fields: Fields
) -> EmbeddingSide:
    """How the first layer's input is computed from the embeddings."""
    calls = [
        call
        for call in trace.calls
        if _embeds(call, embed) and call.end < chain.start and call.output is not None
    ]
    if "input_ids" not in trace.inputs:
        return _whole_front(trace, chain)
    if not calls:
        return EmbeddingSide(missing={"embed": "the embedding does not run before the first layer"})
    own = [call for call in trace.calls if call.end < chain.start and _reads_ids(trace, call)]
    token = (own if fields.side == "decoder" and own else calls)[-1]
    front = EmbeddingSide(embed=token.path)
    front.missing["pos_embed"] = "the first layer reads more than the token embedding"
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


def _whole_front(trace: Trace, chain: ModuleChain) -> EmbeddingSide:
    """The module that embeds inputs other than ids; its positions may be plain parameters."""
    front = EmbeddingSide()
    wanted = chain.given[0]
    before = [call for call in trace.calls if call.end < chain.start]
    for call in before:
        if call.inputs and gave(call, wanted) and looks_like_norm(call):
            front.embed_norm, wanted = call.path, call.inputs[0]
            break
    front.embed = next((call.path for call in before if gave(call, wanted)), None)
    if front.embed is None:
        front.missing["embed"] = "no module returns the input of the first layer"
    return front


def _embeds(call: TracedCall, embed: nn.Module | None) -> bool:
    """Whether a call is that of the embedding, or of another module with the same weight."""
    weight = call.module._parameters.get("weight")
    shared = embed is not None and weight is not None and weight is embed._parameters.get("weight")
    return call.module is embed or (shared and not is_projection(call.module))


def _reads_ids(trace: Trace, call: TracedCall) -> bool:
    """Whether a call looks up the decoder's ids in a table, which may be the decoder's own."""
    ids = trace.inputs.get("decoder_input_ids")
    given = call.inputs[0] if call.inputs else None
    same = ids is not None and given is not None and torch.equal(ids.cpu(), given.cpu())
    return same and call.module._parameters.get("weight") is not None


def _sums(
    trace: Trace, chain: ModuleChain, token: TracedCall
) -> Iterator[tuple[Tensor, TracedCall | None]]:
    """Values that may be the sum of the embeddings, with the norm that reads each.

    These are the input of the first layer, and the input of a norm that returns it; then, where a
    projection is between the embeddings and the layers (FNet), the inputs of norms in between.
    """
    given, output = chain.given[0], token.output
    assert output is not None
    if given.shape == output.shape:
        yield given, None
    norms = [
        call
        for call in trace.calls
        if token.end < call.start and call.end < chain.start and call.inputs
        if call.inputs[0].shape == output.shape and looks_like_norm(call)
    ]
    narrow = given.shape[-1] != output.shape[-1]
    for call in sorted(norms, key=lambda norm: not gave(norm, given)):
        if narrow or gave(call, given) or _is_projected(trace, chain, call):
            yield call.inputs[0], call


def _is_projected(trace: Trace, chain: ModuleChain, norm: TracedCall) -> bool:
    """Whether a projection of a norm's output is what the first layer reads."""
    return any(
        norm.end < call.start and gave(norm, call.inputs[0]) and gave(call, chain.given[0])
        for call in trace.calls
        if call.end < chain.start and call.inputs and is_projection(call.module)
    )


def _as_sum(
    trace: Trace, chain: ModuleChain, token: TracedCall, wanted: Tensor
) -> tuple[float, TracedCall | None] | None:
    """The factor of the token embedding and the table of positions, if a value is their sum."""
    assert token.output is not None
    scale = fitted_scale(token.output, wanted, trace.tolerance)
    if scale is not None:
        return scale, None
    given, summed = (one - one.mean((0, 1)) for one in (token.output, wanted))
    scale = fitted_scale(given, summed, 10 * trace.tolerance)
    if scale is not None:  # one more vector than the token's, such as that of a token type
        return scale, None
    found = _position_embedding(trace, chain, token, wanted)
    return None if found is None else (found[1], found[0])


def _position_embedding(
    trace: Trace, chain: ModuleChain, token: TracedCall, wanted: Tensor
) -> tuple[TracedCall, float] | None:
    """The table of positions in the sum, alone or with another table (of token types)."""
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


def _expanded(call: TracedCall, like: Tensor) -> Tensor | None:
    assert call.output is not None
    try:
        return call.output.expand_as(like)
    except RuntimeError:
        return None


def gave(call: TracedCall, value: Tensor) -> bool:
    """Whether a value is the output of a call."""
    output = call.output
    return output is not None and output.shape == value.shape and close(output, value, 1e-6)


def _holds_table(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(tensor.ndim == 2 for tensor in own)


def find_final_norm(trace: Trace, chain: ModuleChain) -> TracedCall | None:
    """The norm outside the layers that reads the last layer's output."""
    for call in trace.calls:
        if call.start > chain.end and call.inputs and not call.path.startswith(f"{chain.path}."):
            given = call.inputs[0]
            reads = given.shape == chain.last.shape and close(given, chain.last, 1e-6)
            if reads and looks_like_norm(call):
                return call
    return None


def head_of(trace: Trace, embed: nn.Module | None) -> nn.Module | None:
    """The head: what transformers says, or the last projection to one number for each token."""
    core: Any = trace.model
    named = core.get_output_embeddings() if hasattr(core, "get_output_embeddings") else None
    if isinstance(named, nn.Embedding):
        named = None  # FSMT names the table whose weight the head shares
    if named is not None or trace.logits is None:
        return None if named is None else unwrapped(named)
    width, rows = trace.logits.shape[-1], getattr(embed, "num_embeddings", None)
    if not is_plain(core) and width != rows:
        return None
    fits = [
        call.module
        for call in trace.calls
        if is_projection(call.module)
        and call.output is not None
        and call.output.shape == trace.logits.shape
    ]
    return fits[-1] if fits else None


def find_back(trace: Trace, chain: ModuleChain, head: nn.Module | None, fields: Fields) -> HeadSide:
    """How the logits are computed from the head's output."""
    calls = [call for call in trace.calls if call.module is head and call.start > chain.end]
    if head is None or not calls or calls[-1].output is None:
        return HeadSide()
    back = HeadSide(unembed=calls[-1].path)
    scale = _stream_scale(trace, chain, calls[-1].inputs[0])
    if scale is None:
        back.head_hidden = _head_hidden(trace, chain, calls[-1])
    elif not unit(scale, trace.tolerance):
        back.head_scale = fields.number(scale)
    output, logits = calls[-1].output, trace.logits
    assert output is not None
    if logits is None or logits.shape != output.shape:
        back.missing["unembed"] = "the logits have another shape than the head's output"
        return back
    scale = fitted_scale(output, logits, trace.tolerance)
    if scale is None:
        back.unembed_bias = _added_bias(trace, logits - output)
    if scale is None and back.unembed_bias is None:
        _softcap(back, output, logits, fields, trace.tolerance)
    elif scale is not None and not unit(scale, trace.tolerance):
        back.logit_scale = fields.number(scale)
    return back


def _added_bias(trace: Trace, added: Tensor) -> str | None:
    """The parameter or buffer that is added to every row of logits."""
    held = {**dict(trace.model.named_parameters()), **dict(trace.model.named_buffers())}
    wide = {path: one.detach() for path, one in held.items() if one.numel() == added.shape[-1]}
    for path, tensor in wide.items():
        if close(tensor.reshape(-1).expand_as(added), added, 1e-4):
            return path
    return None


def _softcap(
    back: HeadSide, output: Tensor, logits: Tensor, fields: Fields, tolerance: float
) -> None:
    caps = fields.numbers()
    for name in sorted(caps, key=lambda name: "cap" not in name):
        if close(torch.tanh(output / caps[name]) * caps[name], logits, 10 * tolerance):
            back.logit_softcap = name
            return
    back.missing["logit_scale"] = "the logits are not a multiple of the head's output"


def _head_hidden(trace: Trace, chain: ModuleChain, head: TracedCall) -> str | None:
    """The module between the stream and the head, if there is one besides the final norm."""
    for call in trace.calls:  # the outermost first
        between = chain.end < call.start and call.end < head.start
        if between and gave(call, head.inputs[0]) and len(trace.of(call.path)) == 1:
            return call.path
    return None


def _stream_scale(trace: Trace, chain: ModuleChain, read: Tensor) -> float | None:
    """The factor between the output of the last layer, or of the final norm, and what is read."""
    final = find_final_norm(trace, chain)
    streams = [chain.last] if final is None or final.output is None else [chain.last, final.output]
    for stream in streams:
        if stream.numel() == read.numel() and stream.shape[-1] == read.shape[-1]:
            scale = fitted_scale(stream, read, trace.tolerance)
            if scale is not None:
                return scale
    return None
