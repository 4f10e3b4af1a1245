"""The flags that put large points into caches: `model.set_use_attn_result(True)`."""

from lensbridge.compat.transformer_lens.config import HookedTransformerConfig


class Switches:
    """Flags of `cfg`. Points that are named in a filter or a hook do not need them."""

    cfg: HookedTransformerConfig

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether caches have what each head writes, `attn.hook_result`."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether caches have the inputs of queries, keys and values, a copy for each head."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether caches have the input of the MLP, before its norm."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether caches have the input of attention, before its norm."""
        self.cfg.use_attn_in = use_attn_in

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Whether each query head has a key and a value of its own: `hook_k`, `hook_v` and their
        inputs then have the query heads' axis.
        """
        self.cfg.ungroup_grouped_query_attention = ungroup_grouped_query_attention
