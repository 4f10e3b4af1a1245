"""`load`: a model by name, folder or object, ready for the lens."""

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lensbridge.loading.checkpoint import model_named
from lensbridge.loading.elsewhere import opened_elsewhere
from lensbridge.loading.keywords import explained_keyword, refuse_known
from lensbridge.loading.opening import opened
from lensbridge.loading.placement import as_it_is, device_of, placement_of
from lensbridge.loading.source import DEMO, demo_folder
from lensbridge.loading.tokenizer import tokenizer_from
from lensbridge.native.partial import is_stage
from lensbridge.spec import Architecture
from lensbridge.tensors.dtypes import dtype_of

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage

    from lensbridge.model import LensModel

__all__ = ["DEMO", "demo_folder", "load"]


def load(
    model: "str | os.PathLike[str] | nn.Module | PipelineStage",
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    architecture: Architecture | None = None,
    derive: bool = True,
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    save_converted: "bool | str | os.PathLike[str]" = False,
    engine: str | None = None,
    fold_ln: bool | None = False,
    center_writing_weights: bool | None = False,
    center_unembed: bool | None = False,
    fold_value_biases: bool | None = False,
    refactor_factored_attn_matrices: bool | None = False,
    **hf_kwargs: Any,
) -> "LensModel":
    """Open a HuggingFace model, or any PyTorch module, for reading and editing its activations.

    Args:
        model: a hub id or a short name of one ("gpt2-small", "pythia-160m"), a local folder, "demo"
            (a small trained model that ships with lensbridge), a GGUF file ("model.gguf"; or a
            folder or hub id with `gguf_file=`), or a model object, which is used as it is: a
            transformers model, a plain module, or either of these in a wrapper such as
            `torch.compile`'s. Of a pipeline, pass the `PipelineStage` of this process.
        tokenizer: a tokenizer, used as it is, or the name of one; by default the model's own,
            loaded when text is first passed. With a model object, only a local folder is looked
            into for one.
        device: where to put the model; an object is moved there.
        dtype: a torch dtype or its name; by default the dtype in which the weights are stored.
        device_map: as in transformers: "auto" or a dictionary, through accelerate.
        architecture: a description to use instead of the registered ones; it is not checked.
        derive: whether a model that no description is registered for gets one derived from its
            structure and behaviour, accepted only if it passes the conformance checks. So does a
            model with code of its own (a subclass with another `forward`, say) that fails them
            under the description of its class. A plain module for which none can be derived, or
            with `derive=False`, is opened as a `lensbridge.modules.ModuleLens`, whose points are
            the inputs and outputs of its modules.
        revision: branch, tag or commit on the hub.
        attn_implementation: as in transformers; by default the model's own choice.
        trust_remote_code: run code from the repository.
        token: a hub token; by default HF_TOKEN or the one that is logged in.
        save_converted: keep the model of a GGUF file in safetensors, in this folder or, with True,
            in one beside the file, and open it from there as long as the file stays the same.
        engine: who runs the model: None is transformers in this process, "vllm" is vLLM, whose
            `LLM` takes the other keywords (`dtype`, `max_model_len`, ...).
        fold_ln: rewrite the weights in place, as `LensModel.process_weights_` does: True, or None
            for as far as this model allows. So the next four; by default no weight is touched.
        center_writing_weights: what is added to the stream less its mean.
        center_unembed: W_U and b_U less their mean over the vocabulary.
        fold_value_biases: b_V into b_O.
        refactor_factored_attn_matrices: W_Q, W_K, W_V, W_O from the SVD of QK and OV.
        hf_kwargs: for `from_pretrained` of the class that the checkpoint was saved from.

    Returns:
        A `LensModel`; its `.hf_model` is the model itself. For a plain module that no description
        fits it is a `ModuleLens`.

    Raises:
        HubError: the repository is gated, missing or out of reach.
        LoadError: no model or not all of its weights, or arguments that do not go together.
        InputError: there is no such device or dtype.
        UnsupportedArchitectureError: no adapter describes this transformers model and none could be
            derived.
        ProcessingError: the weights cannot be rewritten as asked.

    Example:
        >>> import lensbridge
        >>> model = lensbridge.load("demo")
        >>> model.cfg.n_layers
        4
    """
    refuse_known(hf_kwargs)
    by_name = {"attn_implementation": attn_implementation, "device_map": device_map, **hf_kwargs}
    by_name["revision"] = revision
    access: dict[str, Any] = {"token": token, "trust_remote_code": trust_remote_code or None}
    steps: dict[str, Any] = {
        "fold_ln": fold_ln,
        "center_writing_weights": center_writing_weights,
        "center_unembed": center_unembed,
        "fold_value_biases": fold_value_biases,
        "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
    }
    if engine is not None:
        by_name |= {"tokenizer": tokenizer, "device": device, "dtype": dtype}
        by_name |= {"trust_remote_code": access["trust_remote_code"], "hf_token": token}
        only_here = {"architecture": architecture, "save_converted": save_converted, **steps}
        given = {name: value for name, value in only_here.items() if value}
        return opened_elsewhere(engine, model, **by_name, **given)
    hf_model, source, options = _read(model, device, dtype, by_name, access, save_converted)
    find_tokenizer = tokenizer_from(tokenizer, source, hf_model, options)
    if is_stage(model):
        from lensbridge.pipelines.model import open_stage

        return open_stage(model, find_tokenizer, architecture)
    lens = opened(hf_model, find_tokenizer, architecture, derive)
    if any(step is not False for step in steps.values()):
        lens.process_weights_(**steps)
    return lens


def _read(
    model: Any,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    by_name: dict[str, Any],
    access: dict[str, Any],
    save_converted: "bool | str | os.PathLike[str]",
) -> tuple[nn.Module, str | None, dict[str, Any]]:
    """The model, where it was read from, and the options that hold for its tokenizer as well."""
    where, to = None if device is None else device_of(device), dtype_of(dtype)
    core = model.submod if is_stage(model) else model
    if isinstance(core, nn.Module):
        asked = {**by_name, "save_converted": save_converted or None}
        return as_it_is(core, where, to, asked), None, access
    place = {"dtype": to or "auto", "device_map": placement_of(where, by_name["device_map"])}
    options = {**access, **by_name, **place}
    try:
        return model_named(model, options, save_converted)
    except TypeError as error:
        explained_keyword(error, options, load)
        raise
