"""Names that are looked for on a cache."""

from lensbridge.elsewhere.hinted import Instead, Table, entries

_NAMES: Instead = [("list(cache)", "has the names")]
_STREAM: Instead = [
    ("cache['resid_post', 1]", "is the residual stream after a layer"),
    ("cache.accumulated_resid()", "is that of all layers"),
]
_PLOT: Instead = [
    ("lensbridge.plot(cache['pattern', 1][0, 0])", "draws one matrix"),
]
_LOGITS: Instead = [
    ("logits, cache = model.run_with_cache(input)", "gives the logits beside the cache"),
]


def _at(short: str) -> Instead:
    return [(f"cache[{short!r}, 1]", "is that of a layer")]


CACHE: Table = {
    **entries(("logits", "output", "outputs", "loss"), _LOGITS),
    **entries(
        ("hidden_states", "last_hidden_state", "layers", "blocks", "layers_output", "residual"),
        _STREAM,
    ),
    **entries(
        ("attentions", "attention", "attn", "patterns", "attn_patterns", "attention_patterns"),
        _at("pattern"),
    ),
    **entries(
        ("names", "hook_names", "points", "hooks", "points_names", "activations", "cache"), _NAMES
    ),
    **entries(
        ("cache_dict", "to_dict", "as_dict", "state_dict"), [("dict(cache)", "is a dictionary")]
    ),
    **entries(
        ("last", "last_pos", "last_position", "at_last_token"),
        [("cache.last_token('resid_post', 1)", "is the activation at each text's last token")],
    ),
    "input_ids": [("cache.tokens", "has the ids that were run")],
    "mask": [("cache.attention_mask", "is 1 for tokens, and None without padding")],
    "str_tokens": [("model.to_str_tokens(cache.tokens)", "gives the text of each token")],
    "cpu": [("cache.to('cpu')", "moves the activations")],
    "cuda": [("cache.to", "moves the activations: cache.to('cuda')")],
    **entries(
        ("shape", "shapes"),
        [("{name: value.shape for name, value in cache.items()}", "has the shapes")],
    ),
    **entries(
        ("numpy", "detach", "clone", "mean"),
        [("cache['resid_post', 1]", "is a tensor, which has such methods")],
    ),
    **entries(("plot", "show", "visualize", "heatmap"), _PLOT),
    "batch_size": [("len(cache.tokens)", "is the number of examples")],
    **entries(
        ("to_dataframe", "to_pandas", "df"),
        [("cache.to_xarray(('resid_post', 1))", "gives an array with named axes")],
    ),
    **entries(
        ("slice_batch", "batch"),
        [("cache.apply_slice_to_batch_dim(0)", "is the cache of one example")],
    ),
    **entries(
        ("dla", "direct_logit_attribution", "logit_attribution"),
        [("cache.logit_attrs", "attributes logits to the parts of the stream")],
    ),
}
"""What to write for names of TransformerLens, nnsight, transformers and plain dictionaries."""
