"""Direct logit attribution: what each part of the model contributes to a token's logit."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeAlias, get_args

import torch
from torch import Tensor

from lensbridge.analysis.attribution_result import DirectLogitAttribution, Unit
from lensbridge.analysis.head import head_of, require_equal
from lensbridge.analysis.positions import Positions, PositionsAsked, positions_of, real_tokens
from lensbridge.analysis.selection import token_ids
from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.points.names import stack_of
from lensbridge.points.table import BY_TEMPLATE
from lensbridge.tensors.positions import Count

Answers: TypeAlias = str | int | Sequence[str | int] | Tensor
"""The tokens whose logit is split: one as text or id, one for each example, or ids."""

_WRITTEN = (
    "hook_embed",
    "hook_pos_embed",
    "ln_embed.hook_out",
    "ln_embed.hook_normalized",
    "hook_scale",
    "hook_resid_pre",
    "hook_resid_post",
    "hook_attn_out",
    "hook_cross_attn_out",
    "hook_mixer_out",
    "hook_mlp_out",
    "hook_per_layer_out",
)
"""Suffixes of the names that every attribution reads."""

_CHECKED = 4
"""How many sums of attributions are compared with the model's own logits."""


@torch.no_grad()
def direct_logit_attribution(
    model: HookedModel,
    input: Any = None,
    answer_tokens: Answers | None = None,
    incorrect_tokens: Answers | None = None,
    unit: Unit = "component",
    pos: PositionsAsked = -1,
    cache: ActivationCache | None = None,
    *,
    count: Count = "tokens",
    **forward: Any,
) -> DirectLogitAttribution:
    """Split a token's logit, or the difference of two, into contributions of the model's parts.

    The final norm divides by the scale of the run, so the logit is linear in what each part writes.
    Norms and multipliers after a branch count as part of it.

    Args:
        model: the model; its weights need not be processed.
        input: what to run, as `forward` takes it; or pass a cache.
        answer_tokens: one token for all, one for each example, or ids `[batch, pos]`.
        incorrect_tokens: as many tokens, whose logits are subtracted.
        unit: "component": embeddings, each attention, MLP and mixer. "layer": embeddings, and each
            layer as a whole. "head": each attention head, and one `remainder`. "neuron": each
            neuron of the MLPs, and one `remainder`.
        pos: as in `logit_lens`: an index counts the tokens of each row, so -1 is the last token
            before any padding, and drops the axis; None for all.
        cache: a cache with what the units need.
        count: as in `logit_lens`.
        forward: other arguments of `forward`, for a run.

    Shapes: attribution `[unit, batch]`, or `[unit, batch, pos]`

    Raises:
        InputError: neither input nor cache, no answer, numbers of tokens that do not match, or a
            head that is not linear.
        NotCachedError: the cache lacks what the units need.
        LensbridgeError: the attributions do not sum to the model's own logits.

    Example:
        >>> import lensbridge
        >>> from lensbridge.analysis import direct_logit_attribution
        >>> model = lensbridge.load("demo")
        >>> text = "When John and Mary went to the store, Mary gave a bottle to"
        >>> result = direct_logit_attribution(model, text, " John", " Mary", unit="head")
        >>> result.top(1)[0][0], round(float(result.logit), 1)
        ('L2H2', 7.8)
    """
    if unit not in get_args(Unit):
        raise InputError(f"unit is {', '.join(map(repr, get_args(Unit)))}, not {unit!r}.")
    if answer_tokens is None:
        raise InputError("Pass answer_tokens: the token whose logit is split.")
    if (input is None) == (cache is None):
        raise InputError("Pass either an input to run or a cache to read.")
    _require_linear(model)
    if cache is None:
        wanted = _wanted(model, unit)
        _, made = model.run_with_cache(input, names_filter=lambda name: name in wanted, **forward)
        cache = made
    return _Split(model, cache, answer_tokens, incorrect_tokens, pos, count).result(unit)


def _require_linear(model: HookedModel) -> None:
    head_of(model)
    if model.native.has_deep_head:
        raise InputError(
            "The head of this model transforms the stream before the projection, so its logits are "
            "not sums over units. Decompose the stream instead: "
            "cache.get_full_resid_decomposition."
        )


def _wanted(model: HookedModel, unit: Unit) -> frozenset[str]:
    """The names of the activations that an attribution needs, in the stack that the head reads."""
    endings = list(_WRITTEN)
    if unit == "head":
        endings += [".attn.hook_z"]
    if unit == "neuron":
        endings += [".mlp.hook_post"]
    main = model.native.main.prefix
    ends = tuple(endings)
    found = {name for name in model.hook_names if name.endswith(ends) and _of_main(model, name)}
    gated = [i for i, block in enumerate(model.native.blocks) if block.attn and block.attn.gated]
    if unit == "head":
        found |= {f"{main}.{i}.attn.hook_result" for i in gated}
    return frozenset(found)


class _Split:
    """One attribution: the run at the chosen positions, and the directions of the tokens."""

    def __init__(
        self,
        model: HookedModel,
        cache: ActivationCache,
        right: Answers,
        wrong: Answers | None,
        pos: PositionsAsked,
        count: Count,
    ) -> None:
        self.model = model
        self.last = f"{model.native.main.prefix}.{len(model.native.blocks) - 1}.hook_resid_post"
        stream = cache[self.last] if cache.has_batch_dim else cache[self.last].unsqueeze(0)
        self.where = positions_of(pos, real_tokens(cache, *stream.shape[:2]), count)
        self.batched = cache.has_batch_dim
        self.cache = at_positions(model, cache, self.where, stream.shape[1])
        self.right = self._ids(right)
        self.wrong = None if wrong is None else self._ids(wrong)
        if self.wrong is not None and self.wrong.shape != self.right.shape:
            raise InputError(
                f"answer_tokens {list(self.right.shape)} and incorrect_tokens "
                f"{list(self.wrong.shape)} differ in number: pass one incorrect token for each."
            )

    def _ids(self, given: Answers) -> Tensor:
        """Ids, `[]` or `[batch, pos]`, with size 1 along axes that share one id."""
        batch, count = self.where.columns.shape
        single = isinstance(given, str | int)
        ids = given.cpu() if isinstance(given, Tensor) else token_ids(self.model, given)
        asked = [] if single else list(ids.shape)
        ids = ids[0] if single else ids.unsqueeze(-1) if ids.ndim == 1 else ids
        fits = ids.ndim == 0 or (
            ids.ndim == 2 and ids.shape[0] in (1, batch) and ids.shape[1] in (1, count)
        )
        if ids.is_floating_point() or not fits:
            raise InputError(
                f"Pass one token for all, one for each of the {batch} examples, or ids "
                f"[{batch}, {count}]; got {asked}."
            )
        return ids

    @cached_property
    def directions(self) -> Tensor:
        """The direction along which the final norm's output is read.

        Shapes: `[d_model]` or `[batch, pos, d_model]`, with size 1 along axes that share one
        """
        native, read = self.model.native, self.model.tokens_to_residual_directions
        found = read(self.right) if self.wrong is None else read(self.right) - read(self.wrong)
        return found.detach() * (native.head_scale * native.logit_scale)

    def result(self, unit: Unit) -> DirectLogitAttribution:
        rows, labels = self._rows(unit)
        bias = self._bias().to(rows).expand(rows.shape[1:])
        self._check(rows.sum(0) + bias)
        if self.where.single:
            rows, bias = rows.squeeze(2), bias.squeeze(1)
        if not self.batched:
            rows, bias = rows.squeeze(1), bias.squeeze(0)
        return DirectLogitAttribution(rows, labels, unit, bias)

    def _rows(self, unit: Unit) -> tuple[Tensor, list[str]]:
        """Attributions `[unit, batch, pos]` with their labels."""
        if unit in ("component", "layer"):
            terms, labels = self.cache.decompose_resid(apply_ln=True, return_labels=True)
            rows = (terms * self.directions.to(terms)).sum(-1)
            return (rows, labels) if unit == "component" else _by_layer(rows, labels)
        if self.directions.ndim == 1:
            return self._shares(self.cache, unit, self.directions)
        parts, labels = [], []
        directions = self.directions.expand(*self.where.columns.shape, -1)
        for i, mine in enumerate(directions):  # one example at a time: each has its own directions
            example = self.cache.apply_slice_to_batch_dim(slice(i, i + 1))
            rows, labels = self._shares(example, unit, mine.mT)
            parts.append(rows.diagonal(dim1=-2, dim2=-1))
        return torch.cat(parts, dim=1), labels

    def _shares(self, cache: ActivationCache, unit: Unit, onto: Tensor) -> tuple[Tensor, list[str]]:
        stack = cache.stack_head_results if unit == "head" else cache.stack_neuron_results
        rows, labels = stack(
            return_labels=True, incl_remainder=True, apply_ln=True, project_output_onto=onto
        )
        return rows, labels

    def _bias(self) -> Tensor:
        """The part of the logit that no unit contributes. Shapes: `[]` or `[batch, pos]`"""
        native, added = self.model.native, self.model.b_U.detach()
        bias = added[self.right] if self.wrong is None else added[self.right] - added[self.wrong]
        bias = bias * native.logit_scale
        if native.ln_final is None:
            return bias
        shift = native.ln_final.bias().detach()
        return bias + (self.directions * shift.to(self.directions)).sum(-1).to(bias)

    def _check(self, found: Tensor) -> None:
        """Compare the sums with the logits that the model's own norm and head give."""
        head, cut = head_of(self.model), slice(0, _CHECKED)
        stream = self.cache[self.last].flatten(0, 1)[cut]
        head.check(stream[:1])
        logits = head.uncapped(stream)
        shape = self.where.columns.shape

        def own(ids: Tensor) -> Tensor:
            mine = ids.expand(shape).flatten()[cut].to(logits.device)
            return logits.gather(-1, mine.unsqueeze(-1))[:, 0]

        wanted = own(self.right) if self.wrong is None else own(self.right) - own(self.wrong)
        require_equal(found.flatten()[cut], wanted, self.model)


def at_positions(
    model: HookedModel, cache: ActivationCache, where: Positions, length: int
) -> ActivationCache:
    """A cache of some positions of each row, always with a batch axis.

    It has only the activations of the stack that the head reads, and only those with a position
    axis.
    """
    kept = {}
    for name in cache:
        axes = model.engine.sites[name].axes if _of_main(model, name) else ""
        if axes.startswith(("b p ", "1 p ")):
            value = cache[name] if cache.has_batch_dim else cache[name].unsqueeze(0)
            value = value.expand(len(where.columns), *value.shape[1:])
            aligned = value.shape[1] == length  # token embeddings next to those of images are not
            kept[name] = where.of(value) if aligned else value[:, :0]
    return cache.with_tensors(kept, has_batch_dim=True)


def _of_main(model: HookedModel, name: str) -> bool:
    """Whether a name is a point of the stack that the head reads."""
    if name not in model.engine.sites:
        return False
    return stack_of(name) == model.native.main.prefix if stack_of(name) else name in BY_TEMPLATE


def _by_layer(rows: Tensor, labels: list[str]) -> tuple[Tensor, list[str]]:
    """Rows of components summed for each layer; the embeddings are one row, `embed`."""
    groups: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        layer, _, _ = label.partition("_")
        groups.setdefault(f"L{layer}" if layer.isdigit() else "embed", []).append(i)
    return torch.stack([rows[group].sum(0) for group in groups.values()]), list(groups)
