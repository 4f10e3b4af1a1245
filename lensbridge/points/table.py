"""The table of points: name, axes, meaning; other spellings and short names.

The names are TransformerLens's, because papers, notebooks and SAEs use them. Axes: `b` batch,
`p` position, `h` query head, `g` key/value head, `d` d_head, `m` d_model, `f` d_mlp, `v` d_vocab,
`q` query position, `k` key position, `e` expert, `c` channel or choice, `t` the tokens that an
expert reads, `l` latent, `s` a convolution's padded positions, `x` the input of an SAE, `n` its
features, `1` a kept axis of size one.

Rows are written for the main stack. A model with several stacks has the same rows in each of them:
`encoder.{i}.` and `decoder.{i}.`, `vision.blocks.{i}.`. Points outside the layers of a second stack
begin with its name (`encoder.ln_final.hook_out`, `vision.hook_embed`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One kind of point: a row of the table.

    Args:
        name: the canonical name, with `{i}` for the layer.
        axes: one letter for each axis.
        meaning: what the value is.
        found_in: the architectures that have it.
        on_request: whether "cache everything" leaves it out, so that it has to be named: it is
            large, or a copy.
        derived: whether it is computed from native tensors; an edit recomputes what depends on it.
        by_full_name: whether its short name alone means another row.
    """

    name: str
    axes: str
    meaning: str
    found_in: str = "every"
    on_request: bool = False
    derived: bool = False
    by_full_name: bool = False


def _norm_points(
    prefix: str, what: str, found_in: str = "every", by_full_name: bool = False
) -> tuple[Point, ...]:
    return (
        Point(
            f"{prefix}.hook_scale",
            "b p 1",
            f"divisor of the {what}: sqrt(variance + eps), or sqrt(mean square + eps) for RMSNorm",
            found_in,
            derived=True,
            by_full_name=by_full_name,
        ),
        Point(
            f"{prefix}.hook_normalized",
            "b p m",
            f"the {what}'s output before its gain and bias",
            found_in,
            derived=True,
            by_full_name=by_full_name,
        ),
        Point(
            f"{prefix}.hook_out",
            "b p m",
            f"the {what}'s output",
            found_in,
            by_full_name=by_full_name,
        ),
    )


def _input_point(letter: str, axes: str, what: str) -> Point:
    return Point(
        f"blocks.{{i}}.hook_{letter}_input",
        axes,
        f"residual stream as the {what}s read it, before the norm; one copy per head",
        "pre-norm attention",
        on_request=True,
        derived=True,
    )


def _kernel_points(at: str, what: str, found_in: str, by_full_name: bool) -> tuple[Point, ...]:
    def point(last: str, axes: str, meaning: str, **flags: bool) -> Point:
        name = f"blocks.{{i}}.{at}.hook_{last}"
        return Point(name, axes, meaning, found_in, by_full_name=by_full_name, **flags)

    return (
        point(
            "attn_scores",
            "b h q k",
            f"scaled, masked scores{what} before softmax; -inf where masked",
        ),
        point("pattern", "b h q k", f"attention probabilities{what}, after softmax"),
        point("z", "b p h d", f"pattern-weighted values{what}, per head"),
        point(
            "result",
            "b p h m",
            "what each head writes to the residual stream, before b_O; through the norm and "
            "multiplier after attention, if the model has them",
            on_request=True,
            derived=True,
        ),
    )


def _neuron_points(
    at: str, what: str, rows: str, found_in: str, flags: dict[str, bool]
) -> tuple[Point, ...]:
    def point(last: str, axes: str, meaning: str) -> Point:
        return Point(
            f"blocks.{{i}}.{at}.hook_{last}",
            f"{rows} {axes}",
            meaning,
            found_in,
            by_full_name=True,
            **flags,
        )

    return (
        point("in", "m", f"input of {what}"),
        point("pre", "f", f"{what}: before the activation"),
        point("pre_linear", "f", f"{what}: linear branch, if it is gated"),
        point("post", "f", f"{what}: the neurons"),
        point("out", "m", f"{what}: its output, before it is multiplied by a weight"),
    )


def _sae_point(last: str, axes: str, meaning: str) -> Point:
    name, found_in = f"{{point}}.hook_sae_{last}", "points where an SAE is spliced in"
    return Point(name, axes, meaning, found_in, derived=True, by_full_name=True)


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
    *_norm_points(
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
    _input_point("q", "b p h m", "query head"),
    _input_point("k", "b p g m", "key head"),
    _input_point("v", "b p g m", "value head"),
    *_norm_points("blocks.{i}.ln1", "attention's input norm"),
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
    *_kernel_points("attn", "", "every", by_full_name=False),
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
    *_norm_points("blocks.{i}.ln1_post", "norm after attention", POST_NORM),
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
    *_norm_points("blocks.{i}.ln_cross", "cross-attention's norm", CROSS, by_full_name=True),
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
    *_kernel_points("cross_attn", " over the encoder's positions", CROSS, by_full_name=True),
    *_norm_points(
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
    *_norm_points("blocks.{i}.ln2", "MLP's input norm"),
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
    *_neuron_points(
        "mlp.experts.{e}", "the expert", "t", MOE, {"on_request": True, "derived": True}
    ),
    *_neuron_points("mlp.shared", "the MLP that all tokens share", "b p", MOE, {}),
    *_norm_points("blocks.{i}.ln2_post", "norm after the MLP", POST_NORM),
    Point("blocks.{i}.hook_mlp_out", "b p m", f"exactly what the MLP adds to the stream{UNSAID}"),
    Point(
        "blocks.{i}.hook_per_layer_out",
        "b p m",
        "exactly what the per-layer input adds after the MLP",
        "models with per-layer inputs (Gemma 4)",
    ),
    Point("blocks.{i}.hook_resid_post", "b p m", "residual stream at the end of the block"),
    *_norm_points("ln_final", "final norm"),
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
    _sae_point(
        "input", "b p x", "input of an SAE, in its dtype; heads are flattened if it wants that"
    ),
    _sae_point("acts_pre", "b p n", "its features before their activation, if it shows them"),
    _sae_point("acts_post", "b p n", "its features"),
    _sae_point("recons", "b p x", "output of its decoder: the reconstruction"),
    _sae_point("error", "b p x", "input minus reconstruction, if the error term is added"),
    _sae_point("output", "b p x", "what replaces the value of the point"),
)
"""Every kind of point, in the order of the data flow."""

BY_TEMPLATE = {point.name: point for point in POINTS}

OTHER_SPELLINGS = {
    # TransformerLens's bridge
    "blocks.{i}.hook_in": "blocks.{i}.hook_resid_pre",
    "blocks.{i}.hook_out": "blocks.{i}.hook_resid_post",
    "blocks.{i}.ln1.hook_in": "blocks.{i}.hook_attn_in",
    "blocks.{i}.attn.hook_in": "blocks.{i}.ln1.hook_out",
    "blocks.{i}.attn.q.hook_out": "blocks.{i}.attn.hook_q",
    "blocks.{i}.attn.k.hook_out": "blocks.{i}.attn.hook_k",
    "blocks.{i}.attn.v.hook_out": "blocks.{i}.attn.hook_v",
    "blocks.{i}.attn.o.hook_in": "blocks.{i}.attn.hook_z",
    "blocks.{i}.attn.o.hook_out": "blocks.{i}.hook_attn_out",
    "blocks.{i}.mlp.gate.hook_out": "blocks.{i}.mlp.hook_pre",
    "blocks.{i}.mlp.out.hook_in": "blocks.{i}.mlp.hook_post",
    "blocks.{i}.mlp.out.hook_out": "blocks.{i}.hook_mlp_out",
    "embed.hook_out": "hook_embed",
    "pos_embed.hook_out": "hook_pos_embed",
    "unembed.hook_in": "ln_final.hook_out",
    "unembed.hook_out": "hook_logits",
    "hook_unembed": "hook_logits",
    # spellings of older notes
    "blocks.{i}.attn.hook_attn": "blocks.{i}.attn.hook_pattern",
    "blocks.{i}.attn.hook_out": "blocks.{i}.hook_attn_out",
    "blocks.{i}.mlp.hook_in": "blocks.{i}.ln2.hook_out",
    "blocks.{i}.mlp.hook_out": "blocks.{i}.hook_mlp_out",
}

SHORT_ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
    "unembed": "logits",
}
