"""`cfg.output_logits_soft_cap`: the cap on logits (Gemma 2), which a config may switch off."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.errors import InputError
from lensbridge.model import LensModel


class Uncapped:
    """The logits of a run before the cap.

    Args:
        logits: what the model's head returned last; None before it ran.
    """

    logits: Tensor | None = None

    def of(self, result: Any) -> Any:
        """What a run returns: the logits before the cap in place of those after it."""
        return result if self.logits is None else self.logits


@contextmanager
def uncapped(lens: LensModel, cfg: HookedTransformerConfig, return_type: Any) -> Iterator[Uncapped]:
    """Watch a run, and keep its logits before the cap if the config has switched the cap off.

    The HuggingFace model's own config stays as it is.

    Raises:
        InputError: another cap than the model's own, or a loss without the cap.
    """
    hf_model: Any = lens.hf_model
    text_config = hf_model.config.get_text_config()
    found, own = Uncapped(), getattr(text_config, "final_logit_softcapping", None) or -1.0
    head = hf_model.get_output_embeddings() if own > 0 else None
    if head is None or cfg.output_logits_soft_cap == own:
        yield found
        return
    if cfg.output_logits_soft_cap > 0:
        raise InputError(
            f"The model caps logits at {own:g}. cfg.output_logits_soft_cap switches the cap off "
            f"with 0; it cannot be {cfg.output_logits_soft_cap:g}."
        )
    if return_type in ("loss", "both"):
        raise InputError(
            "A loss is that of logits with the cap, which cfg.output_logits_soft_cap has switched "
            "off: set it back, or ask for the logits."
        )
    here = get_ident()

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        if get_ident() == here:
            found.logits = output

    with head.register_forward_hook(keep):
        yield found
