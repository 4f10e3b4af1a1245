"""What a model offers around interventions; `lensbridge.interventions` has them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from lensbridge.hooks.methods import HookMethods
from lensbridge.points.vocabulary import NamesFilter

if TYPE_CHECKING:
    from lensbridge.hooked_model import Result
    from lensbridge.interventions import Intervention, Positions
    from lensbridge.interventions.intervention import Indices

Interventions: TypeAlias = "Intervention | Iterable[Intervention]"


class InterventionMethods(HookMethods):
    """Runs with interventions."""

    @contextmanager
    def intervene(self, interventions: Interventions) -> Iterator[Any]:
        """Interventions in every run inside, in this thread only; contexts nest.

        They come behind hooks that are already there, and before those of the calls inside, whose
        caches hold what the interventions made.

        Args:
            interventions: one or several; at one point they act in their order.

        Raises:
            InputError: heads, neurons, values or sources that do not fit the model; before each
                run, positions or values that do not fit its input.
            UnknownPointError: no such point.
            EditError: a point that cannot be edited.
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
        from lensbridge.interventions.plan import callbacks_of

        with self._listening(callbacks_of(self, interventions)):  # type: ignore[arg-type]
            yield self

    def run_with_interventions(
        self, input: Any, interventions: Interventions, **forward: Any
    ) -> "Result":
        """Run the model with interventions.

        Args:
            input: as in `forward`.
            interventions: as in `intervene`.
            forward: other arguments of `run_with_hooks` and `forward`.

        Raises:
            InputError: an intervention that does not fit the model or the input; nothing is run.
        """
        from lensbridge.interventions.plan import acting

        with self.intervene(acting(interventions)):
            model: Any = self
            return model.run_with_hooks(input, **forward)

    def interchange(
        self,
        base: Any,
        sources: Any,
        site: NamesFilter,
        base_positions: "Positions",
        source_positions: "Positions",
        subspace: Any = None,
        heads: "Indices" = None,
        neurons: "Indices" = None,
        **forward: Any,
    ) -> "Result":
        """Run on `base` with activations of `sources` in the place of its own.

        Args:
            base: an input.
            sources: another, of as many examples or of one; example i of it is for example i.
            site: the points whose activations are interchanged.
            base_positions: where they go.
            source_positions: where they come from: as many.
            subspace: `[d, k]` with orthonormal columns; only the coordinates along these.
            heads: only these.
            neurons: only these.
            forward: of `forward`; tokenization options hold for both inputs.

        Raises:
            InputError: positions that do not go together; nothing is run on `base`.
        """
        from lensbridge.interventions.interchange import interchange

        model: Any = self
        return interchange(
            model,
            base,
            sources,
            site,
            base_positions,
            source_positions,
            {"subspace": subspace, "heads": heads, "neurons": neurons},
            **forward,
        )
