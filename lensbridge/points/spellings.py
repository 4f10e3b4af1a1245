"""Other names of points: those of other libraries and of older notes, and short ones."""

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
"""Another spelling of a full name -> the canonical name."""

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
"""Another short name -> the short name."""
