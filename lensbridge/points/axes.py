"""Words for the letters of axes in the table of points."""

AXES = {
    "b": "batch",
    "p": "pos",
    "h": "head",
    "g": "kv_head",
    "d": "d_head",
    "m": "d_model",
    "f": "d_mlp",
    "v": "d_vocab",
    "q": "query_pos",
    "k": "key_pos",
    "e": "expert",
    "c": "channel",
    "t": "routed_token",
    "l": "latent",
    "s": "padded_pos",
    "r": "stream",
    "x": "sae_input",
    "n": "feature",
    "1": "one",
}
