"""Models in the style of repositories with code of their own, for which there is no adapter."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

WIDTH, VOCAB, D_HEAD = 24, 53, 6


class StyledConfig(PretrainedConfig):
    """Sizes, of which some may differ from layer to layer."""

    model_type = "styled"

    def __init__(
        self,
        heads: tuple[int, ...] = (4, 4, 4),
        kv_heads: tuple[int, ...] = (2, 2, 2),
        neurons: tuple[int, ...] = (20, 20, 20),
        listed: bool = True,
        style: str = "",
        **kwargs: Any,
    ) -> None:
        self.num_hidden_layers, self.hidden_size, self.vocab_size = len(heads), WIDTH, VOCAB
        self.own = {"heads": list(heads), "kv_heads": list(kv_heads), "neurons": list(neurons)}
        if listed:
            self.num_query_heads, self.num_kv_heads = list(heads), list(kv_heads)
        self.style = style
        super().__init__(**kwargs)


class Mean(nn.Module):
    """An RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: `[..., m]` -> the same."""
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Mixing(nn.Module):
    """Attention from one projection, eager; it reads `[b, p, m]` or `[p, b, m]`."""

    def __init__(self, config: StyledConfig, i: int) -> None:
        super().__init__()
        self.h, self.g = config.own["heads"][i], config.own["kv_heads"][i]
        self.turns = config.style == "positions_first"
        self.qkv = nn.Linear(WIDTH, (self.h + 2 * self.g) * D_HEAD)
        self.out = nn.Linear(self.h * D_HEAD, WIDTH, bias=False)

    def forward(self, x: Tensor, mask: Tensor, turn: Tensor) -> Tensor:
        """Shapes: `[b, p, m]` or `[p, b, m]` -> the same."""
        whole = self.qkv(x).unflatten(-1, (-1, D_HEAD))
        order = (1, 2, 0, 3) if self.turns else (0, 2, 1, 3)
        q, k, v = whole.permute(order).split([self.h, self.g, self.g], 1)
        q, k = q * turn.cos() + halves(q) * turn.sin(), k * turn.cos() + halves(k) * turn.sin()
        k, v = (one.repeat_interleave(self.h // self.g, 1) for one in (k, v))
        pattern = F.softmax(q @ k.transpose(2, 3) / D_HEAD**0.5 + mask, dim=-1)
        z = (pattern @ v).permute((2, 0, 1, 3) if self.turns else (0, 2, 1, 3))
        return self.out(z.flatten(2))


class Sharing(nn.Module):
    """Attention with one key head, whose queries are in one row in the product with it."""

    def __init__(self, config: StyledConfig, i: int) -> None:
        super().__init__()
        self.h, self.by_heads = config.own["heads"][i], config.style == "rows_of_heads"
        self.qkv = nn.Linear(WIDTH, self.h * D_HEAD)
        self.kv = nn.Linear(WIDTH, 2 * D_HEAD)
        self.out = nn.Linear(self.h * D_HEAD, WIDTH, bias=False)

    def forward(self, x: Tensor, mask: Tensor, turn: Tensor) -> Tensor:
        """Shapes: `[b, p, m]` -> the same."""
        q, (k, v) = self.qkv(x).unflatten(-1, (self.h, D_HEAD)), self.kv(x).chunk(2, -1)
        q, mask = (q.transpose(1, 2), mask) if self.by_heads else (q, mask.transpose(1, 2))
        scores = torch.bmm(q.flatten(1, 2), k.mT).unflatten(1, q.shape[1:3]) / D_HEAD**0.5
        pattern = F.softmax(scores + mask, dim=-1)
        z = torch.bmm(pattern.flatten(1, 2), v).unflatten(1, q.shape[1:3])
        return self.out((z.transpose(1, 2) if self.by_heads else z).flatten(2))


def halves(x: Tensor) -> Tensor:
    """Shapes: `[..., d]` -> the same."""
    one, other = x.chunk(2, -1)
    return torch.cat([-other, one], -1)


class Gated(nn.Module):
    """An MLP from one projection for gate and up."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.both = nn.Linear(WIDTH, 2 * neurons, bias=False)
        self.down = nn.Linear(neurons, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: `[..., m]` -> the same."""
        gate, up = self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Choosing(nn.Module):
    """A router that returns the chosen experts and their weights, as that of DeepSeek V2."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: `[t, m]` -> indices and weights, `[t, 2]`."""
        weights, chosen = F.linear(x, self.weight).softmax(-1).topk(2, dim=-1)
        return chosen, weights


class Experts(nn.Module):
    """Experts in a list, of which two are chosen for each token, and one for all tokens."""

    def __init__(self, config: StyledConfig, neurons: int) -> None:
        super().__init__()
        own = config.style == "chosen"
        self.gate = Choosing(5) if own else nn.Linear(WIDTH, 5, bias=False)
        self.experts = nn.ModuleList(Gated(neurons) for _ in range(5))
        self.common = Gated(neurons)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: `[b, p, m]` -> the same."""
        tokens = x.flatten(0, 1)
        found = self.gate(tokens)
        chosen, weights = found if isinstance(found, tuple) else routed(found)
        total = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            rows, places = torch.where(chosen == e)
            if len(rows):
                total.index_add_(0, rows, expert(tokens[rows]) * weights[rows, places, None])
        return total.view_as(x) + self.common(x)


def routed(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes: `[t, e]` -> indices and weights of two experts, `[t, 2]`."""
    weights, chosen = logits.softmax(-1).topk(2, dim=-1)
    return chosen, weights / weights.sum(-1, keepdim=True)


class StyledLayer(nn.Module):
    """A pre-norm layer that returns a tuple."""

    def __init__(self, config: StyledConfig, i: int) -> None:
        super().__init__()
        self.one, self.other = Mean(), Mean()
        neurons, mixed = config.own["neurons"][i], config.style in ("routed", "chosen") and i > 0
        self.mixing = (Sharing if "rows" in config.style else Mixing)(config, i)
        self.ffn = Experts(config, neurons) if mixed else Gated(neurons)

    def forward(self, x: Tensor, mask: Tensor, turn: Tensor) -> tuple[Tensor]:
        """Shapes: as `Mixing`."""
        x = x + self.mixing(self.one(x), mask, turn)
        return (x + self.ffn(self.other(x)),)


class OwnHead(nn.Module):
    """A head that normalizes the rows of its weight in its first pass, as Baichuan 2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(VOCAB, WIDTH))
        self.first = True

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: `[b, p, m]` -> `[b, p, v]`."""
        if self.first:
            self.first, self.weight.data = False, F.normalize(self.weight)
        return F.linear(x, self.weight)


class StyledModel(PreTrainedModel):
    """The whole model; its style says how it ends, and which axis comes first."""

    config_class = StyledConfig
    base_model_prefix = "stack"

    def __init__(self, config: StyledConfig) -> None:
        super().__init__(config)
        self.stack = nn.ModuleDict({"words": nn.Embedding(VOCAB, WIDTH), "norm": Mean()})
        layers = (StyledLayer(config, i) for i in range(config.num_hidden_layers))
        self.stack["layers"] = nn.ModuleList(layers)
        if config.style != "tied":
            own = config.style == "own_head"
            self.lm_head = OwnHead() if own else nn.Linear(WIDTH, VOCAB, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.stack["words"]

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, if it is a module."""
        return getattr(self, "lm_head", None)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        """Shapes: `[b, p]` -> logits `[b, p, v]`."""
        x = self.stack["words"](input_ids) if inputs_embeds is None else inputs_embeds
        batch, count = x.shape[:2]
        mask = torch.full((count, count), -1e9).triu(1).expand(batch, 1, count, count)
        if attention_mask is not None:
            mask = mask.masked_fill(attention_mask[:, None, None, :] == 0, -1e9)
        speeds = 0.5 ** torch.arange(D_HEAD // 2).float()
        turn = (torch.arange(count)[:, None] * speeds).repeat(1, 2)
        turns = self.config.style == "positions_first"
        x = x.transpose(0, 1).contiguous() if turns else x
        for layer in self.stack["layers"]:
            x = layer(x, mask, turn)[0]
        x = self.stack["norm"](x.transpose(0, 1) if turns else x)
        tied = self.config.style == "tied"
        return CausalLMOutput(logits=x @ self.stack["words"].weight.T if tied else self.lm_head(x))


def styled(**settings: Any) -> StyledModel:
    """A model of that style, the same each time."""
    torch.manual_seed(0)
    model = StyledModel(StyledConfig(**settings)).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
    return model.requires_grad_(False)
