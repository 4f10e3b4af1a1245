"""The table of points: name, axes, meaning.

The names are TransformerLens's, because papers, notebooks and SAEs use them. Axes: `b` batch,
`p` position, `h` query head, `g` key/value head, `d` d_head, `m` d_model, `f` d_mlp, `v` d_vocab,
`q` query position, `k` key position, `e` expert, `c` channel or choice, `t` the tokens that an
expert reads, `l` latent, `s` a convolution's padded positions, `x` the input of an SAE, `n` its
features, `1` a kept axis of size one.

Rows are written for the main stack. A model with several stacks has the same rows in each of them:
`encoder.{i}.` and `decoder.{i}.`, `vision.blocks.{i}.`. Points outside the layers of a second stack
begin with its name (`encoder.ln_final.hook_out`, `vision.hook_embed`).
"""

from lensbridge.points.rows import (
    Point,
    input_point,
    kernel_points,
    neuron_points,
    norm_points,
    sae_point,
)

SEQUENTIAL = "blocks whose MLP reads the stream after attention"
ROTARY = "rotary models"
POST_NORM = "blocks with a norm after the branch (Gemma 2, OLMo 2)"
LATENT = "latent attention (DeepSeek)"
MIXER = "state-space and linear-attention layers"
CROSS = "decoders with an encoder"
MOE = "mixtures of experts"
UNSAID = ", or its output, where it is not described how that is added"

POINTS: tuple[Point, ...] = (
    Point("hook_embed", "b p m", "token embedding"),
    Point("hook_pos_embed", "b p m", "learned position embedding", "learned absolute positions"),
    *norm_points(
        "ln_embed", "embedding's norm", "models that have it (BERT, BLOOM)", by_full_name=True
    ),
    Point("blocks.{i}.hook_resid_pre", "b p m", "residual stream at the start of the block"),
    Point(
        "blocks.{i}.hook_attn_in",
        "b p m",
        "residual stream read by attention, before its norm; an edit does not change the skip "
        "connection",
        "pre-norm attention",
        on_request=True,
    ),
    input_point("q", "b p h m", "query head"),
    input_point("k", "b p g m", "key head"),
    input_point("v", "b p g m", "value head"),
    *norm_points("blocks.{i}.ln1", "attention's input norm"),
    Point("blocks.{i}.attn.hook_q", "b p h d", "queries, after any q norm and before rotary"),
    Point("blocks.{i}.attn.hook_k", "b p g d", "keys, after any k norm and before rotary"),
    Point("blocks.{i}.attn.hook_v", "b p g d", "values"),
    Point("blocks.{i}.attn.hook_rot_q", "b p h d", "queries after rotary", ROTARY),
    Point(
        "blocks.{i}.attn.hook_rot_k",
        "b p g d",
        "keys after rotary; with a key/value cache, those of every position so far",
        ROTARY,
    ),
    Point(
        "blocks.{i}.attn.hook_rel_pos_bias",
        "1 h q k",
        "relative-position bias that is added to the scores; later layers add the same",
        "layers that have one (T5)",
    ),
    *kernel_points("attn", "", "every", by_full_name=False),
    Point(
        "blocks.{i}.attn.hook_head_out",
        "b p h m",
        "what each head gives to the norm after attention: z times its slice of W_O",
        POST_NORM,
        on_request=True,
        derived=True,
        by_full_name=True,
    ),
    Point("blocks.{i}.attn.hook_q_latent", "b p l", "latent from which queries are made", LATENT),
    Point(
        "blocks.{i}.attn.hook_kv_latent",
        "b p l",
        "latent from which keys and values are made",
        LATENT,
    ),
    *norm_points("blocks.{i}.ln1_post", "norm after attention", POST_NORM),
    Point(
        "blocks.{i}.hook_attn_out", "b p m", f"exactly what attention adds to the stream{UNSAID}"
    ),
    Point("blocks.{i}.mixer.hook_in", "b p m", "input of the mixer", MIXER, by_full_name=True),
    Point(
        "blocks.{i}.mixer.hook_{step}",
        "b p c",
        "output of one of the mixer's modules; `b c s` after a convolution, whose axis is padded",
        MIXER,
        by_full_name=True,
    ),
    Point("blocks.{i}.mixer.hook_out", "b p m", "output of the mixer", MIXER, by_full_name=True),
    Point(
        "blocks.{i}.hook_mixer_out",
        "b p m",
        f"exactly what the mixer adds to the stream{UNSAID}",
        MIXER,
    ),
    Point(
        "blocks.{i}.hook_resid_mid",
        "b p m",
        "residual stream between attention and MLP; an edit changes the skip connection too",
        SEQUENTIAL,
    ),
    *norm_points("blocks.{i}.ln_cross", "cross-attention's norm", CROSS, by_full_name=True),
    Point(
        "blocks.{i}.cross_attn.hook_q",
        "b p h d",
        "queries to the encoder",
        CROSS,
        by_full_name=True,
    ),
    Point(
        "blocks.{i}.cross_attn.hook_k",
        "b k g d",
        "keys of the encoder's positions; decoding makes them once",
        CROSS,
        by_full_name=True,
    ),
    Point(
        "blocks.{i}.cross_attn.hook_v",
        "b k g d",
        "values of the encoder's positions; decoding makes them once",
        CROSS,
        by_full_name=True,
    ),
    *kernel_points("cross_attn", " over the encoder's positions", CROSS, by_full_name=True),
    *norm_points(
        "blocks.{i}.ln_cross_post", "norm after cross-attention", CROSS, by_full_name=True
    ),
    Point("blocks.{i}.hook_cross_attn_out", "b p m", "exactly what cross-attention adds", CROSS),
    Point(
        "blocks.{i}.hook_resid_mid_cross",
        "b p m",
        "residual stream between cross-attention and MLP; an edit changes the skip connection too",
        CROSS,
    ),
    Point(
        "blocks.{i}.hook_mlp_in",
        "b p m",
        "residual stream read by the MLP, before its norm; an edit does not change the skip "
        "connection",
        "pre-norm MLP",
        on_request=True,
    ),
    *norm_points("blocks.{i}.ln2", "MLP's input norm"),
    Point("blocks.{i}.mlp.hook_pre", "b p f", "before the activation: up, or gate of a gated MLP"),
    Point("blocks.{i}.mlp.hook_pre_linear", "b p f", "linear branch of a gated MLP", "gated MLPs"),
    Point("blocks.{i}.mlp.hook_post", "b p f", "input of the down projection: the neurons"),
    Point("blocks.{i}.mlp.hook_router_logits", "b p e", "router's logits; an edit re-routes", MOE),
    Point(
        "blocks.{i}.mlp.hook_expert_weights",
        "b p c",
        "weights of the chosen experts, in the order of their indices",
        MOE,
    ),
    Point(
        "blocks.{i}.mlp.hook_expert_indices",
        "b p c",
        "indices of the chosen experts; an edit re-routes",
        MOE,
    ),
    *neuron_points(
        "mlp.experts.{e}", "the expert", "t", MOE, {"on_request": True, "derived": True}
    ),
    *neuron_points("mlp.shared", "the MLP that all tokens share", "b p", MOE, {}),
    *norm_points("blocks.{i}.ln2_post", "norm after the MLP", POST_NORM),
    Point("blocks.{i}.hook_mlp_out", "b p m", f"exactly what the MLP adds to the stream{UNSAID}"),
    Point(
        "blocks.{i}.hook_per_layer_out",
        "b p m",
        "exactly what the per-layer input adds after the MLP",
        "models with per-layer inputs (Gemma 4)",
    ),
    Point("blocks.{i}.hook_resid_post", "b p m", "residual stream at the end of the block"),
    *norm_points("ln_final", "final norm"),
    Point(
        "projector.hook_out",
        "b p m",
        "image features for the text model; `p m` if all images are in one row",
        "vision-language",
        by_full_name=True,
    ),
    Point("head.hook_hidden", "b p m", "input of the head", "heads with a transform (BERT)"),
    Point("hook_pooler_out", "b m", "one vector for the sequence", "models with a pooler"),
    Point("hook_logits", "b p v", "logits", "models with a head"),
    sae_point(
        "input", "b p x", "input of an SAE, in its dtype; heads are flattened if it wants that"
    ),
    sae_point("acts_pre", "b p n", "its features before their activation, if it shows them"),
    sae_point("acts_post", "b p n", "its features"),
    sae_point("recons", "b p x", "output of its decoder: the reconstruction"),
    sae_point("error", "b p x", "input minus reconstruction, if the error term is added"),
    sae_point("output", "b p x", "what replaces the value of the point"),
)
"""Every kind of point, in the order of the data flow."""

BY_TEMPLATE = {point.name: point for point in POINTS}
"""The rows by their names."""
