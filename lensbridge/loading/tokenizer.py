"""Tokenizers of models: given, by name, or from where the model came."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lensbridge.errors import HubError, LoadError, TokenizerMissingError
from lensbridge.loading.gguf import gguf_tokenizer
from lensbridge.loading.hub_errors import explained
from lensbridge.native.settings import raw_config
from lensbridge.native.wrappers import core_of

_WHERE_FROM = ("cache_dir", "force_download", "local_files_only")
"""Options of `from_pretrained` that say where files come from, for tokenizers as well."""
_OF_THE_MODEL = ("revision", "subfolder", "gguf_file")
"""Options that say what is meant in the model's own repository, and nothing in another."""


def tokenizer_from(
    given: Any, source: str | None, hf_model: Any, options: dict[str, Any]
) -> Callable[[], Any]:
    """How to get a model's tokenizer when it is first needed.

    Args:
        given: a tokenizer, the name of one, or None: the model's own.
        source: where the model came from; None: it was in memory.
        hf_model: the model.
        options: of `from_pretrained`, as the model was loaded with.

    Raises:
        LoadError: there is none of that name.
    """
    kept = ("token", "trust_remote_code", *_WHERE_FROM)
    access = {key: options[key] for key in kept if key in options}
    if given is None:
        own = {key: options.get(key) for key in _OF_THE_MODEL}
        return lambda: _own_tokenizer(source, hf_model, {**own, **access})
    if isinstance(given, str | os.PathLike):
        given = named_tokenizer(os.fspath(given), access)
    return lambda: given


def _own_tokenizer(source: str | None, hf_model: Any, options: dict[str, Any]) -> Any:
    """The model's tokenizer: from where it was loaded, or where its config says it is saved.

    Raises:
        TokenizerMissingError: there is none, with the reason.
    """
    saved = str(getattr(raw_config(core_of(hf_model)), "name_or_path", ""))
    places = [source, saved if saved and Path(saved).is_dir() else None]
    found = list(dict.fromkeys(one for one in places if one is not None))
    beside = {**options, "gguf_file": None}
    tries = [(place, options) for place in found]
    reasons = []
    for place, given in tries + [(place, beside) for place in found if options.get("gguf_file")]:
        try:
            return named_tokenizer(place, given)
        except LoadError as error:
            reasons.append(f" {error}")
    raise TokenizerMissingError(
        "This needs a tokenizer, and the model has none. Pass one: "
        f"lensbridge.load(model, tokenizer=...), or pass token ids.{''.join(reasons)}"
    )


def named_tokenizer(name: str, options: dict[str, Any]) -> Any:
    """The tokenizer of a hub id or a folder.

    Raises:
        LoadError: there is none.
    """
    from huggingface_hub.errors import HTTPError
    from transformers import AutoTokenizer

    given = {key: value for key, value in options.items() if value is not None}
    try:
        read = gguf_tokenizer if "gguf_file" in given else AutoTokenizer.from_pretrained
        found = read(name, **given)
    except (OSError, ValueError, KeyError, ImportError, TypeError, HTTPError) as error:
        told = explained(name, error, options)
        if not isinstance(told, HubError):
            reason = str(error).partition("\n")[0]
            told = LoadError(f"The tokenizer {name!r} could not be loaded: {reason}")
        raise told from error
    if _is_empty(found):
        raise LoadError(
            f"{name!r} has no tokenizer files. Save the tokenizer there with "
            "tokenizer.save_pretrained(folder)."
        )
    return found


def _is_empty(tokenizer: Any) -> bool:
    """Whether it has no words: transformers makes such a one where there are no files."""
    word_start = "\N{LOWER ONE EIGHTH BLOCK}"
    return set(tokenizer.get_vocab()) <= {*tokenizer.all_special_tokens, word_start}
