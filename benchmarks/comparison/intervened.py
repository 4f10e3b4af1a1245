"""The work that is timed, with pyvene."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison import workload
from benchmarks.comparison.workload import CELLS, LAYERS, gpt2, metric, places, prompts, shrink


class Intervened:
    """pyvene."""

    def __init__(self) -> None:
        self.hf = gpt2()
        self.clean, self.corrupted = ({"input_ids": one} for one in prompts())

    def _model(self, interventions: list[dict[str, Any]]) -> Any:
        import pyvene

        return pyvene.IntervenableModel(interventions, self.hf)

    def idle(self) -> Tensor:
        return self._idle(self.clean, output_original_output=True)[0].logits

    @cached_property
    def _idle(self) -> Any:
        return self._model([])

    @cached_property
    def _collecting(self) -> Any:
        import pyvene

        how = {
            "intervention_type": pyvene.CollectIntervention,
            "max_number_of_units": workload.TOKENS,
        }
        return self._model(
            [{"layer": i, "component": "block_output", **how} for i in range(LAYERS)]
        )

    def stream(self) -> Tensor:
        at = {"base": list(range(workload.TOKENS))}
        return self._collecting(self.clean, unit_locations=at)[1].logits

    @cached_property
    def _edited(self) -> Any:
        names = {
            "z": "attention_value_output",
            "mlp_out": "mlp_output",
            "resid_post": "block_output",
        }
        return self._model(
            [
                {
                    "layer": layer,
                    "component": names[part],
                    "intervention": lambda base, source: shrink(base),
                }
                for part, layer in places()
            ]
        )

    def edits(self) -> Tensor:
        return self._edited(self.clean)[1].logits

    @cached_property
    def _patching(self) -> list[Any]:
        import pyvene

        how = {"component": "block_input", "intervention_type": pyvene.VanillaIntervention}
        return [self._model([{"layer": i, **how}]) for i in range(LAYERS)]

    def sweep(self) -> Tensor:
        found = [
            metric(
                self._patching[layer](
                    self.corrupted, [self.clean], unit_locations={"sources->base": pos}
                )[1].logits
            )[0]
            for layer, pos in CELLS
        ]
        return torch.stack(found)
