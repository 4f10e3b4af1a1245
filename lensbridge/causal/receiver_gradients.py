"""The metric's gradient at each receiver's input, as if each had its own copy of the stream."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import einsum
from torch import Tensor, nn

from lensbridge.causal.differentiable_pass import Gradient
from lensbridge.causal.graph import Graph, Read
from lensbridge.native.norm import Norm
from lensbridge.native.parts import AttentionPart, BlockPart, Role
from lensbridge.tensors.layouts import per_head_in
from lensbridge.tensors.slices import taken


def roles_of(attn: AttentionPart) -> list[Role]:
    """The projections whose heads each read the stream."""
    if attn.latent is not None:
        return []
    return [role for role in (attn.q, attn.k, attn.v) if role is not None]


@dataclass(frozen=True)
class ReceiverGradients:
    """Gradients at the receivers, computed from gradients inside the branches.

    The gradient at a head's slice of a projection's output is taken back through that slice of the
    weight and the norm before it. This is the gradient at `hook_q_input`, without computing a copy
    of the stream for every head.
    """

    graph: Graph

    @property
    def points(self) -> list[str]:
        """The points at which a pass has to keep gradients."""
        return [point for event in self._reads() if (point := self._point(event)) is not None]

    @property
    def streams(self) -> list[str]:
        """The points at which it has to keep activations."""
        return [f"{self.graph.at(i)}hook_resid_pre" for i in range(len(self.graph.stack.blocks))]

    @property
    def modules(self) -> list[nn.Module]:
        """The modules at whose outputs it has to keep gradients."""
        attns = [block.attn for block in self.graph.stack.blocks if block.attn is not None]
        return [role.linear.module for attn in attns for role in roles_of(attn)]

    def _reads(self) -> Iterator[Read]:
        return (event for event in self.graph.events if isinstance(event, Read))

    def _point(self, event: Read) -> str | None:
        if event.layer is None:
            return f"{self.graph.at(len(self.graph.stack.blocks) - 1)}hook_resid_post"
        at = self.graph.at(event.layer)
        if event.reader == "attn":
            whole = any(node.kind == "attn" for node in event.receivers)
            return f"{at}hook_attn_in" if whole else None
        return f"{at}mixer.hook_in" if event.reader == "mixer" else f"{at}hook_mlp_in"

    def gradient(self, event: Read, grad: Gradient, pos: slice) -> Tensor:
        """The gradient at the input of each receiver of a branch.

        Shapes: `[receiver, batch, pos, d_model]`
        """
        point = self._point(event)
        given = None if point is None else taken(grad.grads[point], pos, -2).unsqueeze(0)
        if event.layer is None or event.reader in ("mlp", "logits"):
            assert given is not None
            return given
        block = self.graph.stack.blocks[event.layer]
        stream = taken(grad.cache[f"{self.graph.at(event.layer)}hook_resid_pre"], pos, -2)
        if event.reader == "mixer":
            assert given is not None
            return pulled(reading_norm(block), stream, given)
        assert block.attn is not None
        heads = [self._of_heads(role, block, grad, stream, pos) for role in roles_of(block.attn)]
        if given is not None:  # with heads, the whole less q, k and v is what goes by the gate
            heads.append(given - sum(one.sum(0) for one in heads) if heads else given)
        return torch.cat(heads)

    def _of_heads(
        self, role: Role, block: BlockPart, grad: Gradient, stream: Tensor, pos: slice
    ) -> Tensor:
        whole = grad.outputs[role.linear.module][block.repeat or 0]
        whole = taken(whole.view(stream.shape[0], -1, whole.shape[-1]), pos, -2)
        weight = per_head_in(role.linear.weight().detach(), role.layout).to(whole)
        share = einsum(role.layout.split(whole), weight, "b p n d, n m d -> n b p m")
        return pulled(reading_norm(block), stream, share * role.in_scale)


def reading_norm(block: BlockPart) -> Norm | None:
    """The norm between the stream and attention or mixer."""
    return None if block.residual == "post_norm" else block.ln1


def pulled(norm: Norm | None, x: Tensor, grad: Tensor) -> Tensor:
    """The gradient at a norm's input, from that at its output.

    Shapes: x `[..., d_model]`, grad `[receiver, ..., d_model]` -> as grad.
    """
    if norm is None:
        return grad
    scale = norm.scale(x)
    unit = norm.centered(x) / scale
    scaled = _before_gate(norm, unit.to(x.dtype), grad) * norm.gain().detach().to(grad)
    along = (scaled * unit).mean(-1, keepdim=True)
    back = scaled - unit * along
    back = back - scaled.mean(-1, keepdim=True) if norm.kind == "LN" else back
    return (back / scale).to(grad.dtype)


def _before_gate(norm: Norm, unit: Tensor, grad: Tensor) -> Tensor:
    """The gradient at the output of the norm inside a gated one."""
    if norm.gate is None:
        return grad
    given = norm.affine(unit).detach().requires_grad_()
    with torch.enable_grad():
        out = norm.gated(given)
    each = (torch.autograd.grad(out, given, one, retain_graph=True)[0] for one in grad)
    return torch.stack(list(each))
