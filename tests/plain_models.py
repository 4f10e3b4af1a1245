"""Language models of plain PyTorch, as people write them: no transformers class, no tokenizer.

`NanoGPT` has one projection for q, k and v, tied embeddings, and returns `(logits, loss)`: without
targets the logits of the last position alone. `SmallLlama` has rotary embeddings, grouped keys and
a gated MLP, and returns a tensor. `Lecture` has a module for each head, layers in an
`nn.Sequential` and no config; its output is a dictionary. `FromScratch` has bare parameters where
others have modules. `Torch` is made of PyTorch's own attention.
"""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 61


def seeded(model: nn.Module) -> nn.Module:
    """The same model with weights of order one, in eval mode."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 if parameter.ndim > 1 else parameter + 0.2 * noise)
    return model.eval()


# --- one projection, learned positions, tied head ------------------------------------------------


@dataclass
class NanoConfig:
    """Sizes of a `NanoGPT`."""

    block_size: int = 16
    vocab_size: int = VOCABULARY
    n_layer: int = 2
    n_head: int = 4
    n_embd: int = 24
    dropout: float = 0.1
    bias: bool = True


class NanoNorm(nn.Module):
    """LayerNorm whose bias may be missing; its eps is a number in the code."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)


class CausalSelfAttention(nn.Module):
    """Attention from one projection, with the fused kernel or by hand."""

    def __init__(self, config: NanoConfig, flash: bool) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head, self.n_embd, self.dropout = config.n_head, config.n_embd, config.dropout
        self.flash = flash
        size = config.block_size
        self.register_buffer("bias", torch.ones(size, size).tril().view(1, 1, size, size))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (
            one.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for one in (q, k, v)
        )
        if self.flash:
            p = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=p, is_causal=True)
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
            att = self.attn_dropout(F.softmax(att, dim=-1))
            y = att @ v
        y = y.transpose(1, 2).contiguous().view(b, t, c)
        return self.resid_dropout(self.c_proj(y))


class NanoMLP(nn.Module):
    """Up, GELU, down."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU()
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class NanoBlock(nn.Module):
    """Norm, attention, norm, MLP."""

    def __init__(self, config: NanoConfig, flash: bool) -> None:
        super().__init__()
        self.ln_1 = NanoNorm(config.n_embd, config.bias)
        self.attn = CausalSelfAttention(config, flash)
        self.ln_2 = NanoNorm(config.n_embd, config.bias)
        self.mlp = NanoMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """The whole model."""

    def __init__(self, config: Any, flash: bool = True) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList([NanoBlock(config, flash) for _ in range(config.n_layer)]),
                "ln_f": NanoNorm(config.n_embd, config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        t = idx.size(1)
        assert t <= self.config.block_size
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.transformer["drop"](self.transformer["wte"](idx) + self.transformer["wpe"](pos))
        for block in self.transformer["h"]:
            x = block(x)
        x = self.transformer["ln_f"](x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)
        return logits, loss

    @torch.no_grad()
    def generate(self, idx: Tensor, max_new_tokens: int) -> Tensor:
        """Continue greedily."""
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.config.block_size :])
            idx = torch.cat([idx, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        return idx


def nano(flash: bool = True, config: Any = None) -> nn.Module:
    """A `NanoGPT` with weights of order one."""
    return seeded(NanoGPT(config or NanoConfig(), flash))


# --- rotary, grouped keys, gated MLP -------------------------------------------------------------


class RootMeanSquare(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate pairs of channels, written as complex numbers.

    Shapes: x `[b, p, h, d]`, turns `[p, d / 2]` complex.
    """
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns[None, :, None]).flatten(3).type_as(x)


class GroupedAttention(nn.Module):
    """Attention with fewer keys than queries."""

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.heads, self.groups, self.width = (
            args.n_heads,
            args.n_kv_heads,
            args.dim // args.n_heads,
        )
        self.wq = nn.Linear(args.dim, args.n_heads * self.width, bias=False)
        self.wk = nn.Linear(args.dim, args.n_kv_heads * self.width, bias=False)
        self.wv = nn.Linear(args.dim, args.n_kv_heads * self.width, bias=False)
        self.wo = nn.Linear(args.n_heads * self.width, args.dim, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = turned(self.wq(x).view(b, t, self.heads, self.width), turns)
        k = turned(self.wk(x).view(b, t, self.groups, self.width), turns)
        v = self.wv(x).view(b, t, self.groups, self.width)
        repeats = self.heads // self.groups
        k, v = (one.repeat_interleave(repeats, dim=2).transpose(1, 2) for one in (k, v))
        z = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
        return self.wo(z.transpose(1, 2).contiguous().view(b, t, -1))


class GatedFeedForward(nn.Module):
    """silu(w1 x) * w3 x, then w2."""

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.w1 = nn.Linear(args.dim, args.hidden, bias=False)
        self.w2 = nn.Linear(args.hidden, args.dim, bias=False)
        self.w3 = nn.Linear(args.dim, args.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class GroupedBlock(nn.Module):
    """Norm, attention, norm, MLP."""

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.attention, self.feed_forward = GroupedAttention(args), GatedFeedForward(args)
        self.attention_norm = RootMeanSquare(args.dim, args.norm_eps)
        self.ffn_norm = RootMeanSquare(args.dim, args.norm_eps)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x), turns)
        return h + self.feed_forward(self.ffn_norm(h))


class SmallLlama(nn.Module):
    """The whole model; its config is called `params`."""

    def __init__(self, params: SimpleNamespace) -> None:
        super().__init__()
        self.params = params
        self.tok_embeddings = nn.Embedding(params.vocab_size, params.dim)
        self.layers = nn.ModuleList([GroupedBlock(params) for _ in range(params.n_layers)])
        self.norm = RootMeanSquare(params.dim, params.norm_eps)
        self.output = nn.Linear(params.dim, params.vocab_size, bias=False)
        width = params.dim // params.n_heads
        speeds = 1.0 / 100.0 ** (torch.arange(0, width, 2).float() / width)
        angles = torch.outer(torch.arange(params.max_seq_len).float(), speeds)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        for layer in self.layers:
            h = layer(h, self.turns[: tokens.shape[1]])
        return self.output(self.norm(h))


def small_llama() -> nn.Module:
    """A `SmallLlama` with weights of order one."""
    sizes = {"dim": 24, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "hidden": 40}
    more = {"vocab_size": VOCABULARY, "norm_eps": 1e-6, "max_seq_len": 32}
    return seeded(SmallLlama(SimpleNamespace(**sizes, **more)))


# --- a module for each head, no config -----------------------------------------------------------


class Head(nn.Module):
    """One head."""

    def __init__(self, width: int, head_size: int, context: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, head_size, bias=False)
        self.query = nn.Linear(width, head_size, bias=False)
        self.value = nn.Linear(width, head_size, bias=False)
        self.register_buffer("tril", torch.ones(context, context).tril())

    def forward(self, x: Tensor) -> Tensor:
        t = x.shape[1]
        weights = self.query(x) @ self.key(x).transpose(-2, -1) * self.key.out_features**-0.5
        weights = weights.masked_fill(self.tril[:t, :t] == 0, float("-inf"))
        return F.softmax(weights, dim=-1) @ self.value(x)


class Heads(nn.Module):
    """Heads side by side."""

    def __init__(self, width: int, count: int, context: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head(width, width // count, context) for _ in range(count)])
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class FeedForward(nn.Module):
    """Up, ReLU, down in a sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class LectureBlock(nn.Module):
    """Norm, attention, norm, MLP."""

    def __init__(self, width: int, count: int, context: int) -> None:
        super().__init__()
        self.sa, self.ffwd = Heads(width, count, context), FeedForward(width)
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class Lecture(nn.Module):
    """The whole model; its argument is `x`, and its output a dictionary."""

    def __init__(self, width: int = 20, count: int = 4, depth: int = 2, context: int = 16) -> None:
        super().__init__()
        self.token_embedding_table = nn.Embedding(VOCABULARY, width)
        self.position_embedding_table = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[LectureBlock(width, count, context) for _ in range(depth)])
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        positions = torch.arange(x.shape[1], device=x.device)
        h = self.token_embedding_table(x) + self.position_embedding_table(positions)
        return {"hidden": (h := self.blocks(h)), "scores": self.lm_head(self.ln_f(h))}


def lecture() -> nn.Module:
    """A `Lecture` with weights of order one."""
    return seeded(Lecture())


# --- bare parameters in the place of modules -----------------------------------------------------


@dataclass
class ScratchConfig:
    """Sizes of a `FromScratch`."""

    d_model: int = 20
    d_vocab: int = VOCABULARY
    n_ctx: int = 16
    d_head: int = 5
    n_heads: int = 4
    d_mlp: int = 36
    n_layers: int = 2
    layer_norm_eps: float = 1e-5


class ScratchNorm(nn.Module):
    """LayerNorm with a gain `w` and a bias `b`."""

    def __init__(self, cfg: ScratchConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.w, self.b = (
            nn.Parameter(torch.ones(cfg.d_model)),
            nn.Parameter(torch.zeros(cfg.d_model)),
        )

    def forward(self, residual: Tensor) -> Tensor:
        centered = residual - residual.mean(-1, keepdim=True)
        variance = centered.pow(2).mean(-1, keepdim=True)
        return centered / (variance + self.cfg.layer_norm_eps).sqrt() * self.w + self.b


class ScratchEmbed(nn.Module):
    """Rows of a parameter, by token or by position."""

    def __init__(self, rows: int, width: int, by_position: bool) -> None:
        super().__init__()
        self.W, self.by_position = nn.Parameter(torch.empty(rows, width)), by_position

    def forward(self, tokens: Tensor) -> Tensor:
        if self.by_position:
            return self.W[: tokens.shape[1]].expand(len(tokens), -1, -1)
        return self.W[tokens]


class ScratchAttention(nn.Module):
    """Attention in einsums."""

    def __init__(self, cfg: ScratchConfig) -> None:
        super().__init__()
        self.cfg = cfg
        for letter in "QKV":
            weight = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_model, cfg.d_head))
            setattr(self, f"W_{letter}", weight)
        self.W_O = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_head, cfg.d_model))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            torch.einsum("bpm,hmd->bphd", x, getattr(self, f"W_{letter}")) for letter in "QKV"
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / self.cfg.d_head**0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        pattern = scores.masked_fill(later, -1e5).softmax(-1)
        return torch.einsum("bhqk,bkhd,hdm->bqm", pattern, v, self.W_O)


class ScratchMLP(nn.Module):
    """Up, GELU, down."""

    def __init__(self, cfg: ScratchConfig) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp))
        self.W_out = nn.Parameter(torch.empty(cfg.d_mlp, cfg.d_model))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x @ self.W_in) @ self.W_out


class ScratchBlock(nn.Module):
    """Norm, attention, norm, MLP."""

    def __init__(self, cfg: ScratchConfig) -> None:
        super().__init__()
        self.ln1, self.attn = ScratchNorm(cfg), ScratchAttention(cfg)
        self.ln2, self.mlp = ScratchNorm(cfg), ScratchMLP(cfg)

    def forward(self, resid_pre: Tensor) -> Tensor:
        resid_mid = self.attn(self.ln1(resid_pre)) + resid_pre
        return self.mlp(self.ln2(resid_mid)) + resid_mid


class FromScratch(nn.Module):
    """The whole model; its config is called `cfg`."""

    def __init__(self, cfg: ScratchConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = ScratchEmbed(cfg.d_vocab, cfg.d_model, by_position=False)
        self.pos_embed = ScratchEmbed(cfg.n_ctx, cfg.d_model, by_position=True)
        self.blocks = nn.ModuleList([ScratchBlock(cfg) for _ in range(cfg.n_layers)])
        self.ln_final = ScratchNorm(cfg)
        self.W_U = nn.Parameter(torch.empty(cfg.d_model, cfg.d_vocab))

    def forward(self, tokens: Tensor) -> Tensor:
        residual = self.embed(tokens) + self.pos_embed(tokens)
        for block in self.blocks:
            residual = block(residual)
        return self.ln_final(residual) @ self.W_U


def from_scratch() -> nn.Module:
    """A `FromScratch` with weights of order one."""
    return seeded(FromScratch(ScratchConfig()))


# --- PyTorch's own attention ---------------------------------------------------------------------


class TorchBlock(nn.Module):
    """Norm, attention, norm, MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 50), nn.GELU(), nn.Linear(50, width))

    def forward(self, x: Tensor) -> Tensor:
        given, length = self.norm1(x), x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        attended, _ = self.attention(given, given, given, attn_mask=later, need_weights=False)
        x = x + attended
        return x + self.mlp(self.norm2(x))


class Torch(nn.Module):
    """The whole model."""

    def __init__(self, width: int = 24, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(16, width)
        self.blocks = nn.ModuleList([TorchBlock(width, heads) for _ in range(depth)])
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def of_torch() -> nn.Module:
    """A `Torch` with weights of order one."""
    return seeded(Torch())
