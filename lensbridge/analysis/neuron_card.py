"""neuron_card: where a neuron is active, and which tokens it promotes."""

from dataclasses import dataclass
from typing import Any

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError, WeightError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.special import Excluded
from lensbridge.maxima.card import ActivationCard
from lensbridge.maxima.effects import LogitEffects, logit_effects
from lensbridge.maxima.peaks import Search, maxima_of
from lensbridge.weights.mlp_views import MLPView


@dataclass(frozen=True, repr=False)
class NeuronCard(ActivationCard):
    """A neuron of an MLP: the texts in which it is largest, its values, and its logit effects.

    Args:
        layer: the layer.
        neuron: its number.
    """

    layer: int
    neuron: int


def neuron_card(
    model: HookedModel,
    layer: int,
    neuron: int,
    texts: Any,
    *,
    k: int = 10,
    context: int = 12,
    logits: int = 8,
    batch_size: int = 8,
    max_tokens: int | None = None,
    exclude_special_tokens: Excluded = True,
) -> NeuronCard:
    """Find where a neuron is largest in some texts, and which tokens it promotes.

    Its activation is that of the point `post`, with which its row of `W_out` is multiplied. Texts
    are run in batches, and only the k best are kept.

    Args:
        model: any model with MLPs.
        layer: the layer; negative ones count from the end.
        neuron: the neuron.
        texts: any iterable of texts; or rows of token ids, as `[row, pos]` or from
            `tokenize_and_concatenate`.
        k: how many texts are shown, those with the largest activations.
        context: tokens to show on each side of the largest activation.
        logits: tokens to show that it promotes, and that it suppresses.
        batch_size: texts that are run together.
        max_tokens: where texts are cut; None: at the model's context.
        exclude_special_tokens: leave BOS, EOS, padding and separators out (True), or these ids.

    Raises:
        InputError: no such layer or neuron, or no texts.
        AbsentPointError: this layer has no such neurons, as in a mixture of experts.

    Example:
        >>> import lensbridge
        >>> model = lensbridge.load("demo")
        >>> card = neuron_card(model, 1, 7, ["The Eiffel Tower is in the city of Paris"], k=1)
        >>> len(card.peaks), card.effects is not None
        (1, True)
    """
    name = model.vocabulary.canonical(("post", layer))
    layer = layer % len(model.blocks)
    count = model.cfg.d_mlp
    if count is not None and not 0 <= neuron < count:
        raise InputError(f"There is no neuron {neuron}: layer {layer} has {count}.")

    def activation(cache: ActivationCache) -> Any:
        return cache[name][..., neuron]

    search = Search(k, context, batch_size, max_tokens, exclude_special_tokens)
    found = maxima_of(model, name, activation, texts, search)
    return NeuronCard(
        f"Neuron {neuron} of layer {layer}",
        *found,
        _effects(model, layer, neuron, logits),
        False,
        layer,
        neuron,
    )


def _effects(model: HookedModel, layer: int, neuron: int, k: int) -> LogitEffects | None:
    """The effects of its row of W_out; None where the layer has none of its own."""
    try:
        mlp = model.blocks[layer].mlp
    except WeightError:
        return None
    if not isinstance(mlp, MLPView) or not mlp.part.writes_neurons:
        return None
    return logit_effects(model, mlp.W_out[neuron], k)
