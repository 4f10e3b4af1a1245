"""The bundled demo model: a four-layer GPT-2 small enough to ship, trained on a toy world.

It exists so that the classic workflows (induction heads, fact look-up, indirect objects) run
offline in seconds. ``FOLDER`` holds an ordinary HuggingFace checkpoint::

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from lensbridge.demo import FOLDER

    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)

``lensbridge.demo.text`` is the grammar it was trained on. Nothing here imports torch or
transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

FOLDER: Final[Path] = Path(__file__).resolve().parent / "model"
"""The checkpoint's folder: weights, tokenizer and model card."""

__all__ = ["FOLDER"]
