"""A model whose query heads each have a key and a value of their own, on the same weights.

TransformerLens's `ungroup_grouped_query_attention` asks for it: keys, values and their inputs then
have the query heads' axis, and an edit reaches one query head alone.
"""

from copy import deepcopy
from typing import Any, Protocol

from torch import Tensor, nn

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.opening import reopened
from lensbridge.compat.transformer_lens.point import HookPoint
from lensbridge.errors import HookError
from lensbridge.model import LensModel
from lensbridge.native.parts import AttentionPart


class RepeatedProjection(nn.Linear):
    """A projection to keys or values, whose heads are repeated for the query heads.

    Its parameters are those of the projection that it is made from.

    Args:
        stored: the projection of the shared heads.
        heads: how many there are.
        repeats: how many query heads share one.
    """

    def __init__(self, stored: nn.Linear, heads: int, repeats: int) -> None:
        nn.Module.__init__(self)
        self.stored, self.heads, self.repeats = stored, heads, repeats
        self.in_features, self.out_features = stored.in_features, stored.out_features * repeats

    def _repeated(self, value: Tensor, axis: int) -> Tensor:
        split = value.unflatten(axis, (self.heads, -1))
        at = axis if axis >= 0 else axis - 1
        return split.repeat_interleave(self.repeats, at).flatten(at, at + 1)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Shapes: `[query heads * d_head, d_model]`, a copy."""
        return self._repeated(self.stored.weight, 0)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """Shapes: `[query heads * d_head]`, a copy."""
        return None if self.stored.bias is None else self._repeated(self.stored.bias, 0)

    def forward(self, input: Tensor, *beside: Any) -> Tensor:
        """The projection, with each head repeated."""
        project: Any = self.stored.forward
        return self._repeated(project(input, *beside), -1)


def ungrouped(lens: LensModel) -> Any:
    """A copy of a HuggingFace model with the same parameters, and a key for each query head.

    Raises:
        HookError: its attention does not allow it.
    """
    shared = [*lens.hf_model.parameters(), *lens.hf_model.buffers()]
    copied: Any = deepcopy(lens.hf_model, {id(one): one for one in shared})
    paths = {module: path for path, module in lens.hf_model.named_modules()}
    for part in _sharing(lens):
        _ungroup(copied.get_submodule(paths[part.module]), part)
    copied.config.get_text_config().num_key_value_heads = lens.cfg.n_heads
    return copied


def _ungroup(module: Any, part: AttentionPart) -> None:
    own = dict(part.module.named_modules())
    names = {
        name
        for role in (part.k, part.v)
        for name, one in own.items()
        if role is not None and one is role.linear.module
    }
    plain = all(_is_plain(own[name]) for name in names)
    if len(names) != 2 or not plain or not hasattr(module, "num_key_value_groups"):
        raise HookError(
            f"ungroup_grouped_query_attention: {part.path} does not project keys and values in two "
            "plain nn.Linear modules, so they cannot be repeated for each query head. Leave it "
            "off: keys and values then have the axis of their own heads."
        )
    repeats = part.n_heads // part.n_kv
    for name in names:
        stored = module.get_submodule(name)
        module.set_submodule(name, RepeatedProjection(stored, part.n_kv, repeats))
    module.num_key_value_groups = 1
    if hasattr(module, "num_key_value_heads"):
        module.num_key_value_heads = part.n_heads


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear or getattr(module, "is_plain_linear", False)


class Grouped(Protocol):
    """A model whose keys can be ungrouped."""

    lens: LensModel
    grouped_lens: LensModel | None
    cfg: HookedTransformerConfig

    def open_lens(self, lens: LensModel) -> None:
        """Use another `LensModel` from now on."""

    def every_point(self) -> list[HookPoint]:
        """The points of the model."""


def regroup(root: Grouped) -> None:
    """Let a model have the keys and values that its config asks for.

    Raises:
        HookError: its attention does not allow it, or functions are on the points of the model.
    """
    asked, grouped = root.cfg.ungroup_grouped_query_attention, root.grouped_lens
    if asked == (grouped is not None) or (not (asked and _sharing(root.lens)) and grouped is None):
        return
    hooked = [point.name for point in root.every_point() if point.has_hooks()]
    if hooked:
        raise HookError(
            f"ungroup_grouped_query_attention changes the points of the model, and {hooked[0]} has "
            "hooks. Set it before you add hooks, or call "
            "model.reset_hooks(including_permanent=True)."
        )
    if grouped is not None:
        root.grouped_lens = None
        root.open_lens(grouped)
        return
    copied = ungrouped(root.lens)
    root.grouped_lens = root.lens
    root.open_lens(reopened(root.lens, copied))


def _sharing(lens: LensModel) -> list[AttentionPart]:
    """The attentions whose query heads share keys."""
    blocks = [block for stack in lens.native.stacks for block in stack.blocks]
    return [one.attn for one in blocks if one.attn and one.attn.n_kv < one.attn.n_heads]
