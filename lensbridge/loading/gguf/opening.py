"""A model and its tokenizer from a GGUF file."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lensbridge.errors import LoadError
from lensbridge.loading.gguf.leftovers import refuse_leftovers
from lensbridge.loading.gguf.naming import WHERE, file_of

INSTALL = "pip install 'lensbridge[gguf]'"
_MAGIC = b"GGUF"
_DAMAGED = (ValueError, IndexError, KeyError, OverflowError, struct.error)
"""What gguf's reader raises for a file that is cut short or not in the format."""


def from_gguf(source: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model of a GGUF file, as `from_pretrained` returns it, with its loading report.

    Its weights are dequantized: it is a plain model, which can be edited, trained and saved.

    Args:
        source: a folder or a hub id.
        options: for `from_pretrained`, with `gguf_file`.

    Raises:
        LoadError: gguf is not installed, the file is damaged, or transformers cannot read it.
        OSError: the hub has no such file, or is out of reach.
        ValueError: transformers refuses an option.
    """
    _refuse_disk(options.get("device_map"))
    with _read(source, options) as read:
        model, report = read.kind.from_pretrained(
            source, **{**read.corrections, **_dequantized(), **options}
        )
        refuse_leftovers(read.header, model, read.path.name)
    return model, report


def gguf_config(source: str, **options: Any) -> tuple[Any, Any]:
    """The class and the config of a GGUF file's model; no weights are read.

    Args:
        source: a folder or a hub id.
        options: for `from_pretrained`, with `gguf_file`.

    Raises:
        LoadError: as `from_gguf`.
        OSError: the hub has no such file, or is out of reach.
    """
    with _read(source, options) as read:
        return read.kind, _config(source, options, **read.corrections)


@dataclass(frozen=True)
class _Read:
    """What a file's header says about its model.

    Args:
        path: of the file.
        header: as gguf's reader has it.
        kind: the class of the model.
        corrections: fields of the config that transformers leaves out.
    """

    path: Path
    header: Any
    kind: Any
    corrections: dict[str, Any]


@contextmanager
def _read(source: str, options: dict[str, Any]) -> Iterator[_Read]:
    """A file's header, while whatever transformers reads from the file is read fast.

    Raises:
        LoadError: gguf is not installed, the file is damaged, or transformers cannot read it.
    """
    check_installed()
    path = file_of(source, options)
    _check_magic(path)
    from lensbridge.loading.gguf.config import ARCHITECTURE, corrections
    from lensbridge.loading.gguf.reader import fast_reading, value_of

    with fast_reading():
        header = _header(path)
        config = lru_cache(partial(_config, source, options))
        try:
            kind = _class_of(value_of(header, ARCHITECTURE), config)
            yield _Read(path, header, kind, corrections(header, config, path.name))
        except (NotImplementedError, KeyError, IndexError) as error:
            raise _unreadable(path, error) from error
        except ValueError as error:
            _explain_unsupported(path, error)
            raise


def gguf_tokenizer(source: str, **options: Any) -> Any:
    """The tokenizer that a GGUF file describes.

    Args:
        source: a folder or a hub id.
        options: for `from_pretrained`, with `gguf_file`.

    Raises:
        LoadError: gguf is not installed, or there is no such file.
        OSError, ValueError, KeyError: the file describes none that transformers knows.
    """
    check_installed()
    from transformers import AutoTokenizer

    from lensbridge.loading.gguf.reader import fast_reading

    path = file_of(source, options)  # transformers forgets cache_dir when it looks for a tokenizer
    with fast_reading():
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def check_installed() -> None:
    """Refuse to go on without the package gguf.

    Raises:
        LoadError: with what to install.
    """
    if find_spec("gguf") is None:
        raise LoadError(f"GGUF files are read with the package gguf: {INSTALL}")


def _check_magic(path: Path) -> None:
    with path.open("rb") as file:
        found = file.read(len(_MAGIC))
    if found != _MAGIC:
        raise LoadError(
            f"{str(path)!r} is not a GGUF file: it begins with {found!r}, not with {_MAGIC!r}. "
            "Download it again, or convert the model with llama.cpp."
        )


def _refuse_disk(device_map: Any) -> None:
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    if "disk" in {str(place) for place in places}:
        raise LoadError(
            "Weights of a GGUF file cannot stay on disk: they are dequantized in memory. Pass "
            "save_converted=True, and transformers offloads from the converted copy."
        )


def _header(path: Path) -> Any:
    """The file's header, which is what transformers will read too."""
    import gguf

    try:
        reader = gguf.GGUFReader(str(path))
    except _DAMAGED as error:
        raise LoadError(
            f"{str(path)!r} is damaged or cut short ({error}). Download it again."
        ) from error
    if "general.architecture" not in reader.fields:
        raise LoadError(f"{str(path)!r} does not say of which architecture its model is.")
    return reader


def _config(source: str, options: dict[str, Any], **fields: Any) -> Any:
    from transformers import AutoConfig

    where = {key: options[key] for key in (*WHERE, "gguf_file") if options.get(key) is not None}
    return AutoConfig.from_pretrained(source, **where, **fields)


def _explain_unsupported(path: Path, error: ValueError) -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    if "not supported" in str(error):
        known = ", ".join(sorted(GGUF_SUPPORTED_ARCHITECTURES))
        raise LoadError(
            f"{path.name!r} could not be loaded: {error} transformers reads from GGUF: {known}. "
            "Load the model in safetensors instead."
        ) from error


def _unreadable(path: Path, error: Exception) -> LoadError:
    said = f"{type(error).__name__}: {error}"
    return LoadError(f"{str(path)!r} cannot be read by transformers, which raised {said}")


def _class_of(architecture: str, config: Callable[[], Any]) -> Any:
    """A causal language model; of T5 the class it was saved from, which may have no head."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if not architecture.startswith("t5"):
        return AutoModelForCausalLM
    named = (getattr(config(), "architectures", None) or [""])[0]
    return getattr(transformers, named, AutoModelForSeq2SeqLM)


def _dequantized() -> dict[str, Any]:
    """The option that asks transformers for plain weights, where it could keep packed ones."""
    with suppress(ImportError):
        from transformers import GgufConfig

        return {"quantization_config": GgufConfig(dequantize=True)}
    return {}
