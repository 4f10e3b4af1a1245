"""Going on from a key/value cache that holds the beginning of a text."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prepare import Prepared
from lensbridge.native.kv_cache import columns_in, name_of_cache


def prompt_after(
    model: HookedModel, prepared: Prepared, past: Any, return_cache: bool
) -> tuple[Prepared, dict[str, Any]]:
    """What of a prompt is read after a key/value cache, and the cache for `generate`.

    Args:
        model: that is run.
        prepared: the whole prompt.
        past: the cache of its beginning; None: there is none.
        return_cache: whether activations of every position are asked for.

    Raises:
        InputError: the model cannot go on from this cache, or not as it is asked to.
    """
    name = name_of_cache(model.preparer.accepted)
    if past is None:
        return prepared, {}
    if name is None or model.native.is_encoder_decoder:
        raise InputError(
            f"{type(model.native.core).__name__} cannot go on from a key/value cache of a "
            "prompt: leave past_key_values out."
        )
    if return_cache:
        raise InputError(
            "return_cache has every position of the text, and those that past_key_values "
            "holds are not run again. Leave one of the two out."
        )
    cache = _continued(prepared, past)
    return _rest_of(prepared, name, cache), {name: cache}


def _continued(prepared: Prepared, cache: Any) -> Any:
    """A cache that leaves at least the last position of a prompt to be read.

    Args:
        prepared: the whole prompt, what the cache holds included.
        cache: of its beginning. It is not written to where it holds the whole prompt.

    Raises:
        InputError: the cache is of something else than the beginning of the prompt.
    """
    held = columns_in(cache)
    count = None if prepared.tokens is None else prepared.tokens.shape[1]
    if held is None or count is None or held > count:
        raise InputError(
            f"past_key_values holds {held} positions and the input has {count}. Pass the ids of "
            "the whole text, those that the cache was made of included; a cache that does not say "
            "how many positions it holds cannot be continued."
        )
    if held < count:
        return cache
    shorter = deepcopy(cache)
    try:
        shorter.crop(-1)
    except (AttributeError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"past_key_values holds all {count} positions of the input, and a "
            f"{type(cache).__name__} cannot be cropped to leave the last one to be read. Keep a "
            "cache of all but the last position."
        ) from error
    return shorter


def _rest_of(prepared: Prepared, name: str, cache: Any) -> Prepared:
    """The part of a prompt that is read after a cache, as hooks and interventions see it."""
    held = columns_in(cache) or 0
    assert prepared.tokens is not None
    kwargs = {**prepared.kwargs, name: cache}
    return replace(prepared, tokens=prepared.tokens[:, held:], kwargs=kwargs)
