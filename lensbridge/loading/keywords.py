"""Keywords that `load` does not take, and what to write instead."""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from lensbridge.errors import suggest

_BITS = "quantization_config=transformers.BitsAndBytesConfig({}=True)"
_INSTEAD = {
    "torch_dtype": "dtype=...",
    "load_in_4bit": _BITS.format("load_in_4bit"),
    "load_in_8bit": _BITS.format("load_in_8bit"),
    "hf_model": "the model object as the first argument: load(hf_model)",
    "model_name": "the name as the first argument: load(name)",
    "model_name_or_path": "the name as the first argument: load(name)",
    "n_devices": 'device_map="auto"',
    "default_prepend_bos": "load(name), then model.tokens.default_prepend_bos = False",
    "default_padding_side": "padding_side=... where texts are passed",
    "checkpoint_index": 'the checkpoint\'s branch: revision="step3000"',
    "checkpoint_value": 'the checkpoint\'s branch: revision="step3000"',
    "fold_layer_norm": "fold_ln=True",
}


def refuse_known(names: Iterable[str]) -> None:
    """Refuse keywords of other libraries.

    Raises:
        TypeError: with what to write instead.
    """
    for name in names:
        if name in _INSTEAD:
            hint = " Did you mean 'dtype'?" if name == "torch_dtype" else ""
            raise TypeError(f"load() has no keyword {name!r}.{hint} Pass {_INSTEAD[name]}.")


def explained_keyword(error: TypeError, options: Iterable[str], load: Callable[..., Any]) -> None:
    """Say of a keyword that transformers refused that it is one of `load`.

    Raises:
        TypeError: the error is about a keyword that was passed.
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if found is None or found[1] not in options:
        return
    own = set(inspect.signature(load).parameters) - {"hf_kwargs"}
    raise TypeError(
        f"load() has no keyword {found[1]!r}, and from_pretrained of this model's class takes none "
        f"of this name.{suggest(found[1], own)}"
    ) from error
