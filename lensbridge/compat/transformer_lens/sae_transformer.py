"""`HookedSAETransformer`: SAELens's class for a decoder with sparse autoencoders."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lensbridge.compat.transformer_lens.transformer import HookedTransformer
from lensbridge.inputs.special import Excluded
from lensbridge.saes.request import SAEs


class HookedSAETransformer(HookedTransformer):
    """A `HookedTransformer` with the methods of SAELens's class of this name.

    An SAE is any object with `encode` and `decode`. While it is at a point, its own values are
    points too: `blocks.1.hook_resid_pre.hook_sae_acts_post`, ...
    """

    @property
    def acts_to_saes(self) -> dict[str, Any]:
        """The SAEs that are attached, by point."""
        return dict(self.lens.acts_to_saes)

    def add_sae(
        self,
        sae: Any,
        use_error_term: bool | None = None,
        exclude_special_tokens: Excluded = False,
        **place: Any,
    ) -> None:
        """Attach an SAE until `reset_saes`.

        Args:
            sae: the SAE.
            use_error_term: add the reconstruction error; None: the SAE's own default.
            exclude_special_tokens: leave the model's value at special tokens, or at these ids.
            place: `hook_name` and `hook_name_out`, if the config of the SAE lacks them.
        """
        self.lens.add_sae(sae, use_error_term, exclude_special_tokens, **place)

    def reset_saes(self, act_names: str | list[str] | None = None) -> None:
        """Remove the SAEs that are attached, at all points or at these."""
        self.lens.reset_saes(act_names)

    @contextmanager
    def saes(
        self,
        saes: SAEs = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: Excluded = False,
    ) -> Iterator["HookedSAETransformer"]:
        """A context with SAEs in every run inside; arguments as in `add_sae`.

        Args:
            saes: an SAE, several, or point -> SAE.
            reset_saes_end: False leaves them attached.
            use_error_term: see `add_sae`.
            exclude_special_tokens: see `add_sae`.
        """
        with self.lens.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            yield self

    def run_with_saes(
        self,
        *model_args: Any,
        saes: SAEs = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: Excluded = False,
        **model_kwargs: Any,
    ) -> Any:
        """`forward` with SAEs for this run."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self(*model_args, **model_kwargs)

    def run_with_cache_with_saes(
        self,
        *model_args: Any,
        saes: SAEs = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: Excluded = False,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """`run_with_cache` with SAEs for this run; the cache has their features too."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self.run_with_cache(*model_args, **model_kwargs)

    def run_with_hooks_with_saes(
        self,
        *model_args: Any,
        saes: SAEs = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        exclude_special_tokens: Excluded = False,
        **model_kwargs: Any,
    ) -> Any:
        """`run_with_hooks` with SAEs for this run; hooks can be on their features too."""
        with self.saes(saes, reset_saes_end, use_error_term, exclude_special_tokens):
            return self.run_with_hooks(*model_args, **model_kwargs)
