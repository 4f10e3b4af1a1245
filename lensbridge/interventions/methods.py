"""Methods of `LensModel` for interventions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, overload

from torch import Tensor

from lensbridge.hooked_model import HookedModel, OneTensor, Result, ReturnType
from lensbridge.interventions.columns import Positions
from lensbridge.interventions.interchange import interchange
from lensbridge.interventions.intervention import Indices
from lensbridge.interventions.running import Interventions, edited, run_edited
from lensbridge.points.point_names import NamesFilter
from lensbridge.tensors.positions import Count


class InterventionMethods(HookedModel):
    """Runs with interventions, as methods of a model."""

    @contextmanager
    def intervene(self, interventions: Interventions) -> Iterator[Any]:
        """Interventions in every run inside the context, in this thread only; contexts nest.

        They act after hooks that are already on the model, and before those of the runs inside, so
        caches of these runs hold the edited activations.

        Args:
            interventions: one or several; at one point they act in their order.

        Raises:
            InputError: heads, neurons, values or sources do not fit the model; before each run,
                positions or values do not fit its input.
            UnknownPointError: no point has the name.
            EditError: a point cannot be edited.
            HookNeverFiredError: at the end, if the model was run and never passed a named point.

        Example:
            >>> import lensbridge
            >>> from lensbridge.interventions import Zero
            >>> model = lensbridge.load("demo")
            >>> with model.intervene([Zero(("z", 1), heads=[0, 2], positions="last")]):
            ...     _, cache = model.run_with_cache("The Eiffel Tower is in the city of")
            >>> cache["z", 1][0, -1].norm(dim=-1) > 0
            tensor([False,  True, False,  True])
        """
        with edited(self, interventions):
            yield self

    @overload
    def run_with_interventions(
        self,
        input: Any,
        interventions: Interventions,
        *,
        return_type: OneTensor = "logits",
        **forward: Any,
    ) -> Tensor: ...
    @overload
    def run_with_interventions(
        self,
        input: Any,
        interventions: Interventions,
        *,
        return_type: ReturnType,
        **forward: Any,
    ) -> Result: ...
    def run_with_interventions(
        self, input: Any, interventions: Interventions, **forward: Any
    ) -> Result:
        """Run the model with interventions.

        Args:
            input: as in `forward`.
            interventions: as in `intervene`.
            forward: other arguments of `run_with_hooks` and `forward`.

        Raises:
            InputError: an intervention does not fit the model or the input; nothing is run.
        """
        return run_edited(self, input, interventions, **forward)

    def interchange(
        self,
        base: Any,
        sources: Any,
        site: NamesFilter,
        base_positions: Positions,
        source_positions: Positions,
        subspace: Any = None,
        heads: Indices = None,
        neurons: Indices = None,
        count: Count = "tokens",
        **forward: Any,
    ) -> Result:
        """Run on `base` with activations of `sources` in place of its own.

        Args:
            base: an input.
            sources: another input, of as many examples or of one; example i of the base takes
                values of example i of it.
            site: the points whose activations are interchanged.
            base_positions: where they go.
            source_positions: where they come from; as many positions.
            subspace: `[d, k]` with orthonormal columns: only the coordinates along these.
            heads: only these heads.
            neurons: only these neurons.
            count: what positions count: "tokens" of each text, or "columns" of the padded batch.
            forward: other arguments of `forward`; tokenization options hold for both inputs.

        Raises:
            InputError: positions cannot be paired; nothing is run on `base`.
        """
        return interchange(
            self,
            base,
            sources,
            site,
            base_positions,
            source_positions,
            {"subspace": subspace, "heads": heads, "neurons": neurons, "count": count},
            **forward,
        )
