"""A small decoder for configs without a HuggingFace class: no norms, no MLPs, ...

It is a HuggingFace model like any other (`PreTrainedModel`, generation with a cache), and has a
description of its modules like every other class.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lensbridge.compat.transformer_lens.activations import ACTIVATION_FN_DICT
from lensbridge.native.kv_cache import name_of_cache
from lensbridge.spec import MLP, Architecture, Attention, Block, Dims, Norms, SplitQKV
from lensbridge.tensors.layouts import repeat_kv

_CACHE = name_of_cache({field.name for field in fields(CausalLMOutputWithPast)}) or ""
"""The name of keys and values in the output."""


class PlainConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes and choices.

    Args:
        head_dim: width of a head; all heads together may be wider or narrower than the stream.
        num_key_value_heads: how many heads keys and values have; None: as many as queries.
        norm_eps: eps of LayerNorms; None for no norms.
        shortformer: add positions to the input of queries and keys instead of the stream.
        causal: whether a position attends only to itself and earlier ones.
        attn_scale: divides the scores.
        out_size: how many logits.
    """

    model_type = "lensbridge_plain"

    def __init__(
        self,
        vocab_size: int = 2,
        hidden_size: int = 4,
        num_hidden_layers: int = 1,
        num_attention_heads: int = 1,
        num_key_value_heads: int | None = None,
        head_dim: int = 4,
        intermediate_size: int | None = None,
        hidden_act: str | None = None,
        max_position_embeddings: int = 8,
        norm_eps: float | None = None,
        shortformer: bool = False,
        causal: bool = True,
        attn_scale: float = 1.0,
        out_size: int | None = None,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.norm_eps = norm_eps
        self.shortformer = shortformer
        self.causal = causal
        self.attn_scale = attn_scale
        self.out_size = vocab_size if out_size is None else out_size
        self.initializer_range = initializer_range
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


class PlacedLinear(nn.Linear):
    """A projection that can add positions to its input."""

    is_plain_linear = True

    def forward(self, input: Tensor, places: Tensor | None = None) -> Tensor:
        """The projection."""
        return super().forward(input if places is None else input + places)


class PlainAttention(nn.Module):
    """Multi-head attention."""

    def __init__(self, config: PlainConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        width = config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        projection = PlacedLinear if config.shortformer else nn.Linear
        self.q_proj = projection(config.hidden_size, width)
        self.k_proj = projection(config.hidden_size, shared)
        self.v_proj = nn.Linear(config.hidden_size, shared)
        self.o_proj = nn.Linear(width, config.hidden_size)

    def forward(
        self, hidden: Tensor, places: Tensor | None, hidden_from: Tensor, kept: Any
    ) -> Tensor:
        """What attention adds.

        Args:
            hidden: `[batch, pos, d_model]`
            places: positions to add to the input of queries and keys.
            hidden_from: `[batch, 1, query, key]`, true where a key is masked.
            kept: keys and values of earlier runs, or None.
        """
        beside = () if places is None else (places,)
        parts = self.q_proj(hidden, *beside), self.k_proj(hidden, *beside), self.v_proj(hidden)
        split = (-1, self.config.head_dim)
        q, k, v = (part.unflatten(-1, split).transpose(1, 2) for part in parts)
        if kept is not None:
            k, v = kept.update(k, v, self.layer)
        k, v = (repeat_kv(part, self.config.num_attention_heads, axis=1) for part in (k, v))
        scores = (q @ k.mT) / self.config.attn_scale
        pattern = F.softmax(scores.masked_fill(hidden_from, torch.finfo(scores.dtype).min), dim=-1)
        out: Tensor = self.o_proj((pattern @ v).transpose(1, 2).flatten(2))
        return out


class PlainMLP(nn.Module):
    """Up, activation, down."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.act = ACTIVATION_FN_DICT[str(config.hidden_act)]
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """What the MLP adds."""
        out: Tensor = self.down_proj(self.act(self.up_proj(hidden)))
        return out


class PlainBlock(nn.Module):
    """One layer: attention, and an MLP if the config has one."""

    def __init__(self, config: PlainConfig, layer: int) -> None:
        super().__init__()
        self.attn = PlainAttention(config, layer)
        self.mlp = None if config.intermediate_size is None else PlainMLP(config)
        if config.norm_eps is not None:
            self.attn_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
            if self.mlp is not None:
                self.mlp_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.normed = config.norm_eps is not None

    def forward(self, stream: Tensor, places: Tensor | None, unseen: Tensor, kept: Any) -> Tensor:
        """The stream after this layer."""
        read = self.attn_norm(stream) if self.normed else stream
        stream = stream + self.attn(read, places, unseen, kept)
        if self.mlp is None:
            return stream
        read = self.mlp_norm(stream) if self.normed else stream
        added: Tensor = stream + self.mlp(read)
        return added


class PlainForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A decoder with a head of `out_size` logits."""

    config_class = PlainConfig
    base_model_prefix = ""
    _supports_sdpa = False

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.pos_embed = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(PlainBlock(config, i) for i in range(config.num_hidden_layers))
        if config.norm_eps is not None:
            self.final_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.out_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embed

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        cache: Any = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and keys and values for the next run, under the name that transformers uses."""
        kept = past_key_values if cache is None else cache
        stream = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and kept is None:
            kept = DynamicCache(config=self.config)
        start = 0 if kept is None else kept.get_seq_length()
        places = torch.arange(start, start + stream.shape[1], device=stream.device)
        unseen = self._unseen(places, attention_mask)
        given = self.pos_embed(places[None] if position_ids is None else position_ids)
        stream = stream if self.config.shortformer else stream + given
        for layer in self.layers:
            beside = given if self.config.shortformer else None
            stream = layer(stream, beside, unseen, kept)
        hidden = self.final_norm(stream) if self.config.norm_eps is not None else stream
        logits = self.lm_head(hidden[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, **{_CACHE: kept})

    def _unseen(self, queries: Tensor, mask: Tensor | None) -> Tensor:
        """Which keys are masked for each query.

        Shapes: `[batch or 1, 1, query, key]`
        """
        keys = torch.arange(int(queries[-1]) + 1, device=queries.device)
        unseen = (keys > queries[:, None]) & self.config.causal
        unseen = unseen[None, None]
        return unseen if mask is None else unseen | (mask[:, None, None, : len(keys)] == 0)


def architecture(config: PlainConfig) -> Architecture:
    """How such a model lays out its modules."""
    normed, has_mlp = config.norm_eps is not None, config.intermediate_size is not None
    norms = Norms(
        pre_attn="attn_norm" if normed else None,
        pre_mlp="mlp_norm" if normed and has_mlp else None,
    )
    mlp = MLP("mlp", up="up_proj", down="down_proj") if has_mlp else None
    block = Block(norms=norms, attn=Attention("attn", qkv=SplitQKV(), out="o_proj"), mlp=mlp)
    return Architecture(
        name="plain decoder",
        dims=Dims(kv_heads="num_key_value_heads"),
        classes=("PlainForCausalLM",),
        embed="embed",
        pos_embed="pos_embed",
        blocks="layers",
        block=block,
        final_norm="final_norm" if normed else None,
        unembed="lm_head",
    )
