"""The methods of a model as a torch module: parameters, state, device."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import nn

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.parameters import as_parameter
from lensbridge.compat.transformer_lens.root_module import HookedRootModule
from lensbridge.compat.transformer_lens.weights import Weights
from lensbridge.model import LensModel

_PROCESS = "Weights are processed in their model: model.process_weights_(fold_ln=True, ...)."
INSTEAD = {
    **dict.fromkeys(
        (
            "fold_layer_norm",
            "center_writing_weights",
            "center_unembed",
            "fold_value_biases",
            "refactor_factored_attn_matrices",
        ),
        _PROCESS,
    ),
    "fill_missing_keys": "load_state_dict(state, strict=False) leaves what is missing as it is.",
    "get_residual": "model.input_to_embed(input)[0] is what the first layer reads.",
    "init_weights": "HookedTransformer(cfg) makes a model with fresh weights.",
    "load_sample_training_dataset": "model.dataset = utils.get_dataset('openwebtext'), 'pile', ...",
    "move_model_modules_to_device": "model.to(device) moves all of it.",
}
"""Methods of TransformerLens's classes that are not here -> what to do instead."""


class ModuleMethods(HookedRootModule):
    """Weights under TransformerLens's names, and the methods that move a model."""

    lens: LensModel
    hf_model: nn.Module
    cfg: HookedTransformerConfig

    @cached_property
    def weights(self) -> Weights:
        """Every weight by name."""
        return Weights.of(self.lens, str(self.cfg.normalization_type).endswith("Pre"))

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """Every weight under its TransformerLens name; train with `parameters()`.

        Setting `requires_grad` freezes the native parameter.
        """
        known = list(self.parameters())
        return ((name, as_parameter(read(), known)) for name, read in self.weights.stored.items())

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The HuggingFace model's own parameters, for an optimizer."""
        return self.hf_model.parameters(recurse)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Every weight under its TransformerLens name."""
        return {name: read().detach() for name, read in self.weights.stored.items()}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> None:
        """Write weights into the model, under their TransformerLens or native names.

        Raises:
            WeightError: with `strict`, weights that are missing or that the model does not have.
        """
        native = self.hf_model.state_dict()
        if set(state_dict) <= set(native):
            self.hf_model.load_state_dict(state_dict, strict=strict, assign=assign)
            return
        self.weights.write(self.weights.fitting(state_dict, strict))

    def to(self, *args: Any, print_details: bool = True, **kwargs: Any) -> Any:
        """Move the model in place, or change its dtype."""
        self.hf_model.to(*args, **kwargs)
        self.cfg.device, self.cfg.dtype = str(self.lens.device), self.lens.dtype
        return self

    def cuda(self, device: Any = None) -> Any:
        """Move the model to a GPU."""
        return self.to("cuda" if device is None else device)

    def mps(self) -> Any:
        """Move the model to an Apple GPU."""
        return self.to("mps")

    @property
    def n_params_total(self) -> int:
        """The number of learned parameters, counted in numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def cpu(self) -> Any:
        """Move the model to the CPU."""
        return self.to("cpu")
