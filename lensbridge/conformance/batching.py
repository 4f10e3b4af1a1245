"""Batches and key/value caches: rows and steps have the values that they have in other passes."""

from typing import Any

import torch
from torch import Tensor

from lensbridge.conformance.expect import NotApplicable, difference
from lensbridge.conformance.failures import told
from lensbridge.conformance.passes import Inputs, Pass, prefix_of
from lensbridge.conformance.subject import Subject
from lensbridge.native.kv_cache import cache_in, name_of_cache

PADS = 2


def check_rows_do_not_meet(subject: Subject) -> None:
    """A padded row has the values that it has alone, whichever side is padded."""
    if set(subject.inputs) != {"input_ids"} or subject.model.native.is_encoder_decoder:
        raise NotApplicable("padding is checked on models that read only ids")
    if "attention_mask" not in subject.accepted:
        raise NotApplicable("the model takes no mask")
    ids = subject.tokens
    names = [n for n in subject.names if _per_position(subject, n)]
    alone = subject.read(names, inputs={"input_ids": ids[:1]})
    for side in ("left", "right"):
        _hold_side(subject, side, names, alone)


def _hold_side(subject: Subject, side: str, names: list[str], alone: Pass) -> None:
    ids = subject.tokens
    inputs, real = padded(ids, side)
    together = subject.read(names, inputs=inputs)
    if together.output.ndim != 3:
        raise NotApplicable("the output has no positions")
    if not subject.expect.are_close(together.output[:1, real], alone.output):
        _refuse_what_is_native(subject, inputs, real, alone.output)
    subject.expect.close(
        f"the output of a row that is padded on the {side}",
        together.output[:1, real],
        alone.output,
        "what the row gives alone",
    )
    for name in names:
        subject.expect.close(
            f"{name} of a row that is padded on the {side}",
            together[name][:1, real],
            alone[name],
            "what the row gives alone",
        )


def padded(ids: Tensor, side: str) -> tuple[Inputs, slice]:
    """Two rows, the first padded to the length of the second; and the positions of its tokens."""
    length = ids.shape[1]
    batch = torch.zeros(2, length + PADS, dtype=ids.dtype, device=ids.device)
    real = slice(PADS, None) if side == "left" else slice(0, length)
    mask = torch.zeros_like(batch)
    mask[0, real], mask[1] = 1, 1
    batch[0, real] = ids[0]
    batch[1] = torch.cat([ids[-1], ids[0, :PADS]])
    return {"input_ids": batch, "attention_mask": mask}, real


def _refuse_what_is_native(subject: Subject, inputs: Inputs, real: slice, alone: Tensor) -> None:
    """Skip a model whose own forward gives padded rows other values, with any positions.

    Raises:
        NotApplicable: the bare model does.
    """
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    more: list[dict[str, Any]] = [{}]
    if "position_ids" in subject.accepted:
        more.append({"position_ids": positions})
    nearest = min(difference(subject.bare(inputs, **extra)[:1, real], alone) for extra in more)
    if nearest > subject.expect.tolerance:
        raise NotApplicable(
            f"the bare model's own padded rows differ from unpadded ones by {nearest:.2g}"
        )


def _per_position(subject: Subject, name: str) -> bool:
    axes = subject.axes(name)
    rotated = name.endswith(("hook_rot_q", "hook_rot_k"))  # by a position that padding shifts
    if not axes.startswith("b p") or ".mixer." in name or rotated:
        return False
    # Longformer fills rows up to a multiple of its window, and Funnel pools positions
    return subject.clean[name].shape[1] == subject.tokens.shape[1]


def check_decoding_reads_the_same(subject: Subject) -> None:
    """A step with a key/value cache has the values of the whole pass at its last position."""
    if set(subject.inputs) != {"input_ids"} or not subject.is_causal:
        raise NotApplicable("decoding is checked on causal models that read ids alone")
    ids, name = subject.tokens, name_of_cache(subject.accepted)
    if name is None or "use_cache" not in subject.accepted | subject.calling.accepted:
        raise NotApplicable("the model keeps no keys and values")
    past = cache_in(_cached(subject, ids[:, :-1]))
    if past is None:
        raise NotApplicable("the model keeps no keys and values")
    again = cache_in(_cached(subject, ids[:, :-1]))
    bare = subject.bare({"input_ids": ids[:, -1:]}, **{name: again})
    apart = difference(bare, subject.clean.output[:, -1:])
    if apart > subject.expect.tolerance:
        raise NotApplicable(f"the bare model's own cached step differs by {apart:.2g}")
    names = [n for n in subject.names if _in_step(subject, n)]
    step = subject.read(names, inputs={"input_ids": ids[:, -1:]}, past_key_values=past)
    subject.expect.close(
        "the output of a cached step",
        step.output,
        subject.clean.output[:, -1:],
        "the whole pass's last position",
    )
    for name in names:
        whole, found = subject.clean[name], step[name]
        if subject.axes(name) == "b h q k":
            keys = min(whole.shape[-1], found.shape[-1])
            whole, found = whole[:, :, -1:, -keys:], found[..., -keys:]
        else:
            whole, found = whole[:, -1:], found[:, -1:]
        subject.expect.close(
            f"{name} of a cached step", found, whole, "the whole pass's last position", slack=5.0
        )


def _cached(subject: Subject, ids: Tensor) -> Any:
    """What the bare model gives with a cache of keys and values.

    Raises:
        NotApplicable: it does not run with one.
    """
    try:
        with torch.no_grad():
            return subject.call({"input_ids": ids, "use_cache": True})
    except Exception as error:  # the model's own, of any kind
        raise NotApplicable(f"the bare model does not run with a cache: {told(error)}") from error


def _in_step(subject: Subject, name: str) -> bool:
    axes = subject.axes(name)
    outside = not prefix_of(name) or ".mixer." not in name
    return outside and (axes.startswith("b p") or axes == "b h q k")
