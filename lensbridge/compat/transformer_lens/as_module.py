"""The methods of a model as a torch module: parameters, state, device."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import nn

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.parameters import as_parameter
from lensbridge.compat.transformer_lens.replacing import Replacements
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
    "hook_aliases": "Attach SAEs to SAELens's HookedSAETransformer: its SAETransformerBridge "
    "writes into lists of TransformerLens's own.",
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
    replacements: Replacements
    grouped_lens: LensModel | None

    @cached_property
    def weights(self) -> Weights:
        """Every weight by name."""
        folded = str(self.cfg.normalization_type).endswith("Pre")
        return Weights.of(self.grouped_lens or self.lens, folded, scales=self.keys == "repeated")

    def modules_by_path(self) -> Mapping[str, Any]:
        """Every part, every point, and what stands in their places, by path."""
        raise NotImplementedError

    @property
    def foreign(self) -> dict[str, nn.Module]:
        """Modules of the user's in the model, by path: attributes, and what stands in places."""
        own = {name: one for name, one in self._modules.items() if one is not None}
        own.pop("hf_model", None)
        return {**own, **self.replacements.foreign}

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        """Every weight under its TransformerLens name; train with `parameters()`.

        Setting `requires_grad` freezes the native parameter.
        """
        known = list(self.hf_model.parameters())
        for name, read in self.weights.stored.items():
            yield name, as_parameter(read(), known)
        seen = {id(parameter) for parameter in known}
        for path, module in self.foreign.items():
            for name, one in module.named_parameters(prefix=path):
                if id(one) not in seen:
                    seen.add(id(one))
                    yield name, one

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The HuggingFace model's own parameters and those of your modules, for an optimizer."""
        modules = [self.hf_model, *self.foreign.values()]
        every = {id(one): one for module in modules for one in module.parameters(recurse)}
        return iter(every.values())

    def named_modules(
        self, memo: set[Any] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """This model, the HuggingFace model's modules, then parts, points and your modules."""
        seen = set() if memo is None else memo
        yield from super().named_modules(seen, prefix, remove_duplicate)
        for name, module in self.modules_by_path().items():
            if isinstance(module, nn.Module) and (module not in seen or not remove_duplicate):
                seen.add(module)
                yield f"{prefix}.{name}".lstrip("."), module

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The HuggingFace model and your modules."""
        yield from super().named_children()
        yield from self.replacements.foreign.items()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Every weight under its TransformerLens name, and those of your modules.

        The arguments are PyTorch's; a module that holds this one passes them.
        """
        given = {**dict(zip(("destination", "prefix"), args, strict=False)), **kwargs}
        state, prefix = given.get("destination"), given.get("prefix", "")
        state = {} if state is None else state
        read = self.weights.in_state()
        state.update({f"{prefix}{name}": one.detach() for name, one in read.items()})
        for path, module in self.foreign.items():
            state.update(module.state_dict(prefix=f"{prefix}{path}."))
        return state

    def state_of(self, path: str) -> dict[str, Any]:
        """The weights of a part, by their names in it."""
        state = self.weights.below(path).in_state()
        return {name: one.detach() for name, one in state.items()}

    def load_state_of(self, path: str, state: Mapping[str, Any], strict: bool) -> None:
        """Write the weights of a part.

        Raises:
            WeightError: with `strict`, weights that are missing or that the part does not have.
        """
        self.weights.below(path).write_state(state, strict)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> None:
        """Write weights into the model, under their TransformerLens or native names.

        Raises:
            WeightError: with `strict`, weights that are missing or that the model does not have.
        """
        for path, module in self.foreign.items():
            inside = [name for name in module.state_dict() if f"{path}.{name}" in state_dict]
            module.load_state_dict({name: state_dict[f"{path}.{name}"] for name in inside}, False)
            taken = {f"{path}.{name}" for name in inside}
            state_dict = {name: one for name, one in state_dict.items() if name not in taken}
        native = self.hf_model.state_dict()
        if set(state_dict) <= set(native):
            self.hf_model.load_state_dict(state_dict, strict=strict, assign=assign)
            return
        self.weights.write_state(state_dict, strict)

    def to(self, *args: Any, print_details: bool = True, **kwargs: Any) -> Any:
        """Move the model in place, or change its dtype."""
        for module in (self.hf_model, *self.foreign.values()):
            module.to(*args, **kwargs)
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
