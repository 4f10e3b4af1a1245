"""What a cache is asked by its methods for the residual stream: stacks, columns, norms, weights."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from lensbridge.cache.owner import CachedModel
from lensbridge.cache.residual.decomposition import Decomposition
from lensbridge.cache.residual.norm_map import NormMap
from lensbridge.cache.residual.one_device import OnOneDevice
from lensbridge.cache.residual.target import Target
from lensbridge.errors import InputError
from lensbridge.inputs.positions import ColumnOwner, column_owner
from lensbridge.native.norm import Norm
from lensbridge.native.parts import StackPart
from lensbridge.points.point_names import PointNames
from lensbridge.tensors.positions import padded, token_positions
from lensbridge.tensors.slices import PosSlice, RowColumns, taken

Stacked: TypeAlias = "Tensor | tuple[Tensor, list[str]]"
"""Rows, or with `return_labels` rows and their labels."""


class StreamReader:
    """What the methods that decompose the stream need of a cache."""

    model: CachedModel | None
    vocabulary: PointNames
    has_batch_dim: bool
    tokens: Tensor | None
    attention_mask: Tensor | None
    decoder_attention_mask: Tensor | None
    processed: tuple[str, ...]
    require: Callable[[Iterable[str]], None]
    axes: Callable[..., str]
    __getitem__: Callable[..., Tensor]
    __iter__: Callable[..., Iterator[str]]

    def _model(self) -> CachedModel:
        if self.model is None:
            raise InputError(
                "This cache has no model, and this needs the model's weights. Pass it: "
                "ActivationCache.load(path, model=...)."
            )
        return self.model

    def _same_weights(self) -> None:
        """Require that the model's weights are those of the run.

        Raises:
            InputError: they were processed differently in the run.
        """
        model = self._model()
        now = model.processed_by
        if now != self.processed:
            raise InputError(
                "What heads and neurons add is computed with the weights of the run, and these "
                f"changed: processed by {', '.join(self.processed) or 'nothing'} then, by "
                f"{', '.join(now) or 'nothing'} now. Call this in the same "
                "`with model.processed(...)`, or run again."
            )

    def _columns(self, pos_slice: PosSlice, stack: str | None = None) -> PosSlice | RowColumns:
        """Positions, which count the tokens of each text, as columns of a stack's activations.

        A cache of chosen positions has other columns than its text; there positions are columns.
        """
        masks = (self.attention_mask, self.decoder_attention_mask)
        if pos_slice is None or all(mask is None for mask in masks):
            return token_positions(pos_slice, None)
        part = self._stack(stack)
        inside = (name for name in self if name.startswith(f"{part.prefix}."))
        for name in inside:
            letters = self.axes(name).split()
            if "p" in letters and not name.endswith(("cross_attn.hook_k", "cross_attn.hook_v")):
                size = self[name].shape[letters.index("p")]
                return token_positions(pos_slice, self.real_tokens(size, part.prefix))
        return token_positions(pos_slice, None)

    def real_tokens(self, size: int, stack: str | None = None) -> Tensor | None:
        """Which columns of an activation hold tokens; None if all do, or if it is not known.

        It is not known for caches of chosen positions.

        Args:
            size: how many columns the activation has.
            stack: the prefix of its stack; None: the main one.

        Shapes: `[batch, size]`
        """
        owner = "text" if self.model is None else self._owner(stack)
        decodes = owner == "decoder"
        mask = self.decoder_attention_mask if decodes else self.attention_mask
        tokens = None if decodes else self.tokens
        if owner == "tower" or mask is None or mask.shape[-1] < size:
            return None
        if size != (mask.shape[-1] if tokens is None else tokens.shape[-1]):
            return None
        return padded(mask if mask.ndim > 1 else mask[None], size)

    def _owner(self, stack: str | None) -> ColumnOwner:
        part = self._stack(stack)
        return column_owner(self._model().native, f"{part.prefix}.0.hook_resid_pre")

    def _stack(self, prefix: str | None) -> StackPart:
        native = self._model().native
        if prefix is None:
            return native.main
        found = {stack.prefix: stack for stack in native.stacks}
        if prefix not in found:
            raise InputError(f"There is no stack {prefix!r}. Pass one of: {', '.join(found)}.")
        return found[prefix]

    @property
    def _together(self) -> Mapping[str, Tensor]:
        """The activations on one device, so that they can be added and stacked."""
        values: Mapping[str, Tensor] = self  # type: ignore[assignment]
        return OnOneDevice.of(values)

    def _target(self, part: StackPart, layer: int | None, mlp_input: bool) -> Target:
        front = self._model().native.front_of(part)
        return Target.of(part, front, self.vocabulary, layer, mlp_input)

    def _decomposition(
        self,
        stack: str | None,
        layer: int | None,
        mlp_input: bool = False,
        pos_slice: PosSlice = None,
        apply_ln: bool = False,
        directions: Tensor | None = None,
    ) -> Decomposition:
        part = self._stack(stack)
        width = part.sizes.d_model
        if directions is not None and len(directions) != width:
            raise InputError(
                f"project_output_onto has {len(directions)} channels; the stream has {width}."
            )
        front = self._model().native.front_of(part)
        target = self._target(part, layer, mlp_input)
        columns = self._columns(pos_slice, stack)
        return Decomposition(
            self._together,
            self.vocabulary,
            part,
            front,
            target,
            columns,
            apply_ln,
            directions,
            from_ids=self.tokens is not None,
        )

    def _normed(
        self,
        rows: Tensor,
        target: Target,
        columns: PosSlice | RowColumns,
        batch_slice: PosSlice,
        recompute: bool,
    ) -> Tensor:
        """Rows after the norm that reads the target: as summands, or each normalized by itself."""
        norm = target.norm
        if norm is None:
            return rows
        if recompute:
            with torch.set_grad_enabled(rows.requires_grad):
                return torch.stack([norm.gated(norm.affine(norm.normalize(row))) for row in rows])
        divisor = taken(self._together[target.scale], columns, -2)
        if self.has_batch_dim and batch_slice is not None:
            divisor = taken(divisor, batch_slice, -divisor.ndim)
        _require_fit(rows, divisor, norm)
        return NormMap.of(norm, divisor).forward(rows)


def _require_fit(rows: Tensor, divisor: Tensor, norm: Norm) -> None:
    """Require the rows to be of the divisor's examples and positions: broadcasting would pass."""
    while divisor.ndim > rows.ndim and divisor.shape[0] == 1:
        divisor = divisor[0]
    there, of = rows.shape[:-1], divisor.shape[:-1]
    pairs = zip(reversed(there), reversed(of), strict=False)
    if len(of) > len(there) or any(its not in (1, size) for size, its in pairs):
        raise InputError(
            f"The rows have shape {list(there)}, and the run's examples and positions are "
            f"{list(of)} after the slices. Pass the pos_slice and has_batch_dim of the rows."
        )
    if rows.shape[-1] != norm.width:
        raise InputError(f"The rows have {rows.shape[-1]} channels; the stream has {norm.width}.")
