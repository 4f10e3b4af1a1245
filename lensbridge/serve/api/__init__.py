"""The programming interface of a served model: what `lensbridge.connect` speaks to."""

from lensbridge.serve.api.app import api_of

__all__ = ["api_of"]
