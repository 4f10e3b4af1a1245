"""Methods of `LensModel` for sparse autoencoders: splice them in, run with them, see features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lensbridge.cache import ActivationCache
from lensbridge.errors import HookError
from lensbridge.hooked_model import HookedModel, Result
from lensbridge.hooks.callbacks import Callback
from lensbridge.hooks.hook_point import HookPair
from lensbridge.inputs.special import Excluded
from lensbridge.points.names import Name
from lensbridge.saes.dictionary import SparseAutoencoder
from lensbridge.saes.request import SAEs, SpliceRequests
from lensbridge.saes.splice import Splice
from lensbridge.sites.spliced import Splices


class SAEMethods(HookedModel):
    """Methods of `LensModel` for sparse autoencoders and transcoders.

    While an SAE is at a point, its own values are points too, under the name of the point that it
    replaces: `hook_sae_input`, `hook_sae_acts_pre` (if it has this), `hook_sae_acts_post`,
    `hook_sae_recons`, `hook_sae_error` (with the error term) and `hook_sae_output`.

    Source: the methods of SAELens's `HookedSAETransformer`, with their names and arguments.
    """

    @contextmanager
    def spliced(
        self,
        saes: SAEs,
        use_error_term: bool | None = False,
        exclude_special_tokens: Excluded = False,
    ) -> Iterator[Any]:
        """A context in which every run has these SAEs, in this thread only; contexts nest.

        Hooks on the same point that are added inside see the output of the SAE, and those that were
        there before see its input.

        Args:
            saes: point -> SAE, or an SAE or several whose config names the point.
            use_error_term: add the reconstruction error as a constant: without edits the model's
                values stay the same bit for bit, and gradients pass through the SAE alone. None:
                the SAE's own default.
            exclude_special_tokens: leave the model's own value at BOS, EOS, padding and separators
                (True), or at these ids.

        Raises:
            UnknownPointError: no such point.
            EditError: the SAE does not fit the point.
            HookError: two SAEs at one point, or an SAE whose point is not known.
            HookNeverFiredError: at the end, if the model was run and never passed the point.

        Example:
            >>> import torch
            >>> import lensbridge
            >>> class Identity:
            ...     def encode(self, x): return x
            ...     def decode(self, features): return features
            >>> model = lensbridge.load("demo")
            >>> with model.spliced({("resid_pre", 1): Identity()}):
            ...     _, cache = model.run_with_cache(torch.tensor([[1, 2, 3]]))
            >>> cache["blocks.1.hook_resid_pre.hook_sae_acts_post"].shape[:2]
            torch.Size([1, 3])
        """
        splices = self._splices(saes, use_error_term, exclude_special_tokens)
        taken = next((one for one in splices if one.target.name in self.engine.splices), None)
        if taken is not None:
            raise HookError(
                f"An SAE is attached to {taken.target.name} already (add_sae). Remove it with "
                "reset_saes, or use run_with_saes, which replaces it for one run."
            )
        with self._standing(splices):
            yield self

    @contextmanager
    def saes(
        self,
        saes: SAEs = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: Excluded = False,
    ) -> Iterator[Any]:
        """Like `spliced`, but these SAEs replace those that `add_sae` attached to the same points.

        Args:
            saes: as in `spliced`.
            reset_saes_end: False leaves them attached at the end, in every thread.
            use_error_term: as in `spliced`; None: each SAE's own default.
            exclude_special_tokens: as in `spliced`.
        """
        splices = self._splices(saes, use_error_term, exclude_special_tokens)
        if not reset_saes_end:
            self._attach(splices)
            yield self
            return
        with self._standing(splices):
            yield self

    @contextmanager
    def _standing(self, splices: list[Splice]) -> Iterator[None]:
        callbacks, points = _put_on(splices)
        with self.listening(callbacks, points):
            yield

    # --- for good ----------------------------------------------------------------------------

    def add_sae(
        self,
        sae: SparseAutoencoder,
        use_error_term: bool | None = None,
        exclude_special_tokens: Excluded = False,
        hook_name: Name | None = None,
        hook_name_out: Name | None = None,
    ) -> None:
        """Attach an SAE for every run and thread until `reset_saes`; it replaces any SAE there.

        Args:
            sae: the SAE or transcoder.
            use_error_term: as in `spliced`; None: the SAE's own default.
            exclude_special_tokens: as in `spliced`.
            hook_name: the point that it reads; None: that of its config (`cfg.metadata.hook_name`).
            hook_name_out: the point that it replaces; None: that of its config, or the one it
                reads.
        """
        saes: Any = sae if hook_name is None else {(hook_name, hook_name_out): sae}
        self._attach(self._splices(saes, use_error_term, exclude_special_tokens))

    def _attach(self, splices: list[Splice]) -> None:
        for splice in splices:
            self._detach([one for one in self._attached() if one.target == splice.target])
        self.engine.add(*_put_on(splices))

    @property
    def acts_to_saes(self) -> dict[str, SparseAutoencoder]:
        """The SAEs that `add_sae` attached, by the point that each reads."""
        return {one.source.name: one.dictionary.sae for one in self._attached()}

    def reset_saes(self, act_names: str | Iterable[str] | None = None) -> None:
        """Remove SAEs that `add_sae` attached.

        Args:
            act_names: the points whose SAEs are removed; None: all.

        Raises:
            HookError: nothing is attached there.
        """
        if act_names is None:
            self._detach(self._attached())
            return
        asked = [act_names] if isinstance(act_names, str) else act_names
        names = [self.vocabulary.canonical(name) for name in asked]
        there = {
            name: one for one in self._attached() for name in (one.target.name, one.source.name)
        }
        for name in names:
            if name not in there:
                raise HookError(f"No SAE is attached to {name}; SAEs are at {sorted(there)}.")
        self._detach([there[name] for name in names])

    def _attached(self) -> list[Splice]:
        owners = [points[0].splice for points in self.engine.splices.values()]
        return [one for one in owners if isinstance(one, Splice)]

    def _detach(self, splices: list[Splice]) -> None:
        callbacks, points = _put_on(splices)
        self.engine.remove(callbacks, points)

    # --- one run -----------------------------------------------------------------------------

    def run_with_saes(
        self,
        *model_args: Any,
        saes: SAEs = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: Excluded = False,
        **model_kwargs: Any,
    ) -> Result:
        """`forward` with SAEs for this run; arguments as in `saes` and `forward`."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens) as model:
            return model.forward(*model_args, **model_kwargs)

    def run_with_cache_with_saes(
        self,
        *model_args: Any,
        saes: SAEs = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: Excluded = False,
        **model_kwargs: Any,
    ) -> tuple[Result, ActivationCache | dict[str, Any]]:
        """`run_with_cache` with SAEs for this run; the cache has their features too."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens) as model:
            return model.run_with_cache(*model_args, **model_kwargs)

    def run_with_hooks_with_saes(
        self,
        *model_args: Any,
        saes: SAEs = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: Excluded = False,
        fwd_hooks: Iterable[HookPair] = (),
        bwd_hooks: Iterable[HookPair] = (),
        **model_kwargs: Any,
    ) -> Result:
        """`run_with_hooks` with SAEs for this run; hooks can be on their features too."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens) as model:
            return model.run_with_hooks(
                *model_args, fwd_hooks=fwd_hooks, bwd_hooks=bwd_hooks, **model_kwargs
            )

    def _splices(self, saes: SAEs, use_error_term: bool | None, excluded: Excluded) -> list[Splice]:
        orders = SpliceRequests(self.engine, self.vocabulary, self.native, self.tokens)
        return orders.splices(saes, use_error_term, excluded)


def _put_on(splices: list[Splice]) -> tuple[list[Callback], Splices]:
    """The callbacks of SAEs, and their points."""
    points = {one.target.name: one.points for one in splices}
    return [callback for one in splices for callback in one.callbacks], points
