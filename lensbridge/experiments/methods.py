"""The method of `LensModel` that runs experiments."""

from __future__ import annotations

from lensbridge.errors import InputError
from lensbridge.experiments.experiment import Experiment
from lensbridge.experiments.result import ExperimentResult
from lensbridge.experiments.running import Running
from lensbridge.generation.methods import GenerationMethods


class ExperimentMethods(GenerationMethods):
    """Experiments, as a method of a model."""

    def run(self, experiment: Experiment) -> ExperimentResult:
        """Run an experiment: everything that it asks for, in one call.

        Args:
            experiment: inputs, points, interventions, a metric, and what is swept, differentiated
                or generated.

        Raises:
            InputError: a part does not fit the model or the inputs.
            UnknownPointError: no point has the name.

        Example:
            >>> import lensbridge
            >>> from lensbridge.experiments import Prob
            >>> model = lensbridge.load("demo")
            >>> text = "The Eiffel Tower is in the city of"
            >>> result = model.run(lensbridge.Experiment(text, metric=Prob(" Paris")))
            >>> bool(result.metric > 0.5)
            True
        """
        if not isinstance(experiment, Experiment):
            raise InputError(
                f"run takes an Experiment, not a {type(experiment).__name__}. For one run call the "
                "model itself: model(input), model.run_with_cache(input)."
            )
        return Running(self, experiment, self.generate).result()
