"""W_Q, W_K and W_V of one attention module; of latent attention, products of its weights."""

import torch
from torch import Tensor

from lensbridge.errors import WeightError
from lensbridge.native.holding import Held, opaque
from lensbridge.native.linear import fetch
from lensbridge.native.parts import AttentionPart, LatentPart, Role
from lensbridge.tensors.layouts import per_head_in


def role(part: AttentionPart, letter: str) -> Role:
    """The projection of q, k or v.

    Raises:
        WeightError: this layer uses the projection of another layer, or no projection makes it.
    """
    found = {"q": part.q, "k": part.k, "v": part.v}[letter]
    if part.q is None:
        raise WeightError(
            f"No projection makes the {letter} of {type(part.module).__name__}, so there is no "
            "weight. Read attn.hook_rot_q, attn.hook_rot_k and attn.hook_v."
        )
    if found is None:
        raise WeightError(f"This layer has no {letter} projection: it uses an earlier layer's.")
    return found


_TWO_LATENTS = (
    "Queries here are made of a latent before and after its norm, so no one matrix makes them of "
    "the stream. Use attn.hook_q and attn.hook_q_latent, or the native q projection."
)

COMPOSED = opaque("a product of several weights", "computed from them")


def held(part: AttentionPart, letter: str) -> Held:
    """How the weight of q, k or v is held; `COMPOSED` where it is a product of several."""
    latent = part.latent
    own = role(part, letter)
    if latent is not None and (letter != "q" or latent.q_down is not None):
        return COMPOSED
    return share_held(own)


def share_held(own: Role) -> Held:
    """How a part of a weight is held; `COMPOSED` where it is multiplied by a number."""
    return own.linear.held if own.scale * own.in_scale == 1.0 else COMPOSED


def weight(part: AttentionPart, letter: str) -> Tensor:
    """Shapes: `[head, d_model, d_head]`.

    A view of the native parameter where the layout allows. For latent attention it is the product
    of the projections and the gain of the norm between them: exact up to that norm's divisor.
    """
    own, latent = role(part, letter), part.latent
    if latent is None or (letter == "q" and latent.q_down is None):
        return _scaled(per_head_in(own.linear.weight(), own.layout), own.scale * own.in_scale)
    if letter == "q":
        assert latent.q_down is not None
        if latent.q_reads_latent:
            raise WeightError(_TWO_LATENTS)
        gain = 1.0 if latent.q_norm is None else latent.q_norm.gain()
        down = latent.q_down.weight() * gain
        return _scaled(per_head_in(down @ own.linear.weight(), own.layout), own.scale)
    return _through_latent(part, latent, own, letter)


def _through_latent(part: AttentionPart, latent: LatentPart, own: Role, letter: str) -> Tensor:
    whole, width = latent.kv_down.weight(), latent.kv_norm.width
    down = whole[:, :width] * latent.kv_norm.gain() * latent.kv_scale
    heads = per_head_in(down @ own.linear.weight(), own.layout)
    if letter == "v":
        return heads
    shared = whole[:, width:].expand(part.n_heads, -1, -1)
    return torch.cat([heads, shared], dim=-1)


def bias(part: AttentionPart, letter: str) -> Tensor:
    """Shapes: `[head, d_head]`. Zeros where there is no bias."""
    own, latent = role(part, letter), part.latent
    heads = _scaled(own.layout.split(own.linear.bias()), own.scale)
    if own.bias is not None:
        heads = heads + fetch(*own.bias).view(heads.shape).to(heads)
    if latent is None or letter != "k":
        return heads
    shared = latent.kv_down.bias()[latent.kv_norm.width :].expand(part.n_heads, -1)
    return torch.cat([heads, shared], dim=-1)


def share(own: Role) -> Tensor:
    """`[in, f]`: the part of a weight that is a gate or an up projection; a view where plain."""
    return _scaled(own.layout.split(own.linear.weight()), own.scale * own.in_scale)


def share_of_bias(own: Role) -> Tensor:
    """`[f]`: the same part of the bias."""
    return _scaled(own.layout.split(own.linear.bias()), own.scale)


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1.0 else tensor * scale
