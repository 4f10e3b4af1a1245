"""A saved model, read by transformers, with all of its weights."""

import os
from contextlib import nullcontext
from typing import Any

from torch import nn

from lensbridge.errors import LoadError
from lensbridge.loading.gguf import converted, from_gguf, named_by
from lensbridge.loading.hub_errors import explained
from lensbridge.loading.quiet import no_progress_bar
from lensbridge.loading.source import demo_folder, source_of

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


def model_named(
    name: "str | os.PathLike[str]",
    options: dict[str, Any],
    save_converted: "bool | str | os.PathLike[str]",
) -> tuple[nn.Module, str, dict[str, Any]]:
    """The model of a name, where it came from, and the options that it was read with.

    Args:
        name: a hub id or a short name of one, a folder, a GGUF file, or "demo".
        options: of `from_pretrained`; those that are None were not given.
        save_converted: where the model of a GGUF file is kept, as `load` takes it.

    Raises:
        LoadError: there is no such model, or not all of its weights.
        HubError: the repository is gated, missing or out of reach.
    """
    name, options = named_by(name, options)
    source = source_of(name, options)
    place = source, options
    if save_converted:
        place = converted(source, options, save_converted, from_pretrained)
    with no_progress_bar() if source == demo_folder() else nullcontext():
        return from_pretrained(*place), source, options


def from_pretrained(source: str, options: dict[str, Any]) -> nn.Module:
    """The model of a folder or a hub id.

    Raises:
        LoadError: there is none, or not all of its weights.
        HubError: the repository is gated, missing or out of reach.
        TypeError: the class of the model has no such option.
    """
    from pickle import UnpicklingError

    from huggingface_hub.errors import HTTPError
    from safetensors import SafetensorError

    given = {name: value for name, value in options.items() if value is not None}
    given = {"ignore_mismatched_sizes": True, **given, "output_loading_info": True}
    try:
        read = from_gguf if "gguf_file" in given else model_class(source, given).from_pretrained
        model, report = read(source, **given)
    except (OSError, ValueError, ImportError, HTTPError, SafetensorError) as error:
        raise explained(source, error, options) from error
    except UnpicklingError as error:
        raise LoadError(
            f"The weights of {source!r} are a pickle that holds more than tensors, and reading it "
            "could run code that its author put there. Ask for safetensors; if you trust the "
            "author, pass weights_only=False."
        ) from error
    _refuse_missing(source, model, report, bool(options.get("ignore_mismatched_sizes")))
    return model


def _refuse_missing(source: str, model: nn.Module, report: Any, any_size: bool) -> None:
    """Refuse a model that has weights which no file gave.

    Args:
        source: where it came from.
        model: what was read.
        report: what transformers says about its reading.
        any_size: whether weights of another size than the model's may stay random.
    """
    other_size = {name for name, *_ in report["mismatched_keys"]}
    missing = sorted({*report["missing_keys"], *other_size} - (other_size if any_size else set()))
    if missing:
        raise LoadError(
            f"{source!r} lacks {len(missing)} weights of a {type(model).__name__} or has them in "
            f"another size, such as {missing[0]!r}; they would be random. Check its config.json."
        )


def model_class(source: str, given: dict[str, Any]) -> Any:
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
        return getattr(transformers, _auto_class(config), AutoModelForCausalLM)
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    for name in config.get("architectures") or ():
        cls = None if name in causal else getattr(transformers, name, None)
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            return cls
    return AutoModelForCausalLM


def _auto_class(config: dict[str, Any]) -> str:
    """The auto class under which a repository's own code has the class that was saved."""
    paths = {key: path for key, path in config["auto_map"].items() if key.startswith("AutoModel")}
    saved = config.get("architectures") or ()
    keys = [key for key, path in paths.items() if str(path).rpartition(".")[2] in saved] or [*paths]
    causal = "AutoModelForCausalLM"
    return causal if causal in keys or not keys else keys[0]
