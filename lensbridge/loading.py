"""`load`: a model by name, folder or object, ready for the lens."""

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lensbridge.errors import HubError, InputError, LoadError
from lensbridge.spec import Architecture

if TYPE_CHECKING:
    from lensbridge.model import LensModel

DEMO = "demo"


def load(
    model: "str | os.PathLike[str] | nn.Module",
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: Any = None,
    architecture: Architecture | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    token: str | bool | None = None,
    **hf_kwargs: Any,
) -> "LensModel":
    """Open a HuggingFace model for reading and editing its activations.

    Args:
        model: a hub id, a local folder, "demo" (a small trained model that ships with lensbridge),
            or a model object, which is used as it is.
        tokenizer: a tokenizer, or the name of one; by default the model's own, loaded when text
            is first passed. With a model object, only a local folder is looked into for one.
        device: where to put the model.
        dtype: a torch dtype or its name; by default the dtype in which the weights are stored.
        device_map: as in transformers: "auto" or a dictionary, through accelerate.
        architecture: a description to use instead of the registered ones.
        revision: branch, tag or commit on the hub.
        attn_implementation: as in transformers; by default the model's own choice.
        trust_remote_code: run code from the repository.
        token: a hub token; by default HF_TOKEN or the one that is logged in.
        hf_kwargs: for `AutoModelForCausalLM.from_pretrained`.

    Returns:
        The model behind a lens; `.hf_model` is the HuggingFace model itself.

    Raises:
        HubError: the repository is gated, missing or out of reach.
        LoadError: the folder holds no model, or the arguments do not go together.
        UnsupportedArchitectureError: no adapter describes this model.

    Example:
        >>> import lensbridge
        >>> model = lensbridge.load("demo")
        >>> model.cfg.n_layers
        4
    """
    if isinstance(model, nn.Module):
        asked = {
            "device_map": device_map,
            "revision": revision,
            "attn_implementation": attn_implementation,
            **hf_kwargs,
        }
        hf_model, source = _as_it_is(model, device, _dtype(dtype), asked), _folder_of(model)
    else:
        source = _source(model)
        options = {
            "dtype": "auto" if dtype is None else _dtype(dtype),
            "device_map": _placement(device, device_map),
            "revision": revision,
            "attn_implementation": attn_implementation,
            "token": token,
            "trust_remote_code": trust_remote_code or None,
            **hf_kwargs,
        }
        hf_model = _from_pretrained(source, options)
    from lensbridge.model import LensModel

    find = _tokenizer_finder(tokenizer, source, revision, token, trust_remote_code)
    return LensModel(hf_model, find, architecture=architecture)


def demo_folder() -> str:
    """The folder of the bundled model."""
    return str(files("lensbridge") / "demo" / "model")


def _source(name: "str | os.PathLike[str]") -> str:
    text = os.fspath(name)
    if text == DEMO and not Path(DEMO).is_dir():
        return demo_folder()
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise LoadError(
                f"The folder {text!r} has no config.json, so it is not a saved model. "
                "Save one there with hf_model.save_pretrained(folder)."
            )
        return str(folder)
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise LoadError(f"There is no folder {text!r}.")
    return text


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    named = {str(one).removeprefix("torch."): one for one in _FLOATS}
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp64": "float64"}
    plain = dtype.removeprefix("torch.")
    plain = {"half": "float16", "double": "float64", "float": "float32", **short}.get(plain, plain)
    if plain not in named:
        raise InputError(f"There is no dtype {dtype!r}; use one of {', '.join(named)}.")
    return named[plain]


_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _placement(device: str | torch.device | None, device_map: Any) -> Any:
    if device is None:
        return device_map
    if device_map is not None:
        raise LoadError("Pass device or device_map, not both: each says where the weights go.")
    return {"": torch.device(device)}  # straight there: no second copy in CPU memory


def _as_it_is(
    model: nn.Module,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    asked: dict[str, Any],
) -> nn.Module:
    pointless = [name for name, value in asked.items() if value is not None]
    if pointless:
        raise LoadError(
            f"{', '.join(pointless)} apply when a model is loaded by name; a model object is used "
            "as it is."
        )
    if device is not None or dtype is not None:
        model.to(device=device, dtype=dtype)
    return model


def _folder_of(model: nn.Module) -> str | None:
    config: Any = model.config
    folder = str(config.name_or_path)
    return folder if folder and Path(folder).is_dir() else None


def _from_pretrained(source: str, options: dict[str, Any]) -> nn.Module:
    from transformers import AutoModelForCausalLM

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return AutoModelForCausalLM.from_pretrained(source, **given)
    except (OSError, ValueError) as error:
        raise _explained(source, error) from error


def _explained(source: str, error: Exception) -> Exception:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = list(_causes(error))

    def has(*kinds: type) -> bool:
        return any(isinstance(one, kinds) for one in causes)

    if has(GatedRepoError):
        return HubError(
            f"{source!r} is gated. Ask for access on its hub page, then log in "
            "(`hf auth login`), set HF_TOKEN, or pass token=..."
        )
    if has(RevisionNotFoundError):
        return HubError(f"{source!r} has no such revision: {causes[-1]}")
    if has(RepositoryNotFoundError):
        return HubError(
            f"There is no model {source!r} on the hub, or it is private. Check the spelling; for "
            "a private one set HF_TOKEN or pass token=...; for a folder pass its path."
        )
    if has(LocalEntryNotFoundError, ConnectionError, HfHubHTTPError):
        return HubError(
            f"{source!r} is not on this machine and the hub cannot be reached. Connect, or pass "
            "the path of a folder that holds the model."
        )
    return LoadError(f"{source!r} could not be loaded: {error}")


def _causes(error: BaseException | None) -> "list[BaseException]":
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _tokenizer_finder(
    tokenizer: Any, source: str | None, revision: str | None, token: Any, trust: bool
) -> Callable[[], Any]:
    if tokenizer is not None and not isinstance(tokenizer, (str, os.PathLike)):
        return lambda: tokenizer
    name = source if tokenizer is None else os.fspath(tokenizer)
    required = tokenizer is not None
    options = {"revision": revision, "token": token, "trust_remote_code": trust or None}
    given = {key: value for key, value in options.items() if value is not None}

    def find() -> Any:
        if name is None:
            return None
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(name, **given)
        except (OSError, ValueError, KeyError) as error:
            if required:
                raise LoadError(f"The tokenizer {name!r} could not be loaded: {error}") from error
            return None

    return find
