"""Makes splices from what a user passed, and checks before any run that they fit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from lensbridge.errors import EditError, HookError
from lensbridge.hooks.engine import Engine
from lensbridge.inputs.special import Excluded, special_ids
from lensbridge.inputs.tokens import Tokens
from lensbridge.native.parts import ResolvedModel
from lensbridge.points.names import Name
from lensbridge.points.point_names import PointNames
from lensbridge.saes.dictionary import Dictionary, SparseAutoencoder
from lensbridge.saes.place import Fit, Place
from lensbridge.saes.sizes import size_of
from lensbridge.saes.splice import Splice

SAEs: TypeAlias = (
    "SparseAutoencoder | Iterable[SparseAutoencoder] "
    "| Mapping[Name | tuple[Name, Name | None], SparseAutoencoder]"
)
"""An SAE or several whose config names the point (`cfg.metadata.hook_name`), or point -> SAE. The
key of a transcoder may be a pair: the point that it reads and the one that it replaces."""


@dataclass(frozen=True)
class Request:
    """One SAE and its points; None where they are those of its config."""

    sae: Any
    reads: Name | None = None
    writes: Name | None = None


@dataclass(frozen=True)
class SpliceRequests:
    """Turns requests for one model into splices."""

    engine: Engine
    vocabulary: PointNames
    native: ResolvedModel
    tokens: Tokens

    def splices(self, saes: SAEs, use_error_term: bool | None, excluded: Excluded) -> list[Splice]:
        """A splice for each SAE.

        Raises:
            HookError: two SAEs at one point in one context, or an SAE without a point.
            EditError: an SAE that does not fit.
        """
        ids = special_ids(self.tokens, self.native, excluded)
        found = [self._splice(one, use_error_term, ids) for one in requests(saes)]
        here = self.engine.current
        taken = set() if here is None else set(here.splices)
        for splice in found:
            if splice.target.name in taken:
                raise HookError(
                    f"There are two SAEs at {splice.target.name}, and a point can have one. Splice "
                    "the other in at another point, or leave the context of the first."
                )
            taken.add(splice.target.name)
        return found

    def _splice(self, asked: Request, use_error_term: bool | None, ids: frozenset[int]) -> Splice:
        dictionary = Dictionary.of(asked.sae)
        reads, writes = self._ends(dictionary, asked)
        source, target = self._place(reads, dictionary), self._place(writes, dictionary)
        known = source.size is not None and target.size is not None
        fit = Fit.of(dictionary, source, target) if known else None
        error = dictionary.use_error_term if use_error_term is None else use_error_term
        return Splice(self.engine, dictionary, source, target, fit, error, ids)

    def _ends(self, dictionary: Dictionary, asked: Request) -> tuple[str, str]:
        """The canonical names of the point that an SAE reads and the one that it replaces."""
        reads = dictionary.reads if asked.reads is None else asked.reads
        if reads is None:
            raise HookError(
                f"The config of {dictionary.kind} names no point (cfg.metadata.hook_name). Pass "
                "{point: sae}, or hook_name=... to add_sae."
            )
        said = dictionary.writes if dictionary.is_transcoder else None
        first, second = self._host(reads), self._host(asked.writes or said or reads)
        if first != second:
            names = list(self.engine.native_sites)
            if names.index(first) > names.index(second):
                raise HookError(
                    f"{second} comes before {first}, so what is read at {first} cannot replace it."
                )
        return first, second

    def _host(self, name: Name) -> str:
        full = self.vocabulary.canonical(name)
        if full not in self.engine.native_sites:
            raise HookError(f"{full} is inside an SAE; splice in at a point of the model.")
        if not self.engine.native_sites[full].editable:
            raise EditError(f"{full} can only be read, so nothing can be spliced in there.")
        return full

    def _place(self, name: str, dictionary: Dictionary) -> Place:
        place = Place(name, self.engine.native_sites[name].axes, None, dictionary.head)
        size = size_of(self.native, name, place.axes.split()[place.lead :])
        return Place(name, place.axes, size, dictionary.head)


def requests(saes: Any) -> list[Request]:
    """What was passed, as a list with one request for each SAE."""
    if isinstance(saes, SparseAutoencoder):
        return [Request(saes)]
    if not isinstance(saes, Mapping):
        return [Request(sae) for sae in saes]
    return [Request(sae, *key) if _is_pair(key) else Request(sae, key) for key, sae in saes.items()]


def _is_pair(key: Any) -> bool:
    """Whether a key is two points rather than one short name, `("resid_pre", 1)`."""
    return isinstance(key, tuple) and len(key) == 2 and not isinstance(key[1], int)
