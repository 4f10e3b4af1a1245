"""What comes before the first layer: the embeddings of a stack."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lensbridge.derive.chain import ModuleChain
from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import close, fitted_scale, gave, is_projection, unit
from lensbridge.derive.norms import looks_like_norm
from lensbridge.derive.rows import at_tokens, runs_of
from lensbridge.derive.trace import Trace, TracedCall
from lensbridge.spec import Scale


@dataclass
class EmbeddingSide:
    """The embeddings of a stack, under the names of the fields of `Stack`."""

    embed: str | None = None
    embed_scale: Scale | None = None
    pos_embed: str | None = None
    embed_norm: str | None = None
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
                front.embed_scale = fields.number(scale, by_layers=False)
            return front
    norm = _norm_before_layers(trace, chain)
    front.embed_norm = None if norm is None else norm.path
    return front


def _whole_front(trace: Trace, chain: ModuleChain) -> EmbeddingSide:
    """The module that embeds inputs other than ids; its positions may be plain parameters."""
    front = EmbeddingSide()
    wanted = chain.given[0]
    before = [call for call in trace.calls if call.end < chain.start]
    norm = _norm_before_layers(trace, chain)
    if norm is not None:
        front.embed_norm, wanted = norm.path, norm.inputs[0]
    front.embed = next((call.path for call in before if gave(call, wanted)), None)
    if front.embed is None:
        front.missing["embed"] = "no module returns the input of the first layer"
    return front


def _norm_before_layers(trace: Trace, chain: ModuleChain) -> TracedCall | None:
    """The norm that returns the input of the first layer."""
    before = [call for call in trace.calls if call.end < chain.start and call.inputs]
    given = (call for call in before if gave(call, chain.given[0]))
    return next((call for call in given if looks_like_norm(call)), None)


def _embeds(call: TracedCall, embed: nn.Module | None) -> bool:
    """Whether a call is that of the embedding, or of another module with the same weight."""
    weight = call.module._parameters.get("weight")
    shared = embed is not None and weight is not None and weight is embed._parameters.get("weight")
    return call.module is embed or (shared and not is_projection(call.module))


def _reads_ids(trace: Trace, call: TracedCall) -> bool:
    """Whether a call looks up the decoder's ids in a table, which may be the decoder's own."""
    ids = trace.inputs.get("decoder_input_ids")
    given = call.inputs[0] if call.inputs else None
    if ids is None or given is None or not torch.equal(ids.cpu(), given.cpu()):
        return False
    rows = call.output  # a table of positions may be given the ids for their number
    if rows is None or rows.shape[:-1] != ids.shape or _is_by_position(rows):
        return False
    return call.module._parameters.get("weight") is not None


def _sums(
    trace: Trace, chain: ModuleChain, token: TracedCall
) -> Iterator[tuple[Tensor, TracedCall | None]]:
    """Values that may be the sum of the embeddings, with the norm that reads each.

    These are the input of the first layer, and the input of a norm that returns it; then, where a
    projection is between the embeddings and the layers (FNet), the inputs of norms in between.
    """
    given, output = chain.given[0], token.output
    assert output is not None
    for part in runs_of(trace, given, output):
        if part.shape == output.shape:
            yield part, None
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
    given, loose = _centered(token.output), 10 * trace.tolerance
    scale = fitted_scale(given, _centered(wanted), loose)
    if scale is not None:  # one more vector than the token's, such as that of a token type
        return scale, None
    found = _position_embedding(trace, chain, token, wanted)
    if found is not None:
        return found[1], found[0]
    given, summed = (one - one.mean(0) for one in (token.output, wanted))
    scale = fitted_scale(given, summed, loose)
    return None if scale is None else (scale, None)  # positions that are computed


def _position_embedding(
    trace: Trace, chain: ModuleChain, token: TracedCall, wanted: Tensor
) -> tuple[TracedCall, float] | None:
    """The module of positions in the sum, alone or with another (of token types); tables first."""
    assert token.output is not None
    calls = [
        call
        for call in trace.calls
        if call.end < chain.start
        and call.output is not None
        and call.module is not token.module
        and call.output.shape[-1] == wanted.shape[-1]
    ]
    calls.sort(key=lambda call: not _holds_table(call.module))
    terms = [_expanded(call, wanted) for call in calls]
    zero, given = torch.zeros_like(wanted), _centered(token.output)
    for call, term in zip(calls, terms, strict=True):
        if term is None or not _is_by_position(at_tokens(trace, token, term)):
            continue
        for other in (zero, *(one for one in terms if one is not None and one is not term)):
            rest = _centered(wanted - term - other)
            scale = fitted_scale(given, rest, 10 * trace.tolerance)
            if scale is not None and scale > 1e-3:
                return call, scale
    return None


def _centered(value: Tensor) -> Tensor:
    """A value without what it has at every position, such as the vector of a token type."""
    return value - value.mean((0, 1))


def _is_by_position(term: Tensor) -> bool:
    """Whether a value is the same for any tokens, and not the same at every position."""
    same = close(term, term[:1].expand_as(term), 1e-6)
    return same and not close(term, term[:, :1].expand_as(term), 1e-6)


def _expanded(call: TracedCall, like: Tensor) -> Tensor | None:
    assert call.output is not None
    try:
        return call.output.expand_as(like)
    except RuntimeError:
        return None


def _holds_table(module: nn.Module) -> bool:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(tensor.ndim == 2 for tensor in own)
