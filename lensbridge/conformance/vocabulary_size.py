"""What shows how many tokens a model knows: its table of embeddings, and its config."""

from collections.abc import Iterator

from lensbridge.conformance.claim import Claim
from lensbridge.conformance.subject import Subject, config_of
from lensbridge.native.settings import raw_config
from lensbridge.native.table import rows_of
from lensbridge.spec import Dims


def claims_of_vocabulary(subject: Subject) -> Iterator[Claim]:
    """Claims on `dims.vocab`, for which nothing is run."""
    spec, native = subject.model.architecture, subject.model.native
    said, config = spec.dims.vocab, config_of(subject, spec)
    known = config.optional_size(said)
    if subject.ids_of("") is None:
        return
    if isinstance(said, str) and native.unembed is not None and raw_config(native.core) is not None:
        yield Claim("dims.vocab", known is not None, f"the config has no field {said!r}")
    if known is None:
        return
    told = f"{said!r} is {known}" if isinstance(said, str) else f"it is {known}"
    rows = rows_of(native.main.embed)
    if rows is not None:
        yield Claim("dims.vocab", known <= rows, f"{told}, and {spec.embed} has {rows} rows")
    usual = config.optional(str(Dims.vocab))
    if isinstance(usual, int):
        shown = f"{told}, and the config has {Dims.vocab}={usual}"
        yield Claim("dims.vocab", known == usual, shown)
