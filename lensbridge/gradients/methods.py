"""Methods of `LensModel` for gradients at any points, and Jacobians of one point by another.

The model runs as it is; autograd gives gradients of the tensors that the model computes with.
Parameters' `.grad` stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.capture import Keep
from lensbridge.gradients.backward import (
    Objective,
    require_autograd,
    said_by,
    without_cache,
)
from lensbridge.gradients.jacobian import End, jacobian_of
from lensbridge.gradients.points import (
    Gradients,
    GradientsAndActivations,
    gradients_of_each,
)
from lensbridge.hooked_model import HookedModel
from lensbridge.points.names import Name
from lensbridge.points.point_names import NamesFilter
from lensbridge.tensors.dtypes import dtype_of
from lensbridge.tensors.positions import Count
from lensbridge.tensors.slices import PosSlice

_OF_THE_RUN = ("start_at_layer", "stop_at_layer")


class GradientMethods(HookedModel):
    """Methods of `LensModel` for gradients."""

    @overload
    def gradients(
        self, input: Any, names_filter: NamesFilter, of: Objective = "loss", **options: Any
    ) -> Gradients | GradientsAndActivations: ...
    @overload
    def gradients(
        self, input: Any, names_filter: NamesFilter, of: Mapping[str, Objective], **options: Any
    ) -> dict[str, Gradients | GradientsAndActivations]: ...
    @overload
    def gradients(
        self, input: Any, names_filter: NamesFilter, of: list[Objective], **options: Any
    ) -> list[Gradients | GradientsAndActivations]: ...
    def gradients(
        self,
        input: Any,
        names_filter: NamesFilter,
        of: Any = "loss",
        *,
        at: NamesFilter = None,
        return_activations: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        pos_slice: PosSlice = None,
        count: Count = "tokens",
        **forward: Any,
    ) -> Any:
        """Run the model forward and back, and keep gradients at some points.

        Each gradient is that of the unmodified model, whatever else is asked for. One run gives
        most of them. Inputs of heads and branches get a run of their own where gradients at their
        norm are asked for too, because the two cannot be had together.

        Args:
            input: as in `forward`.
            names_filter: at which points, as in `run_with_cache`.
            of: what is differentiated: a function that maps logits `[batch, pos, d_vocab]` to one
                number, a declared metric of `lensbridge.experiments`, or "loss". Several in a list
                or by name share the run forward; the result is then a list, or a mapping.
            at: points, as in `names_filter`; `of` is then called with a cache of their activations
                instead of the logits.
            return_activations: also keep the activations there.
            device: where to keep them.
            dtype: in which dtype to keep them.
            pos_slice: which positions to keep, as in `run_with_cache`; the axis stays.
            count: as in `run_with_cache`.
            forward: other arguments of `forward`.

        Shapes: each gradient has the shape and name of its activation. It is zeros where the
            number does not depend on the activation.

        Raises:
            InputError: the objective does not give one number, or has no gradient.
            HookNeverFiredError: a named point that the run did not pass.

        Example:
            >>> import lensbridge
            >>> model = lensbridge.load("demo")
            >>> loss, grads = model.gradients("The Eiffel Tower is in", ["z", "resid_post"])
            >>> grads["z", 2].shape
            torch.Size([1, 6, 4, 32])
            >>> of = {"first": lambda x: x[0, -1, 1], "second": lambda x: x[0, -1, 2]}
            >>> list(model.gradients("The Eiffel Tower is in", ["z"], of))
            ['first', 'second']
            >>> neuron = lambda cache: cache["mlp_post", 2][0, -1, 7]
            >>> _, grads = model.gradients("The", ["embed"], neuron, at=("mlp_post", 2))
        """
        several = isinstance(of, Mapping | list | tuple)
        named = of if isinstance(of, Mapping) else dict(enumerate(of if several else [of]))
        found = gradients_of_each(
            self,
            input,
            names_filter,
            list(named.values()),
            Keep(device, dtype_of(dtype), pos_slice, count=count),
            at=at,
            return_activations=return_activations,
            **forward,
        )
        if isinstance(of, Mapping):
            return dict(zip(of, found, strict=True))
        return found if several else found[0]

    def activation_x_gradient(
        self, input: Any, names_filter: NamesFilter, of: Objective = "loss", **options: Any
    ) -> ActivationCache:
        """Each activation times its gradient: to first order, what setting it to zero takes away.

        Args:
            input: as in `forward`.
            names_filter: at which points.
            of: as in `gradients`.
            options: other options of `gradients`.

        Shapes: as the activations; sum over the entries that should count as one.
        """
        found = self.gradients(input, names_filter, of, return_activations=True, **options)
        assert isinstance(found, GradientsAndActivations)
        grads = found.gradients
        return grads.with_tensors({name: found.activations[name] * grads[name] for name in grads})

    def jacobian(
        self,
        input: Any,
        source: Name,
        target: Name,
        *,
        positions: PosSlice = None,
        source_positions: PosSlice = None,
        count: Count = "tokens",
        chunk: int | None = None,
        **forward: Any,
    ) -> Tensor:
        """How one activation changes with another, entry by entry, for each example.

        The Jacobian of a block:
        `model.jacobian(text, ("resid_pre", 2), ("resid_post", 2), positions=-1)`.

        Args:
            input: as in `forward`.
            source: the point that is varied.
            target: the point whose change is measured.
            positions: which positions of the target; an int removes the axis.
            source_positions: which positions of the source, likewise.
            count: "columns": positions count columns of the batch, padding included.
            chunk: how many rows one backward pass gives; each needs a copy of the input in the
                batch.
            forward: other arguments of `forward`.

        Shapes: `[batch, *target, *source]`, each without its batch axis.

        Raises:
            InputError: the target does not depend on the source, or lacks the axis.
        """
        require_autograd()
        end = End.of(self, target, positions)
        begin = End.of(self, source, source_positions)
        prepare = {k: forward.pop(k) for k in list(forward) if k not in _OF_THE_RUN}
        prepare = {**without_cache(self, said_by(input, prepare)), **prepare}
        prepared = self.prepare(input, **prepare)
        end, begin = (one.for_input(self.native, prepared, count) for one in (end, begin))
        with torch.enable_grad():
            return jacobian_of(self, prepared, end, begin, chunk, forward)
