"""Job: a harvest with its model loaded and its names found, ready to compute shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from lensbridge.errors import InputError
from lensbridge.harvest.encoding import Encoder
from lensbridge.harvest.opening import open_source
from lensbridge.harvest.packing import Packer
from lensbridge.harvest.shard_rows import ShardRows
from lensbridge.harvest.source import Source
from lensbridge.harvest.spec import Spec
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.positions import column_owner
from lensbridge.native.parts import StackPart
from lensbridge.points.names import Name, is_before_layers, is_short, layer_of, stack_of

_LONGEST = 1024
"""The length of rows where none is asked for and the model's context is longer."""


@dataclass(frozen=True)
class Job:
    """A harvest that can be computed here.

    Args:
        spec: what is asked for.
        model: the model.
        source: the documents.
    """

    spec: Spec
    model: HookedModel
    source: Source

    @classmethod
    def of(cls, spec: Spec) -> Job:
        """Load the model if it is a name, and look for the points.

        Raises:
            InputError: the data or the length does not fit the model.
            UnknownPointError: there is no such point.
        """
        source = open_source(spec.data, spec.field)  # before the model is loaded
        job = cls(spec, open_model(spec.model), source)
        assert job.names  # wrong names are refused before anything is written
        return job

    @cached_property
    def names(self) -> list[str]:
        """The canonical names of the points."""
        return token_points(self.model, self.spec.points, self.spec.layers)

    @cached_property
    def length(self) -> int:
        """Tokens of a row at most.

        Raises:
            InputError: it is longer than the model's context.
        """
        most, asked = self.model.cfg.n_ctx, self.spec.rows.length
        if asked is None:
            return min(most or _LONGEST, _LONGEST)
        if most and asked > most:
            raise InputError(f"length={asked} is longer than the context of the model, {most}.")
        return asked

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """The dtype that is stored; None: that of the value."""
        asked = self.spec.dtype
        found = getattr(torch, asked, None) if isinstance(asked, str) else asked
        if found is not None and not (
            isinstance(found, torch.dtype) and (found.is_floating_point or found.is_complex)
        ):
            raise InputError(f"dtype is a floating dtype such as 'bfloat16', not {asked!r}.")
        if asked is not None and found is None:
            raise InputError(f"There is no dtype {asked!r}; write 'bfloat16' or 'float32'.")
        return found

    @cached_property
    def last_layer(self) -> int | None:
        """The layer before which a run stops; None: it goes to the end."""
        main = self.model.native.main
        needed = [_layers_for(one, main) for one in self.names]
        last = max((-1 if one is None else one for one in needed), default=-1)
        return last if None not in needed and last < len(main.blocks) else None

    @cached_property
    def at_stop(self) -> str | None:
        """The point whose value a run gives where it stops: the input of the next layer."""
        name = f"{self.model.native.main.prefix}.{self.last_layer}.hook_resid_pre"
        return name if name in self.names else None

    def shard_rows(self) -> ShardRows:
        """The rows of all shards, to be read from the first on."""
        rows, tokens = self.spec.rows, self.model.tokens
        encoder = Encoder(tokens, self.model.cfg.d_vocab)
        concat = rows.packing == "concat"
        packer = Packer(
            read=lambda place: encoder.encoded(self.source.documents(place)),
            packing=rows.packing,
            length=self.length,
            bos=encoder.first(rows.bos),
            always=rows.bos is True,
            separator=encoder.between(rows.separator) if concat else None,
        )
        return ShardRows(packer, self.spec.shard_tokens, self.spec.max_tokens)


def _layers_for(name: str, stack: StackPart) -> int | None:
    """How many layers of a stack have to run for a point; None: all, and what follows them."""
    if is_before_layers(name):
        return 0
    layer = layer_of(name) if stack_of(name) == stack.prefix else None
    if layer is None:
        return None
    block = stack.blocks[layer]
    own = block.repeat is None and not block.flattens  # so that its input is the stream
    return layer if own and name.endswith(".hook_resid_pre") else layer + 1


def open_model(given: Any) -> HookedModel:
    """The model of a harvest: loaded by its name, on the device of this rank, or as it is given.

    Raises:
        InputError: it is neither a name nor a model.
    """
    from lensbridge.loading import load

    if isinstance(given, HookedModel):
        return given
    if isinstance(given, nn.Module):
        return load(given)
    if not isinstance(given, (str, os.PathLike)):
        raise InputError(f"model is a name or a model, not {type(given).__name__}.")
    if not torch.cuda.is_available():
        return load(str(given))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return load(str(given), device=f"cuda:{local}")


def token_points(
    model: HookedModel, asked: Iterable[Name], layers: Iterable[int] | None
) -> list[str]:
    """The canonical names of points that have a value for each token of the text.

    Args:
        model: the model.
        asked: names, short names and globs.
        layers: the layers of short names without one; None: all.

    Raises:
        InputError: a point has no value for each token.
        UnknownPointError: there is no such point.
    """
    chosen = None if layers is None else list(layers)
    wanted: list[Name] = []
    for one in asked:
        if chosen is not None and isinstance(one, str) and is_short(one):
            wanted += [(one, layer) for layer in chosen]
        else:
            wanted.append(tuple(one) if isinstance(one, list) else one)  # from JSON
    names = model.vocabulary.select(wanted)
    for name in names:
        axes, owner = model.explain(name).axes, column_owner(model.native, name)
        if owner != "text":
            raise InputError(
                f"{name} belongs to the {owner} of {model.cfg.model_name}. A harvest is of models "
                "with one stack of layers for text, and of the points in that."
            )
        if not axes.startswith("b p"):
            raise InputError(
                f"{name} has the axes {axes}; a harvest is of points with a value for each token "
                "of the text, which begin with 'b p'."
            )
    return names


def axes_of(job: Job) -> Mapping[str, str]:
    """The axes of each point after the token.

    Example: `{"blocks.0.hook_resid_post": "m"}`.
    """
    return {name: job.model.explain(name).axes.removeprefix("b p").strip() for name in job.names}
