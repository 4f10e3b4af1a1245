"""feature_card: where a feature of an SAE is active, and which tokens it promotes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.special import Excluded
from lensbridge.maxima.card import ActivationCard
from lensbridge.maxima.effects import logit_effects
from lensbridge.maxima.peaks import Search, maxima_of
from lensbridge.points.names import Name
from lensbridge.saes.dictionary import SparseAutoencoder
from lensbridge.saes.request import SpliceRequests


@dataclass(frozen=True, repr=False)
class FeatureCard(ActivationCard):
    """A feature of an SAE: the texts in which it is largest, its values, and its logit effects.

    Args:
        hook_name: the point that the SAE replaces.
        feature: its number.
    """

    hook_name: str
    feature: int


@torch.no_grad()
def feature_card(
    model: HookedModel,
    sae: SparseAutoencoder,
    feature: int,
    texts: Any,
    *,
    hook_name: Name | None = None,
    hook_name_out: Name | None = None,
    k: int = 10,
    context: int = 12,
    logits: int = 8,
    batch_size: int = 8,
    max_tokens: int | None = None,
    exclude_special_tokens: Excluded = True,
) -> FeatureCard:
    """Find where a feature is largest in some texts, and which tokens it promotes.

    The model runs as without the SAE. Texts are run in batches, and only the k best are kept. The
    feature's direction is what one unit of it adds to the reconstruction; its effects on the logits
    are known where that is a direction of the residual stream.

    Args:
        model: the model.
        sae: the SAE or transcoder; any object with `encode` and `decode`.
        feature: the feature.
        texts: any iterable of texts; or rows of token ids, as `[row, pos]`.
        hook_name: the point that the SAE reads; None: that of its config.
        hook_name_out: the point that it replaces; None: that of its config, or the one it reads.
        k: how many texts are shown, those with the largest activations.
        context: tokens to show on each side of the largest activation.
        logits: tokens to show that it promotes, and that it suppresses.
        batch_size: texts that are run together.
        max_tokens: where texts are cut; None: at the model's context.
        exclude_special_tokens: leave BOS, EOS, padding and separators out (True), or these ids.

    Raises:
        InputError: no such feature, or no texts.
        HookError: the SAE does not say at which point it belongs, and `hook_name` is None.
        EditError: the SAE does not fit the point.
    """
    search = Search(k, context, batch_size, max_tokens, exclude_special_tokens)
    saes: Any = sae if hook_name is None else {(hook_name, hook_name_out): sae}
    orders = SpliceRequests(model.engine, model.vocabulary, model.native, model.tokens)
    (splice,) = orders.splices(saes, True, False)
    name = f"{splice.target.name}.hook_sae_acts_post"
    example: list[Tensor] = []

    def activation(cache: ActivationCache) -> Tensor:
        values = _checked(cache[name], feature)
        example[:] = [values[0, 0].detach()]
        return values[..., feature]

    with model.listening(splice.callbacks, {splice.target.name: splice.points}):
        found = maxima_of(model, name, activation, texts, search)
        direction = splice.dictionary.direction(feature, example[0])
    return FeatureCard(
        f"Feature {feature} of the SAE at {splice.target.name}",
        *found,
        logit_effects(model, direction, logits),
        True,
        splice.target.name,
        feature,
    )


def _checked(values: Tensor, feature: int) -> Tensor:
    """The features at each token, `[batch, pos, d_sae]`."""
    if values.ndim != 3:
        raise InputError(
            f"The SAE has features of shape {list(values.shape)}; a card needs [batch, pos, "
            "feature]. Let it read one head, or a point without heads."
        )
    if not 0 <= feature < values.shape[-1]:
        raise InputError(f"There is no feature {feature}: the SAE has {values.shape[-1]}.")
    return values
