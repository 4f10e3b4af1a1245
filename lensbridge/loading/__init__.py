"""`load`: a model by name, folder or object, ready for the lens."""

import os
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lensbridge.errors import (
    ArchitectureMismatchError,
    InputError,
    LoadError,
    UnsupportedArchitectureError,
)
from lensbridge.loading.aliases import hub_id_of, refuse_misspelt
from lensbridge.loading.description import derived, description_of, needs_input, reads_by_modules
from lensbridge.loading.elsewhere import opened_elsewhere
from lensbridge.loading.gguf import converted, from_gguf, named_by, present_in
from lensbridge.loading.hub_errors import explained
from lensbridge.loading.keywords import explained_keyword, refuse_known
from lensbridge.loading.quiet import no_progress_bar
from lensbridge.loading.tokenizer import tokenizer_from
from lensbridge.native.partial import is_stage
from lensbridge.native.resolve import unwrap
from lensbridge.spec import Architecture
from lensbridge.tensors.dtypes import dtype_of

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage

    from lensbridge.model import LensModel

DEMO = "demo"
CONFIG_OPTIONS = (
    "revision",
    "token",
    "trust_remote_code",
    "code_revision",
    "subfolder",
    "cache_dir",
    "force_download",
    "local_files_only",
)
"""Options of `from_pretrained` that say which config file is meant."""


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
    if engine is not None:
        return opened_elsewhere(
            engine,
            model,
            tokenizer=tokenizer,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code or None,
            device=device,
            device_map=device_map,
            architecture=architecture,
            attn_implementation=attn_implementation,
            fold_ln=fold_ln or None,
            center_writing_weights=center_writing_weights or None,
            center_unembed=center_unembed or None,
            fold_value_biases=fold_value_biases or None,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices or None,
            save_converted=save_converted or None,
            hf_token=token,
            **hf_kwargs,
        )
    where = None if device is None else _device(device)
    asked = {
        "device_map": device_map,
        "revision": revision,
        "attn_implementation": attn_implementation,
        "save_converted": save_converted or None,
        **hf_kwargs,
    }
    if is_stage(model):
        from lensbridge.pipelines.model import open_stage

        _as_it_is(model.submod, where, dtype_of(dtype), asked)
        find_tokenizer = tokenizer_from(tokenizer, None, model.submod, {"token": token})
        return open_stage(model, find_tokenizer, architecture)
    if isinstance(model, nn.Module):
        hf_model, source = _as_it_is(model, where, dtype_of(dtype), asked), None
        options: dict[str, Any] = {
            "token": token,
            "trust_remote_code": trust_remote_code or None,
        }
    else:
        name, hf_kwargs = named_by(model, hf_kwargs)
        source = _source(name, hf_kwargs)
        options = {
            "dtype": dtype_of(dtype) or "auto",
            "device_map": _placement(where, device_map),
            "revision": revision,
            "attn_implementation": attn_implementation,
            "token": token,
            "trust_remote_code": trust_remote_code or None,
            **hf_kwargs,
        }
        place = source, options
        if save_converted:
            place = converted(source, options, save_converted, _from_pretrained)
        with no_progress_bar() if source == demo_folder() else nullcontext():
            hf_model = _from_pretrained(*place)
    find_tokenizer = tokenizer_from(tokenizer, source, hf_model, options)
    lens = _opened(hf_model, find_tokenizer, architecture, derive)
    steps: dict[str, Any] = {
        "fold_ln": fold_ln,
        "center_writing_weights": center_writing_weights,
        "center_unembed": center_unembed,
        "fold_value_biases": fold_value_biases,
        "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
    }
    if any(step is not False for step in steps.values()):
        lens.process_weights_(**steps)
    return lens


def _opened(
    hf_model: nn.Module, find_tokenizer: Any, architecture: Architecture | None, derive: bool
) -> "LensModel":
    """The model under a description; a module that none fits under its own modules' names."""
    if architecture is None and needs_input(hf_model):
        return _by_modules(hf_model, find_tokenizer, "its weights are made by its first run")
    try:
        how = description_of(hf_model, architecture, derive)
        return _lens(hf_model, find_tokenizer, how, derive)
    except UnsupportedArchitectureError as refused:
        if architecture is not None or not reads_by_modules(hf_model):
            raise
        return _by_modules(hf_model, find_tokenizer, str(refused))


def _by_modules(hf_model: nn.Module, find_tokenizer: Any, why: str) -> "LensModel":
    from lensbridge.modules import ModuleLens

    lens = ModuleLens(hf_model, find_tokenizer)
    lens.why = why
    return lens


def _lens(
    hf_model: nn.Module, find_tokenizer: Any, how: dict[str, Any], derive: bool
) -> "LensModel":
    """The model under its description; under a derived one if the registered one does not fit."""
    from lensbridge.model import LensModel

    try:
        return LensModel(hf_model, find_tokenizer, **how)
    except ArchitectureMismatchError as error:
        if how or not derive:
            raise
        try:
            how = derived(unwrap(hf_model), str(error))
        except UnsupportedArchitectureError as refused:
            raise ArchitectureMismatchError(str(refused)) from refused
    return LensModel(hf_model, find_tokenizer, **how)


def demo_folder() -> str:
    """The folder of the bundled model."""
    return str(files("lensbridge") / "demo" / "model")


def _source(name: "str | os.PathLike[str]", options: dict[str, Any]) -> str:
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(
            f"load() takes a hub id, a folder or a model object, not {type(name).__name__}."
        )
    text = os.fspath(name)
    if text == DEMO and not Path(DEMO).is_dir():
        return demo_folder()
    folder = Path(text).expanduser()
    if folder.is_dir():
        kinds, inside = ("config.json", "adapter_config.json"), options.get("subfolder") or ""
        found = any((folder / inside / kind).is_file() for kind in kinds)
        if not found and options.get("gguf_file") is None:
            raise LoadError(
                f"The folder {text!r} has no config.json, so it is not a saved model. "
                + (present_in(folder) or "Save one there with hf_model.save_pretrained(folder).")
            )
        return str(folder)
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise LoadError(f"There is no folder {text!r}.")
    refuse_misspelt(text)
    return hub_id_of(text)


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"The device {str(device)!r} cannot be used here: {reason}") from error


def _placement(device: torch.device | None, device_map: Any) -> Any:
    if device is None:
        return device_map
    if device_map is not None:
        raise LoadError("Pass device or device_map, not both: each says where the weights go.")
    return {"": device}  # straight there: no second copy in CPU memory


def _as_it_is(
    model: nn.Module,
    device: torch.device | None,
    dtype: torch.dtype | None,
    asked: dict[str, Any],
) -> nn.Module:
    pointless = [name for name, value in asked.items() if value is not None]
    if pointless:
        raise LoadError(
            f"A model object is used as it is; {', '.join(pointless)} can be passed only when a "
            "model is loaded by name."
        )
    if device is not None or dtype is not None:
        model.to(device=device, dtype=dtype)
    return model


def _from_pretrained(source: str, options: dict[str, Any]) -> nn.Module:
    from pickle import UnpicklingError

    from huggingface_hub.errors import HTTPError
    from safetensors import SafetensorError

    given = {name: value for name, value in options.items() if value is not None}
    given = {"ignore_mismatched_sizes": True, **given, "output_loading_info": True}
    try:
        read = from_gguf if "gguf_file" in given else _model_class(source, given).from_pretrained
        model, report = read(source, **given)
    except (OSError, ValueError, ImportError, HTTPError, SafetensorError) as error:
        raise explained(source, error, options) from error
    except UnpicklingError as error:
        raise LoadError(
            f"The weights of {source!r} are a pickle that holds more than tensors, and reading it "
            "could run code that its author put there. Ask for safetensors; if you trust the "
            "author, pass weights_only=False."
        ) from error
    except TypeError as error:
        explained_keyword(error, options, load)
        raise
    other_size = {name for name, *_ in report["mismatched_keys"]}
    allowed = other_size if options.get("ignore_mismatched_sizes") else set()
    missing = sorted({*report["missing_keys"], *other_size} - allowed)
    if missing:
        raise LoadError(
            f"{source!r} lacks {len(missing)} weights of a {type(model).__name__} or has them in "
            f"another size, such as {missing[0]!r}; they would be random. Check its config.json."
        )
    return model


def _model_class(source: str, given: dict[str, Any]) -> Any:
    """The class that a checkpoint was saved from, where that is no causal language model.

    What else there is (an adapter's folder, a repository that is out of reach) is left to
    `AutoModelForCausalLM`, which knows, or says what is wrong.
    """
    import transformers
    from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    where = {name: given[name] for name in CONFIG_OPTIONS if name in given}
    try:
        config, _ = PretrainedConfig.get_config_dict(source, **where)
    except (OSError, ValueError):
        return AutoModelForCausalLM
    if given.get("trust_remote_code") and config.get("auto_map"):
        return AutoModelForCausalLM
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    for name in config.get("architectures") or ():
        cls = None if name in causal else getattr(transformers, name, None)
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            return cls
    return AutoModelForCausalLM
