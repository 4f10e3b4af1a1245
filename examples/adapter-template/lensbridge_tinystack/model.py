"""Tinystack itself, the model that the adapter describes. Yours is in some other package."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class TinystackConfig(PretrainedConfig):
    """Sizes, under the model's own names. All differ, so that a mix-up of two is noticed."""

    model_type = "tinystack"

    def __init__(
        self,
        vocab_size: int = 97,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
        kv_heads: int = 2,
        neurons: int = 44,
        context: int = 48,
        activation: str = "silu",
        **others: Any,
    ) -> None:
        self.vocab_size, self.width, self.depth = vocab_size, width, depth
        self.heads, self.kv_heads = heads, kv_heads
        self.neurons, self.context, self.activation = neurons, context, activation
        others = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **others}
        super().__init__(**{"tie_word_embeddings": False, **others})


class Attention(nn.Module):
    """One projection gives, for each key head, its queries, its key and its value."""

    def __init__(self, config: TinystackConfig) -> None:
        super().__init__()
        self.groups, self.per_group = config.kv_heads, config.heads // config.kv_heads
        self.d_head = config.width // config.heads
        self.qkv = nn.Linear(config.width, (config.heads + 2 * config.kv_heads) * self.d_head)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Shapes: x `[b, p, m]`, mask `[b, 1, p, p]` -> `[b, p, m]`."""
        shares = self.qkv(x).unflatten(-1, (self.groups, self.per_group + 2, self.d_head))
        q = shares[..., : self.per_group, :].flatten(2, 3).transpose(1, 2)
        k, v = (shares[..., self.per_group + i, :].transpose(1, 2) for i in (0, 1))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.out(z.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """silu(gate) * up, then down."""

    def __init__(self, config: TinystackConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.neurons)
        self.up = nn.Linear(config.width, config.neurons)
        self.down = nn.Linear(config.neurons, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: `[b, p, m]` -> the same."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """The MLP reads the stream after attention was added."""

    def __init__(self, config: TinystackConfig) -> None:
        super().__init__()
        self.norm_in = nn.RMSNorm(config.width, eps=1e-6)
        self.mix = Attention(config)
        self.norm_mid = nn.RMSNorm(config.width, eps=1e-6)
        self.think = GatedMLP(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Shapes: x `[b, p, m]`, mask `[b, 1, p, p]` -> `[b, p, m]`."""
        x = x + self.mix(self.norm_in(x), mask)
        return x + self.think(self.norm_mid(x))


class Body(nn.Module):
    """The model without its head."""

    def __init__(self, config: TinystackConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)


class TinystackForCausalLM(PreTrainedModel, GenerationMixin):
    """The model with its head."""

    config_class = TinystackConfig
    base_model_prefix = "body"
    _supports_sdpa = True

    def __init__(self, config: TinystackConfig) -> None:
        super().__init__(config)
        self.body = Body(config)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.body.tokens

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Shapes: ids `[b, p]` -> logits `[b, p, v]`."""
        x = self.body.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length = x.shape[:2]
        if position_ids is None:
            position_ids = torch.arange(length, device=x.device)[None]
        x = x + self.body.positions(position_ids)
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        mask = mask.expand(batch, 1, length, length)
        if attention_mask is not None:
            seen = attention_mask[:, None, None, :].bool()
            mask = mask & seen | torch.eye(length, dtype=torch.bool, device=x.device)
        for layer in self.body.layers:
            x = layer(x, mask)
        return CausalLMOutput(logits=self.head(self.body.norm(x)))
