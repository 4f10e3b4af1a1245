"""Keywords of a run that nobody takes, and what to write instead."""

from collections.abc import Collection

from lensbridge.errors import suggest

_WITH_HOOKS = ("fwd_hooks", "bwd_hooks", "reset_hooks_end", "clear_contexts")
_WITH_CACHE = (
    *("names_filter", "device", "dtype", "pos_slice", "incl_bwd", "remove_batch_dim"),
    *("return_cache_object", "detach", "count"),
)
_OF_ALL = (
    *("return_type", "loss_per_token", "prepend_bos", "padding_side", "attention_mask"),
    *("position_ids", "start_at_layer", "stop_at_layer", "past_key_values", "labels", "tokens"),
    *("inputs_embeds", "add_generation_prompt"),
)
_INSTEAD = {
    "batch_size": "All rows of an input run in one batch: pass fewer rows at a time. Sweeps make "
    "batches themselves, of max_batch_tokens=... tokens.",
    "past_kv_cache": "Pass HuggingFace's cache as past_key_values=....",
    "prepend_space_to_answer": "Put the space into the text.",
    "interventions": "Write `with model.intervene(...):` around the call.",
    "pos": "Tools take positions=..., and run_with_cache takes pos_slice=....",
    "hooks": "Pass fwd_hooks=... to run_with_hooks.",
}


def unexpected(name: str, model: str, accepted: Collection[str]) -> TypeError:
    """The error for a keyword that neither a run nor the native forward takes.

    Args:
        name: the keyword.
        model: the class of the model.
        accepted: what its native forward takes.
    """
    hint = _INSTEAD.get(name)
    for method, theirs in (("run_with_hooks", _WITH_HOOKS), ("run_with_cache", _WITH_CACHE)):
        if name in theirs:
            hint = f"It is a keyword of model.{method}(...)."
    if hint is None:
        hint = suggest(name, {*_OF_ALL, *_WITH_HOOKS, *_WITH_CACHE, *accepted}).strip()
    if not hint:
        hint = f"The forward of {model} takes {', '.join(sorted(accepted)) or 'no others'}."
    return TypeError(f"unexpected keyword {name!r} for {model}. {hint}")
