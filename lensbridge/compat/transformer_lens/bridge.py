"""`TransformerBridge`: TransformerLens's class for HuggingFace models."""

from typing import Any

import torch
from torch import nn

import lensbridge
from lensbridge.compat.transformer_lens.circuits import Keys
from lensbridge.compat.transformer_lens.names_of_models import (
    checkpoint_revision,
    get_official_model_name,
)
from lensbridge.compat.transformer_lens.opening import Order, copied_with, reopened
from lensbridge.compat.transformer_lens.point import Dir, HookFunction
from lensbridge.compat.transformer_lens.root import LensRoot
from lensbridge.compat.transformer_lens.transformer import HookedTransformer
from lensbridge.errors import InputError


class TransformerBridge(HookedTransformer):
    """A HuggingFace model as it is, with unprocessed weights until `enable_compatibility_mode`.

    `W_K` and its like are as stored: one for each key/value head.
    """

    keys: Keys = "stored"

    @classmethod
    def boot_transformers(
        cls,
        model_name: str,
        hf_config_overrides: dict[str, Any] | None = None,
        device: Any = None,
        dtype: torch.dtype | str | None = torch.float32,
        tokenizer: Any = None,
        load_weights: bool = True,
        trust_remote_code: bool = False,
        hf_model: Any = None,
        n_ctx: int | None = None,
        revision: str | None = None,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        n_devices: int | None = None,
        **hf: Any,
    ) -> "TransformerBridge":
        """Open a model.

        Args:
            model_name: a short name, a hub id, a folder, or "demo".
            hf_config_overrides: fields of the HuggingFace config to set.
            device: where to.
            dtype: dtype of the weights; a model object keeps its own.
            tokenizer: a tokenizer or the name of one.
            load_weights: False makes a model with random weights.
            trust_remote_code: run code from the repository.
            hf_model: a model object to use instead of loading one.
            n_ctx: how many positions to keep.
            revision: branch, tag or commit.
            checkpoint_index: a checkpoint of the training, by its index.
            checkpoint_value: or by its training step.
            n_devices: on how many GPUs.
            hf: for transformers' `from_pretrained`: `device_map`, `max_memory`, ...
        """
        step = checkpoint_revision(model_name, checkpoint_index, checkpoint_value)
        options = {"revision": step or revision, "trust_remote_code": trust_remote_code, **hf}
        given = {name: value for name, value in options.items() if value}
        name = model_name if hf_model is not None else get_official_model_name(model_name)
        if hf_model is None and not load_weights:
            hf_model = _random(name, hf_config_overrides or {}, given).to(dtype=dtype)
        elif hf_config_overrides:
            given.update(hf_config_overrides)
        order = Order(
            name=name,
            hf_model=hf_model,
            device=device,
            dtype=None if hf_model is not None else dtype,
            n_devices=n_devices or 1,
            tokenizer=tokenizer,
            n_ctx=n_ctx,
            hf=given,
            as_it_is=True,
        )
        return cls.of(
            order.open(), model_name=model_name.rpartition("/")[2], default_prepend_bos=True
        )

    @property
    def original_model(self) -> nn.Module:
        """The HuggingFace model."""
        return self.lens.hf_model

    def enable_compatibility_mode(
        self,
        disable_warnings: bool = False,
        no_processing: bool = False,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Switch to a copy with processed weights; the model that was passed is not changed.

        Args:
            disable_warnings: has no effect: there are no warnings.
            no_processing: leave the weights as they are; then nothing happens.
            fold_ln: as in `HookedTransformer.from_pretrained`, like those that follow.
            center_writing_weights: see there.
            center_unembed: see there.
            fold_value_biases: see there.
            refactor_factored_attn_matrices: see there.
        """
        if no_processing:
            return
        self.process_weights(
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
        )

    def process_weights(self, verbose: bool = False, **steps: bool) -> None:
        """Switch to a copy with processed weights.

        Args:
            verbose: print what could not be done.
            steps: as in `HookedTransformer.process_weights_`.

        Raises:
            InputError: the model has hooks, which would stay on the unprocessed one.
        """
        if self.lens.engine.permanent:
            raise InputError("Remove your hooks first (reset_hooks): they are on the old model.")
        self.open_lens(reopened(self.lens, copied_with(self.lens.hf_model, None)))
        self.process_weights_(**steps)
        for left in self.lens.processing.left if verbose else ():
            print(left)

    def add_hook(  # type: ignore[override]
        self,
        name: Any,
        hook_fn: HookFunction,
        dir: Dir = "fwd",
        is_permanent: bool = False,
        **more: Any,
    ) -> None:
        """Hook a point, or all points that a filter matches."""
        LensRoot.add_hook(self, name, hook_fn, dir, is_permanent, **more)

    def get_hook_point(self, hook_name: str) -> Any:
        """The point of a name, or None."""
        return self.hook_dict.get(hook_name)

    def hf_generate(self, input: Any, **generation: Any) -> Any:
        """HuggingFace's `generate` on text or ids."""
        return self.generate(input, **{"verbose": False, **generation})


def _random(name: str, overrides: dict[str, Any], options: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    from lensbridge.loading import demo_folder

    source = demo_folder() if name == "demo" else name
    config = AutoConfig.from_pretrained(source, **options, **overrides)
    return AutoModelForCausalLM.from_config(config).eval()


def build_bridge_from_module(
    model: nn.Module,
    architecture: str | None = None,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    device: Any = None,
    model_name: str = "external",
    **_: Any,
) -> TransformerBridge:
    """A `TransformerBridge` of a model object, which is used itself.

    Args:
        model: the model.
        architecture: not needed, because the model is known by its class.
        tokenizer: for text.
        dtype: to move the model to.
        device: to move the model to.
        model_name: the value of `cfg.model_name`.
    """
    if device is not None or dtype is not None:
        model.to(device=device, dtype=dtype)
    lens = lensbridge.load(model, tokenizer=tokenizer)
    return TransformerBridge.of(lens, model_name=model_name, default_prepend_bos=True)


__all__ = ["TransformerBridge", "build_bridge_from_module"]
