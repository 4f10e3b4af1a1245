"""Path patching on bare HuggingFace models: streams added up by hand, then plain hooks; an oracle.

A receiver's input is the stream of the unpatched run plus the differences that the senders make
(matrix products); the query, key, value or MLP output that follows from it is put into the
corrupted run. Nothing is frozen here, and no lensbridge in it.
"""

from typing import Any

import torch
from einops import rearrange
from raw_patching import Bare, run_changing
from tiny_models import Layer, embed_of, join_heads, split_heads
from torch import Tensor, nn


class ByHand(Bare):
    """Paths of a bare model with a sequential or parallel stream."""

    def layer(self, index: int) -> Layer:
        return Layer(self.model, self.shape.family, index)

    @property
    def parallel(self) -> bool:
        return self.shape.family == "neox"

    def delta(self, sender: str) -> Tensor:
        """What a sender adds to the stream in the clean run, less what in the corrupted one."""
        sender, _, at = sender.partition("@")
        whole = self._everywhere(sender)
        if not at:
            return whole
        placed = torch.zeros_like(whole)
        placed[:, int(at)] = whole[:, int(at)]
        return placed

    def _everywhere(self, sender: str) -> Tensor:
        clean, corrupted = self.runs
        if sender == "input":
            embed = embed_of(self.model, self.shape.family)
            return clean.outputs[embed] - corrupted.outputs[embed]
        index = int(sender[1])
        layer = self.layer(index)
        if ".n" in sender:
            neuron = int(sender.partition(".n")[2])
            post = clean.inputs[layer.down] - corrupted.inputs[layer.down]
            weight = layer.down.weight if self.shape.family == "gpt2" else layer.down.weight.T
            return post[..., neuron, None] * weight[neuron]
        if sender.startswith("m"):
            return clean.outputs[layer.mlp] - corrupted.outputs[layer.mlp]
        if "h" not in sender:
            return clean.outputs[layer.o] - corrupted.outputs[layer.o]
        z = clean.inputs[layer.o] - corrupted.inputs[layer.o]
        one = rearrange(z, "b p (h d) -> b p h d", h=self.shape.heads)[:, :, int(sender[4])]
        weight = layer.o.weight if self.shape.family == "gpt2" else layer.o.weight.T
        d = self.shape.d_head
        return one @ weight[int(sender[4]) * d : (int(sender[4]) + 1) * d]

    def deltas(self, senders: list[str], before: float) -> Tensor:
        """Those that are in the stream at a time: attention of layer l writes at l, its MLP at
        l + 1/2."""
        told = [self.delta(one) for one in senders if self.time(one) < before]
        return sum(told, torch.zeros_like(self.delta(senders[0])))

    def time(self, sender: str) -> float:
        if sender.startswith("input"):
            return -1.0
        late = sender.startswith("m") or self.parallel
        return int(sender[1]) + (0.5 if late else 0.0)

    def change(self, senders: list[str], receiver: str) -> tuple[nn.Module, str, Any]:
        """The receiver's new value, as a change of a module's output."""
        receiver, _, at = receiver.partition("@")
        place = slice(int(at), int(at) + 1) if at else slice(None)
        index = int(receiver[1])
        layer, corrupted = self.layer(index), self.runs[1]
        stream = corrupted.inputs[layer.block]
        if receiver.startswith("m"):
            attn = 0 if self.parallel else corrupted.outputs[layer.attn]
            before = index if self.parallel else index + 0.5
            out = layer.mlp(layer.ln2(stream + attn + self.deltas(senders, before)))
            return layer.mlp, "output", lambda whole: _placed(whole, out, place)
        role, head = receiver[-2], int(receiver[4])
        projected = layer.qkv[role](layer.ln1(stream + self.deltas(senders, index)))
        new = split_heads(projected, self.shape, role)[:, :, head]

        def replaced(whole: Tensor) -> Tensor:
            share = split_heads(whole, self.shape, role).clone()
            share[:, place, head] = new[:, place]
            return join_heads(whole, share, self.shape, role)

        return layer.qkv[role], "output", replaced

    def path(self, senders: list[str], receivers: list[str]) -> Tensor:
        changes = [self.change(senders, one) for one in receivers if one != "logits"]
        if "logits" in receivers:
            depth = self.shape.layers
            last, told = self.layer(depth - 1).block, self.deltas(senders, depth)
            changes.append((last, "output", lambda whole: whole + told))
        return run_changing(self.model, changes, self.corrupted)


def _placed(whole: Tensor, new: Tensor, place: slice) -> Tensor:
    found = whole.clone()
    found[:, place] = new[:, place]
    return found
