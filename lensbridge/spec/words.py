"""The words that a field of a description can have as its value, and what they mean."""

from typing import Literal, TypeAlias

Residual = Literal["sequential", "parallel", "post_norm", "reversible"]
"""How branches read the stream. sequential: the MLP reads the stream after attention was added;
parallel: it reads the same stream as attention; post_norm: as sequential, and each sum goes through
a norm, whose output is the new stream (BERT); reversible: a layer takes and gives two streams, and
its points of the stream are `[r, b, p, m]`: attention reads the second and is added to the first,
the MLP reads the first and is added to the second (Reformer)."""

NormKind = Literal["LN", "RMS"]
"""LayerNorm (centres and divides) or RMSNorm (divides only)."""

FusedLayout = Literal["blocked", "grouped", "sharded"]
"""How one projection contains q, k and v. blocked: all q, all k, all v. grouped: for each key/value
head its queries, its key, its value. sharded: four shards, each with all its q, v and k."""

FusedOrder = Literal["qkv", "qvk", "kqv", "kvq", "vqk", "vkq"]
"""The order of queries, keys and values in a blocked projection."""

Streams = Literal[
    "streams_first",
    "streams_last",
    "side_by_side",
    "end_to_end",
    "flat",
    "grid",
    "positions_first",
    "positions_first_in_layers",
]
"""The axes of the residual stream. streams_first: `[r, b, p, m]`, several streams (Gemma 3n).
streams_last: `[b, p, r, m]` (hyper-connections). side_by_side: `[b, p, (r m)]`, several streams in
one vector (Qwen 4). flat: `[p, m]`, the patches of all images in one row (Qwen2-VL), so that no
point has a batch axis. grid: `[b, y, x, m]`, the rows and columns of an image (GOT-OCR 2); points
have one axis of positions, row by row. positions_first: `[p, b, m]` (XLNet); points have the batch
first all the same. positions_first_in_layers: so, but the embeddings have the batch first (FSMT).
end_to_end: `[b, (r p), m]`, several streams in one row of positions, the tokens' first
(ProphetNet); the head reads the others, and the logits are those of the second."""

QKNormAxes = Literal["flat", "positions_first", "heads_first"]
"""The input of a norm of q or k: `[b, p, (h d)]`, `[b, p, h, d]` or `[b, h, p, d]`."""

Halves = Literal["gate_first", "up_first"]
"""Which half of a fused projection is the gate, which goes through the activation."""

ExpertLayout = Literal["out_in", "in_out", "neuron_rows"]
"""How a parameter holds the weights of all experts. out_in: `[expert, out, in]`; in_out: `[expert,
in, out]`; neuron_rows: `[(expert neuron), d_model]`, in which the number of experts is the router's
width (DBRX)."""

ExpertInput = Literal["chosen", "all", "sorted"]
"""How tokens get to experts. chosen: their module is called with the tokens, the indices of the
chosen experts and the weights of these. all: it is called with every token once for each expert,
times the weight of that expert, which is 0 where it was not chosen; the router returns these
weights first (Llama 4). sorted: the mixture sorts the tokens by expert, as its router returns the
order, the tokens, the weights and the number of tokens for each expert (JetMoE)."""

Omitted = Literal["residual", "attn", "mixer", "mlp", "experts", "pooler", "unembed"]
"""What a description can leave out for a reason (`Architecture.undescribed`)."""

Scale: TypeAlias = float | str
"""A number, a config field, or an expression over config fields such as
`scale_depth / sqrt(num_hidden_layers)` or `mlp_multipliers[1]`. For the output of a branch, and for
what it is added to, it can also be the path of a parameter of the block, with one number or one for
each channel, the tanh of one (`tanh(gate)`), or a product of such factors and expressions
(`ls1 * gate`); there `layer_index` is the index of the layer."""
