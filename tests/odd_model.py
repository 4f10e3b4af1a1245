"""A model whose names say nothing, so that only its behaviour can tell what is what."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

WIDTH, FLOORS, VOICES, CHOIRS, NARROW, WIDE = 32, 3, 4, 2, 6, 44


class OddConfig(PretrainedConfig):
    """Sizes under names that nobody else uses."""

    model_type = "odd"

    def __init__(self, damping: float = 0.6, twist: str = "", **kwargs: Any) -> None:
        self.breadth, self.floors, self.voices = WIDTH, FLOORS, VOICES
        self.damping, self.twist = damping, twist
        self.vocab_size = 53
        super().__init__(**kwargs)


class Pebble(nn.Module):
    """An RMS norm with a gain of 1 + weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: `[b, p, m]` -> the same."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


class Lake(nn.Module):
    """Attention from one projection: per key head its queries, its key, its value."""

    def __init__(self) -> None:
        super().__init__()
        self.down_gate = nn.Linear(WIDTH, (VOICES + 2 * CHOIRS) * NARROW)
        self.mlp = nn.Linear(VOICES * NARROW, WIDTH)

    def forward(self, x: Tensor, mask: Tensor, turn: Tensor) -> Tensor:
        """Shapes: `[b, p, m]` -> the same."""
        shares = self.down_gate(x).unflatten(-1, (CHOIRS, VOICES // CHOIRS + 2, NARROW))
        q = rotated(shares[..., :-2, :].flatten(2, 3).transpose(1, 2), turn)
        k = rotated(shares[..., -2, :].transpose(1, 2), turn)
        v = shares[..., -1, :].transpose(1, 2)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return self.mlp(z.transpose(1, 2).flatten(2))


class Hill(nn.Module):
    """A gated MLP, named as if it were attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDE)
        self.key = nn.Linear(WIDTH, WIDE)
        self.output = nn.Linear(WIDE, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: `[b, p, m]` -> the same."""
        return self.output(F.silu(self.key(x)) * self.query(x))


class Floor(nn.Module):
    """One layer; the attention's output is multiplied before it is added."""

    def __init__(self, config: OddConfig) -> None:
        super().__init__()
        self.config = config
        self.b = Pebble()
        self.a = Pebble()
        self.norm = Hill()
        self.dropout = Lake()

    def forward(self, x: Tensor, mask: Tensor, turn: Tensor) -> Tensor:
        """Shapes: `[b, p, m]` -> the same."""
        x = x + self.config.damping * self.dropout(self.b(x), mask, turn)
        if self.config.twist == "sum":
            return x * torch.tanh(self.norm(self.a(x)))
        return x + self.norm(self.a(x))


class OddModel(PreTrainedModel):
    """The whole model."""

    config_class = OddConfig
    base_model_prefix = "none"
    _supports_sdpa = True

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.head = nn.Embedding(config.vocab_size, WIDTH)
        self.experts = nn.ModuleList(Floor(config) for _ in range(FLOORS))
        self.wpe = Pebble()
        self.embed = nn.Linear(WIDTH, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.head

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.embed

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Shapes: `[b, p]` -> logits `[b, p, v]`."""
        x = self.head(input_ids) if inputs_embeds is None else inputs_embeds
        batch, positions = x.shape[:2]
        mask = torch.ones(positions, positions, dtype=torch.bool, device=x.device).tril()
        mask = mask.expand(batch, 1, positions, positions)
        if attention_mask is not None:
            seen = attention_mask[:, None, None, :].bool()
            mask = mask & seen | torch.eye(positions, dtype=torch.bool, device=x.device)
        for floor in self.experts:
            x = floor(x, mask, _turns(positions, x))
            if self.config.twist == "chain":
                x = 1.5 * x
        return CausalLMOutput(logits=self.embed(self.wpe(x)))


def _turns(positions: int, like: Tensor) -> Tensor:
    speeds = 0.5 ** torch.arange(NARROW // 2, dtype=torch.float32, device=like.device)
    return torch.arange(positions, device=like.device)[:, None] * speeds


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Shapes: x `[b, h, p, d]`, turn `[p, d / 2]`."""
    one, other = x.chunk(2, -1)
    cos, sin = turn.cos().to(x), turn.sin().to(x)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)
