"""Splice: one SAE at its point, and what a run does there.

While it is there, its features and its other values are points (`<point>.hook_sae_acts_post`), so
that caches, hooks and gradients can be used on them as on any other point.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from threading import RLock, local

import torch
from torch import Tensor

from lensbridge.errors import HookError, InputError
from lensbridge.forks import in_forked
from lensbridge.hooks.attachment import NO_CALLBACKS
from lensbridge.hooks.callbacks import Callback, Hook
from lensbridge.hooks.engine import Engine
from lensbridge.saes.dictionary import Dictionary
from lensbridge.saes.place import Fit, Place
from lensbridge.sites.call import Chain
from lensbridge.sites.site import PointInfo
from lensbridge.sites.spliced import SpliceSite

_TURN = RLock()
"""SAELens's classes keep state between encode and decode: only one thread at a time runs them."""


@in_forked
def _renew_turn() -> None:
    """In a forked process no other thread has the turn."""
    global _TURN
    _TURN = RLock()


_FEEDS_BACK = ("input", "acts_pre", "acts_post", "recons")


class _Captured(local):
    """What a transcoder read in the current pass; one for each thread."""

    value: Tensor | None = None

    def take(self) -> Tensor | None:
        """The value, which is then forgotten."""
        value, self.value = self.value, None
        return value


@dataclass(eq=False)
class Splice:
    """An SAE at a point.

    Args:
        engine: the model's engine.
        dictionary: the SAE.
        source: the point that it reads.
        target: the point that it replaces.
        fit: how it fits, or None where sizes are known only in a run.
        use_error_term: add the reconstruction error, so that without edits nothing changes.
        excluded: ids of tokens at whose positions the model's own value stays.
    """

    engine: Engine
    dictionary: Dictionary
    source: Place
    target: Place
    fit: Fit | None
    use_error_term: bool
    excluded: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self._captured = _Captured()

    # --- what it is to the engine ------------------------------------------------------------

    @cached_property
    def points(self) -> tuple[SpliceSite, ...]:
        """The points that exist while it is spliced in."""
        lead = " ".join(self.source.whole_axes.split()[: self.source.lead])
        flat = self.fit is not None and self.fit.reads != "as it is"
        read = f"{lead} x" if flat or self.source != self.target else self.source.whole_axes
        axes = {"input": read, "acts_pre": f"{lead} n", "acts_post": f"{lead} n", "recons": read}
        if self._shows("acts_pre"):
            names = ["input", "acts_pre", "acts_post", "recons"]
        else:
            names = ["input", "acts_post", "recons"]
        names += ["error"] if self.use_error_term else []
        axes = {**axes, "error": self.target.whole_axes, "output": self.target.axes}
        return tuple(self._point(last, axes[last]) for last in [*names, "output"])

    def _point(self, last: str, axes: str) -> SpliceSite:
        name = f"{self.target.name}.hook_sae_{last}"
        where = f"{self.dictionary.kind} at {self.target.name}"
        return SpliceSite(PointInfo(name, axes, where, last, frozenset({name})), self)

    def _shows(self, part: str) -> bool:
        return part in (self.dictionary.shows if self.fit is None else self.fit.shows)

    @cached_property
    def callbacks(self) -> list[Callback]:
        """Its callbacks: at the point that it replaces, and at the one that it reads if another."""
        kind = self.dictionary.kind
        here = Callback(self.target.name, "splice", self.replace, kind, permanent=True)
        if self.source == self.target:
            return [here]
        reads = Callback(self.source.name, "read", self.capture, kind, permanent=True, last=True)
        return [reads, here]

    @property
    def in_force(self) -> bool:
        """Whether it acts at its point now; another may replace it for some runs."""
        last = f"{self.target.name}.hook_sae_output"
        return self.engine.sites.get(last) is self.points[-1]

    # --- in a run ----------------------------------------------------------------------------

    def capture(self, value: Tensor) -> None:
        """Keep a copy of what is to be encoded: the model may write to its own tensor later."""
        self._captured.value = value.clone()

    def replace(self, value: Tensor, hook: Hook) -> Tensor:
        """The value that replaces the model's."""
        if not self.in_force:
            return value
        source = value.clone() if self.source == self.target else self._captured.take()
        if source is None:
            raise HookError(
                f"{self.dictionary.kind} reads {self.source.name}, which this run did not pass."
            )
        fit = self._fit(source, value)
        part = self.target.part(value)
        given = fit.given(source, self.dictionary.example())
        with _TURN:
            recons = fit.back(self._reconstructed(given, self._show), part)
            clean = self._clean(given, recons, fit, part) if self.use_error_term else None
        skipped = self._skipped(part, hook) if self.excluded else None
        new = recons if clean is None else self._with_error(part, recons, clean, skipped)
        new = new.to(part.dtype)
        new = new if skipped is None else torch.where(skipped, part, new)
        return self._show("output", self.target.put(value, new))

    def _fit(self, source: Tensor, value: Tensor) -> Fit:
        if self.fit is None:  # not kept: another run may have another width
            places = self.source.sized(source), self.target.sized(value)
            return Fit.of(self.dictionary, *places)
        return self.fit

    def _show(self, last: str, value: Tensor) -> Tensor:
        new = self._chain(last).run(value)
        return value if new is None else new

    def _chain(self, last: str) -> Chain:
        return self.engine.chain(f"{self.target.name}.hook_sae_{last}")

    def _reconstructed(self, given: Tensor, show: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Encode and decode, and pass each value once through the hooks at its point.

        This happens here, or in the SAE's own hook point if it has one.
        """
        read: list[Tensor] = []

        def showing(part: str, value: Tensor) -> Tensor:
            new = show(part, value)
            if part == "input":
                read.append(new)
            return new

        def unless_shown(part: str, value: Tensor) -> Tensor:
            return value if self._shows(part) else showing(part, value)

        sae, skip = self.dictionary.sae, self.dictionary.skip
        with self.dictionary.showing(showing):
            features = unless_shown("acts_post", sae.encode(unless_shown("input", given)))
            decoded = unless_shown("recons", sae.decode(features))
        return decoded if skip is None else decoded + read[0] @ skip.mT

    def _clean(self, given: Tensor, recons: Tensor, fit: Fit, part: Tensor) -> Tensor:
        """The reconstruction without edits, as a constant."""
        edited = any(self._chain(last).edits for last in _FEEDS_BACK)
        if not edited and not self.dictionary.is_steered:
            return recons.detach()
        with torch.no_grad(), self.dictionary.untouched():
            sae, skip = self.dictionary.sae, self.dictionary.skip
            decoded = sae.decode(sae.encode(given))
            decoded = decoded if skip is None else decoded + given @ skip.mT
        return fit.back(decoded, part)

    def _with_error(
        self, part: Tensor, recons: Tensor, clean: Tensor, skipped: Tensor | None
    ) -> Tensor:
        """The reconstruction plus the error of the clean one, which is a constant.

        It is computed as the model's own value plus what edits changed, so it is that value bit for
        bit where they changed nothing. Gradients pass to the reconstruction alone.
        """
        own = part.detach().to(torch.promote_types(part.dtype, recons.dtype))
        new = own + (recons - clean)
        chain = self._chain("error")
        if chain is not NO_CALLBACKS:
            error = own - clean
            error = error if skipped is None else error.masked_fill(skipped, 0)
            edited = chain.run(error)
            if edited is not None:
                kept = new + (edited - edited.detach())
                new = torch.where(edited == error, kept, recons + edited)
        return new

    def _skipped(self, part: Tensor, hook: Hook) -> Tensor:
        """Where the token is one of those excluded, in a shape that broadcasts to the part."""
        tokens = hook.tokens
        if tokens is None or tokens.shape != part.shape[: tokens.ndim]:
            raise InputError(
                f"exclude_special_tokens needs a token for each position of {self.target.name}, "
                f"which is {list(part.shape)}; the model was given "
                f"{'no tokens' if tokens is None else f'tokens {list(tokens.shape)}'}."
            )
        special = torch.tensor(sorted(self.excluded), device=tokens.device)
        skipped = torch.isin(tokens, special).to(part.device)
        return skipped.reshape(skipped.shape + (1,) * (part.ndim - skipped.ndim))
