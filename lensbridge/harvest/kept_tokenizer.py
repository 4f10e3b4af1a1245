"""The tokenizer of a harvest, kept in its folder so that entries can be read as text."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

NAME = "tokenizer"


def keep(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer into a folder that has none; it is there as a whole or not at all."""
    if tokenizer is None or (folder / NAME).exists():
        return
    new = Path(mkdtemp(prefix=".tokenizer-", dir=folder))
    try:
        tokenizer.save_pretrained(new)
        os.rename(new, folder / NAME)
    except OSError:  # another process was first
        if not (folder / NAME).exists():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def kept(folder: Path) -> Any | None:
    """The tokenizer in a folder, or None."""
    if not (folder / NAME).exists():
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / NAME, local_files_only=True)
