"""The axes of a point in the order that interventions use, and their sizes in a model."""

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
    """Letters of a point's axes, and their order in interventions: batch, position, then heads (if
    there are any), then the rest, with units (features or channels) last.

    Example:
        >>> import torch
        >>> axes = Axes(("b", "h", "q", "k"))
        >>> axes.ordered(torch.zeros(2, 4, 5, 7)).shape
        torch.Size([2, 5, 4, 7])
    """

    letters: tuple[str, ...]

    @property
    def batch(self) -> int | None:
        """Which axis counts examples, if any; its size is 1 if they share a value, as T5's bias."""
        if self.letters[0] == "1":
            return 0
        return self.letters.index("b") if "b" in self.letters else None

    @property
    def has_batch(self) -> bool:
        """Whether an axis counts examples."""
        return self.batch is not None

    @property
    def position(self) -> int | None:
        """Which axis counts positions, if any; in a pattern, those of queries."""
        return next((self.letters.index(a) for a in "pqk" if a in self.letters), None)

    @property
    def head(self) -> int | None:
        """Which axis counts heads, if any."""
        return next((self.letters.index(a) for a in "hg" if a in self.letters), None)

    @property
    def last(self) -> str:
        """The letter of the last axis: that of units where there are any."""
        return "u" if "u" in self.letters else self.letters[-1]

    @property
    def keys(self) -> bool:
        """Whether the last axis counts the positions that are attended to."""
        return self.last == "k" and self.position is not None and "q" in self.letters

    def _order(self) -> list[int]:
        front = [axis for axis in (self.batch, self.position, self.head) if axis is not None]
        back = [self.letters.index("u")] if "u" in self.letters else []
        between = (i for i in range(len(self.letters)) if i not in (*front, *back))
        return [*front, *between, *back]

    def ordered(self, value: Tensor) -> Tensor:
        """A view `[batch, pos, (head), ...]`; a missing batch or position axis has size 1."""
        found = value.permute(self._order())
        found = found if self.has_batch else found.unsqueeze(0)
        return found if self.position is not None else found.unsqueeze(1)

    def restored(self, value: Tensor) -> Tensor:
        """The inverse of `ordered`: a value with the axes of the model."""
        found = value if self.position is not None else value.squeeze(1)
        found = found if self.has_batch else found.squeeze(0)
        order = self._order()
        return found.permute([order.index(i) for i in range(len(order))])


def size_of(native: ResolvedModel, name: str, letter: str) -> int | None:
    """The size of a point's axis, if it is known and the same in every run; else None."""
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
    """Whether a point is as wide as the stream: embeddings may be narrower."""
    table = None if native.main.embed is None else native.main.embed._parameters.get("weight")
    narrow = table is not None and table.shape[-1] != native.sizes.d_model
    return not narrow or layer_of(name) is not None


def _around(native: ResolvedModel, name: str) -> StackPart:
    """The stack that a point outside the layers belongs to."""
    towers = [tower for tower in native.towers if name.startswith(native.front_of(tower))]
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
        return None  # the projections do not say what the kernel is called with
    if letter == "d":
        return attn.d_head if role is None else role.d
    if role is not None:
        return role.n
    return attn.n_kv if letter == "g" else attn.n_heads


def _role(attn: AttentionPart, last: str) -> Role | None:
    roles = {"hook_q": attn.q, "hook_k": attn.k, "hook_v": attn.v}
    roles |= {"hook_q_input": attn.q, "hook_k_input": attn.k, "hook_v_input": attn.v}
    return roles.get(last)
