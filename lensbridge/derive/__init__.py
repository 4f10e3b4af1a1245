"""A description for a model that no adapter describes, derived from what the model does.

derivation = derive(model)
derivation.architecture   # or None
derivation.missing        # which part could not be established, and why
print(derivation.render())  # a starter adapter file
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from lensbridge.derive.derivation import Derivation
from lensbridge.spec import Architecture

__all__ = ["Derivation", "derive", "derive_and_check"]

if TYPE_CHECKING:
    from torch import nn


def derive(model: "nn.Module") -> Derivation:
    """Derive the architecture of a transformers model from its structure and behaviour.

    The model is not modified. It runs once, or a copy of it does.
    """
    from lensbridge.derive.describe import describe
    from lensbridge.derive.probe import probe_of
    from lensbridge.derive.trace import trace

    probe = probe_of(model)
    try:
        traced = trace(probe)
    except RuntimeError as error:
        return Derivation(None, missing={"forward": str(error)})

    def told(written: bool) -> Derivation:
        found = describe(traced, model, written)
        return Derivation(
            found.architecture, tuple(found.established), found.missing, found.alternatives
        )

    return replace(told(written=True), unwritten=partial(told, written=False))


def derive_and_check(model: "nn.Module") -> Architecture:
    """Derive a description and accept it only if the model conforms to it.

    Parts for which the conformance checks fail are left out, so the description may be incomplete,
    and what it has is checked. This takes seconds for a small model.

    Raises:
        UnsupportedArchitectureError: no description passes; the message names the part that could
            not be established, and where a starter adapter file comes from.
    """
    from lensbridge.derive.check import accepted

    architecture = accepted(model, derive(model)).architecture
    assert architecture is not None
    return architecture
