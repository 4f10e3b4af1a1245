"""What comes after the last layer: the final norm and the head."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lensbridge.derive.chain import ModuleChain
from lensbridge.derive.fields import Fields
from lensbridge.derive.layer import close, fitted_scale, gave, is_projection, unit
from lensbridge.derive.norms import looks_like_norm
from lensbridge.derive.rows import reads_end, runs_of
from lensbridge.derive.trace import Trace, TracedCall
from lensbridge.native.calling import is_plain
from lensbridge.native.resolve.head import native_head
from lensbridge.native.table import rows_of
from lensbridge.native.wrappers import unwrapped
from lensbridge.spec import Scale

_UNGIVEN = "its logits are not the output of one projection"
_UNREAD = "the projection to its logits reads a value that no module gives in one run"


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


def find_final_norm(trace: Trace, chain: ModuleChain) -> TracedCall | None:
    """The norm outside the layers that reads the last layer's output."""
    for call in trace.calls:
        if call.start > chain.end and call.inputs and not call.path.startswith(f"{chain.path}."):
            given = call.inputs[0]
            if reads_end(trace, chain.last, given) and looks_like_norm(call):
                return call
    return None


def head_of(trace: Trace, embed: nn.Module | None) -> nn.Module | None:
    """The head: what transformers says, or the last projection to one number for each token."""
    named = native_head(trace.model)
    if isinstance(named, nn.Embedding):
        named = None  # FSMT names the table whose weight the head shares
    if named is not None or trace.logits is None:
        return None if named is None else unwrapped(named)
    width, rows = trace.logits.shape[-1], rows_of(embed)
    if not is_plain(trace.model) and width != rows:
        return None
    fits = [
        call.module
        for call in trace.calls
        if is_projection(call.module)
        and call.output is not None
        and call.output.shape == trace.logits.shape
    ]
    return fits[-1] if fits else None


def find_back(
    trace: Trace,
    chain: ModuleChain,
    head: nn.Module | None,
    embed: nn.Module | None,
    fields: Fields,
) -> HeadSide:
    """How the logits are computed from the head's output."""
    calls = [call for call in trace.calls if call.module is head and call.start > chain.end]
    if head is None or not calls or calls[-1].output is None:
        tells_tokens = trace.logits is not None and trace.logits.shape[-1] == rows_of(embed)
        return HeadSide(missing={"unembed": _UNGIVEN} if tells_tokens else {})
    back = HeadSide(unembed=calls[-1].path)
    scale = _stream_scale(trace, chain, calls[-1].inputs[0])
    if scale is None:
        back.head_hidden = _head_hidden(trace, chain, calls[-1])
        if back.head_hidden is None and _reads_each_position(trace, calls[-1]):
            return HeadSide(missing={"unembed": _UNREAD})
    elif not unit(scale, trace.tolerance):
        back.head_scale = fields.number(scale, by_layers=False)
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
        back.logit_scale = fields.number(scale, by_layers=False)
    return back


def _reads_each_position(trace: Trace, head: TracedCall) -> bool:
    read, logits = head.inputs[0], trace.logits
    return logits is not None and read.ndim == 3 and read.shape[:2] == logits.shape[:2]


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
        for part in runs_of(trace, stream, read):
            scale = fitted_scale(part, read, trace.tolerance)
            if scale is not None:
                return scale
    return None
