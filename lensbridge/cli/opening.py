"""Models, as commands load them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensbridge.cli.options import Loading
from lensbridge.cli.working import working

if TYPE_CHECKING:
    from lensbridge.model import LensModel


def opened(name: str, how: Loading, **options: Any) -> "LensModel":
    """Load a model.

    Args:
        name: as the user wrote it.
        how: the options of the command line.
        options: other keywords of `lensbridge.load`.

    Raises:
        LensbridgeError: the model cannot be loaded.
    """
    from lensbridge.loading.aliases import refuse_misspelt

    refuse_misspelt(name)
    local = name == "demo" or Path(name).expanduser().exists()
    shown = working(f"loading {name}") if local else nullcontext()
    with quiet_transformers(downloads=not local), shown:
        from lensbridge import load

        return load(
            name,
            dtype=how.dtype,
            device=how.device,
            revision=how.revision,
            trust_remote_code=how.trust_remote_code,
            **options,
        )


def tokens_of(lens: "LensModel", text: str) -> list[str]:
    """Each token of a text as text, BOS included."""
    return [str(one) for one in lens.to_str_tokens(text)]


@contextmanager
def computing(what: str) -> Iterator[None]:
    """Work of a model, shown if it takes long; no graph for gradients is built."""
    import torch

    with working(what), torch.no_grad():
        yield


@contextmanager
def quiet_transformers(downloads: bool = False) -> Iterator[None]:
    """Silence progress bars and warnings of transformers.

    Args:
        downloads: whether the hub still shows on a terminal how far a download is.
    """
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if downloads and sys.stderr.isatty():
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
        else:
            disable_progress_bars()
