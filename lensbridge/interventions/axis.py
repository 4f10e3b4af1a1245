"""The axes of a point as an intervention sees them, and how long they are in a model."""

from dataclasses import dataclass

from torch import Tensor

from lensbridge.native.parts import (
    AttentionPart,
    BlockPart,
    MLPPart,
    MoEPart,
    ResolvedModel,
    Role,
    StackPart,
)
from lensbridge.points.names import layer_of, stack_of


@dataclass(frozen=True)
class Axes:
    """Letters of a point's axes, and the form in which interventions see its values: batch,
    position, then heads (where there are any), then the rest.

    Example:
        >>> import torch
        >>> axes = Axes(("b", "h", "q", "k"))
        >>> axes.ordered(torch.zeros(2, 4, 5, 7)).shape
        torch.Size([2, 5, 4, 7])
    """

    letters: tuple[str, ...]

    @property
    def batch(self) -> int | None:
        """Which axis counts examples, if any; of one entry where they share it, as in T5's bias."""
        if self.letters[0] == "1":
            return 0
        return self.letters.index("b") if "b" in self.letters else None

    @property
    def has_batch(self) -> bool:
        """Whether examples have an axis of their own, or share one."""
        return self.batch is not None

    @property
    def position(self) -> int | None:
        """Which axis counts positions, if any: queries in a pattern."""
        return next((self.letters.index(one) for one in "pqk" if one in self.letters), None)

    @property
    def head(self) -> int | None:
        """Which axis counts heads, if any."""
        return next((self.letters.index(one) for one in "hg" if one in self.letters), None)

    @property
    def last(self) -> str:
        """The letter of the last axis."""
        return self.letters[-1]

    @property
    def keys(self) -> bool:
        """Whether the last axis counts the positions that are looked at."""
        return self.last == "k" and self.position is not None and "q" in self.letters

    def _order(self) -> list[int]:
        front = [one for one in (self.batch, self.position, self.head) if one is not None]
        return [*front, *(i for i in range(len(self.letters)) if i not in front)]

    def ordered(self, value: Tensor) -> Tensor:
        """A view of a value: `[batch, pos, (head), ...]`, with axes of one where there are none."""
        found = value.permute(self._order())
        found = found if self.has_batch else found.unsqueeze(0)
        return found if self.position is not None else found.unsqueeze(1)

    def restored(self, value: Tensor) -> Tensor:
        """A value as the model has it: the inverse of `ordered`."""
        found = value if self.position is not None else value.squeeze(1)
        found = found if self.has_batch else found.squeeze(0)
        order = self._order()
        return found.permute([order.index(i) for i in range(len(order))])


def size_of(native: ResolvedModel, name: str, letter: str) -> int | None:
    """How long an axis of a point is in every run, or None where that depends or is not known."""
    stack = next((one for one in native.stacks if one.prefix == stack_of(name)), None)
    if letter == "v" and stack is None:
        return native.sizes.d_vocab
    if letter == "m":
        return (stack or _around(native, name)).sizes.d_model if _is_wide(native, name) else None
    layer = layer_of(name)
    if stack is None or layer is None:
        return None
    return _in_block(stack.blocks[layer], name.rpartition(".")[2], name, letter)


def _is_wide(native: ResolvedModel, name: str) -> bool:
    """Whether a point is surely as wide as the stream: what is around it may be narrower."""
    table = None if native.main.embed is None else native.main.embed._parameters.get("weight")
    narrow = table is not None and table.shape[-1] != native.sizes.d_model
    return not narrow or layer_of(name) is not None


def _around(native: ResolvedModel, name: str) -> StackPart:
    """The stack that a point outside the layers belongs to."""
    towers = [one for one in native.towers if name.startswith(native.front_of(one))]
    return towers[0] if towers else native.main


def _in_block(block: BlockPart, last: str, name: str, letter: str) -> int | None:
    attn = block.cross if ".cross_attn." in name else block.attn
    if letter in "hgd" and attn is not None:
        return _of_heads(attn, last, letter)
    mlp = block.mlp
    if letter == "e" and isinstance(mlp, MoEPart):
        return mlp.n_experts
    if letter == "f" and isinstance(mlp, MLPPart):
        return mlp.up.n * mlp.up.d
    return None


def _of_heads(attn: AttentionPart, last: str, letter: str) -> int | None:
    role = _role(attn, last)
    if attn.latent is not None and last.startswith("hook_rot"):
        return None  # as the kernel is called, which the projections do not tell
    if letter == "d":
        return attn.d_head if role is None else role.d
    if role is not None:
        return role.n
    return attn.n_kv if letter == "g" else attn.n_heads


def _role(attn: AttentionPart, last: str) -> Role | None:
    roles = {"hook_q": attn.q, "hook_k": attn.k, "hook_v": attn.v}
    roles |= {"hook_q_input": attn.q, "hook_k_input": attn.k, "hook_v_input": attn.v}
    return roles.get(last)
