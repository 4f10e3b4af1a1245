"""Models that have other names than their hub id."""

from lensbridge.compat.transformer_lens.names_of_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

__all__ = ["MODEL_ALIASES", "OFFICIAL_MODEL_NAMES"]
