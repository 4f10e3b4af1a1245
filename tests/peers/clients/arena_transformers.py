"""Steps of an interpretability course (ARENA): transformers from scratch, and trained ones.

Knows nothing of lensbridge: python arena_transformers.py weights.pt results.pt
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedTransformer, utils
from transformer_lens import HookedTransformerConfig as Config

IDS = torch.tensor([[0, 5, 17, 8, 44, 9, 5, 17], [0, 31, 7, 7, 12, 40, 31, 7]])
MASKS = (".mask", ".IGNORE", ".rotary_sin", ".rotary_cos")
Found = dict[str, Any]


def model_of(weights: dict[str, Any], name: str) -> Any:
    model = HookedTransformer(Config(**weights[name]["cfg"]))
    model.load_state_dict(weights[name]["state"], strict=False)
    return model


# --- a transformer from scratch ----------------------------------------------------------------


class LayerNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.w + self.b


class Attention(nn.Module):
    def __init__(self, heads: int, model: int, head: int) -> None:
        super().__init__()
        for letter in "QKV":
            setattr(self, f"W_{letter}", nn.Parameter(torch.zeros(heads, model, head)))
            setattr(self, f"b_{letter}", nn.Parameter(torch.zeros(heads, head)))
        self.W_O = nn.Parameter(torch.zeros(heads, head, model))
        self.b_O = nn.Parameter(torch.zeros(model))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            torch.einsum("bpm,hmd->bphd", x, getattr(self, f"W_{one}")) + getattr(self, f"b_{one}")
            for one in "QKV"
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        future = torch.ones(scores.shape[-2:]).triu(1).bool()
        pattern = scores.masked_fill(future, -1e5).softmax(-1)
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        return torch.einsum("bqhd,hdm->bqm", z, self.W_O) + self.b_O


class MLP(nn.Module):
    def __init__(self, model: int, inner: int) -> None:
        super().__init__()
        for name, shape in {
            "W_in": (model, inner), "b_in": (inner,), "W_out": (inner, model), "b_out": (model,),
        }.items():  # fmt: skip
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return utils.gelu_new(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


class Embed(nn.Module):
    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, ids: Tensor) -> Tensor:
        table = getattr(self, self.name)
        return table[ids] if self.name == "W_E" else table[: ids.shape[1]].expand(*ids.shape, -1)


class Unembed(nn.Module):
    def __init__(self, model: int, vocabulary: int) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.zeros(model, vocabulary))
        self.b_U = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W_U + self.b_U


class Block(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.ln1, self.ln2 = LayerNorm(cfg.d_model), LayerNorm(cfg.d_model)
        self.attn = Attention(cfg.n_heads, cfg.d_model, cfg.d_head)
        self.mlp = MLP(cfg.d_model, cfg.d_mlp)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Transformer(nn.Module):
    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.embed = Embed("W_E", cfg.d_vocab, cfg.d_model)
        self.pos_embed = Embed("W_pos", cfg.n_ctx, cfg.d_model)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.ln_final = LayerNorm(cfg.d_model)
        self.unembed = Unembed(cfg.d_model, cfg.d_vocab)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.pos_embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.ln_final(x))


def same(mine: nn.Module, theirs: Any, *inputs: Tensor) -> dict[str, Tensor]:
    """A module of the student's with the weights of the model's, and what both give."""
    mine.load_state_dict(theirs.state_dict(), strict=False)
    given = mine(inputs[0])
    expected = theirs(*inputs)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    return {"given": given, "expected": expected}


def from_scratch(weights: Found) -> Found:
    model = model_of(weights, "names")
    cfg = model.cfg
    logits, cache = model.run_with_cache(IDS, return_type="logits")
    normed = cache["normalized", 0, "ln1"]
    x, mid = cache["resid_pre", 0], cache["resid_mid", 0]
    pairs: dict[str, tuple[nn.Module, Any, tuple[Tensor, ...]]] = {
        "ln_final": (LayerNorm(cfg.d_model), model.ln_final, (cache["resid_post", 1],)),
        "embed": (Embed("W_E", cfg.d_vocab, cfg.d_model), model.embed, (IDS,)),
        "pos_embed": (Embed("W_pos", cfg.n_ctx, cfg.d_model), model.pos_embed, (IDS,)),
        "attn": (
            Attention(cfg.n_heads, cfg.d_model, cfg.d_head), model.blocks[0].attn, (normed,) * 3
        ),
        "mlp": (MLP(cfg.d_model, cfg.d_mlp), model.blocks[0].mlp, (mid,)),
        "block": (Block(cfg), model.blocks[1], (x,)),
        "unembed": (Unembed(cfg.d_model, cfg.d_vocab), model.unembed, (mid,)),
        "whole": (Transformer(cfg), model, (IDS,)),
    }  # fmt: skip
    found: Found = {}
    for name, (mine, theirs, inputs) in pairs.items():
        for kind, one in same(mine, theirs, *inputs).items():
            found[f"{name}, {kind}"] = one
        state = theirs.state_dict()
        found[f"{name}, state"] = sorted(one for one in state if not f".{one}".endswith(MASKS))
    found["parameters"] = sorted((name, tuple(p.shape)) for name, p in model.named_parameters())
    found["shapes"] = [(name, tuple(one.shape)) for name, one in cache.items() if "ln" not in name]
    return {**found, "logits": logits, "loss": model(IDS, return_type="loss")}


# --- brackets, modular addition, a board game ---------------------------------------------------


def brackets(weights: Found) -> Found:
    """A classifier that attends in both directions, with padding masked by permanent hooks."""
    model = model_of(weights, "brackets")
    pad = 1

    def keep(tokens: Tensor, hook: Any) -> None:
        hook.ctx["padding"] = (tokens == pad)[:, None, None, :]

    def apply(scores: Tensor, hook: Any) -> None:
        scores.masked_fill_(model.hook_dict["hook_tokens"].ctx["padding"], -1e5)
        if hook.layer() == model.cfg.n_layers - 1:
            model.hook_dict["hook_tokens"].clear_context()

    for name, point in model.hook_dict.items():
        if name == "hook_tokens":
            point.add_perma_hook(keep)
        elif name.endswith("attn_scores"):
            point.add_perma_hook(apply)
    ids = torch.tensor([[0, 3, 4, 3, 4, 2, 1, 1], [0, 3, 3, 4, 4, 4, 3, 2]])
    logits, cache = model.run_with_cache(ids)
    found = {"logits": logits[:, 0].softmax(-1), "empty": dict(model.hook_dict["hook_tokens"].ctx)}
    parts = [cache["embed"] + cache["pos_embed"]]
    for layer in range(model.cfg.n_layers):
        parts += [*cache["result", layer].unbind(2), cache["mlp_out", layer]]
    parts.append(sum(block.attn.b_O for block in model.blocks).expand_as(parts[0]))
    found["parts"] = torch.stack(parts)
    found["sum"] = found["parts"].sum(0) - cache["resid_post", -1]
    for name in ("blocks.2.ln1.hook_normalized", "ln_final.hook_scale", "blocks.0.ln2.hook_scale"):
        found[name] = cache[name]
    w_out = model.blocks[1].mlp.W_out[:, :] @ model.W_U
    found["neurons"] = cache["post", 1][..., None] * w_out
    found["head"] = model.W_E @ model.W_V[1, 0] @ model.W_O[1, 0]
    query = model.run_with_hooks(
        ids, return_type=None, fwd_hooks=[("blocks.0.attn.hook_pattern", lambda p, hook: None)]
    )
    return {**found, "none": query}


def modular_addition(weights: Found) -> Found:
    """Fourier components of the weights and activations of a model without norms; training."""
    model = model_of(weights, "addition")
    p = model.cfg.d_vocab_out
    ids = torch.tensor([[a, b, p] for a in range(p) for b in range(p)])
    logits, cache = model.run_with_cache(ids)
    angles = 2 * torch.pi * torch.arange(p) / p
    waves = [torch.ones(p) / p**0.5]
    for i in range(1, p // 2 + 1):
        waves += [torch.cos(i * angles), torch.sin(i * angles)]
    basis = torch.stack([one / one.norm() for one in waves])
    w_e, attn = model.embed.W_E[:-1], model.blocks[0].attn
    found = {
        "logits": logits[:, -1], "frequencies": (basis @ w_e).pow(2).sum(1),
        "neurons": cache["post", 0, "mlp"][:, -1], "pattern": cache["pattern", 0][:, :, 2],
        "effective": w_e @ attn.W_V @ attn.W_O @ model.blocks[0].mlp.W_in,
        "logit of neurons": model.blocks[0].mlp.W_out @ model.unembed.W_U,
        "final": model.W_pos[-1] @ model.W_Q[0, 1],
    }  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1.0, betas=(0.9, 0.98))
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        targets = (ids[:, 0] + ids[:, 1]) % p
        loss = F.cross_entropy(model(ids)[:, -1], targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {**found, "losses": torch.stack(losses), "trained": model.W_E.detach().clone()}


def board_game(weights: Found) -> Found:
    """Probes, neurons and edits of the residual stream of a model whose norms are folded."""
    model = model_of(weights, "board")
    logits, cache = model.run_with_cache(IDS)
    probe = torch.randn(model.cfg.d_model, 3, generator=torch.Generator().manual_seed(0))
    found = {"logits": logits, "read": cache["resid_post", 1] @ probe}
    for mode in ("attn", "mlp"):
        parts, labels = cache.decompose_resid(
            apply_ln=False, layer=2, pos_slice=3, mode=mode, incl_embeds=False, return_labels=True
        )
        found.update({f"{mode} parts": parts @ probe, f"{mode} labels": labels})
    found["neurons"] = cache.stack_neuron_results(layer=1, pos_slice=-1)
    found["stacked"] = cache.stack_activation("attn_out")
    w_in = model.blocks[1].mlp.W_in[:, 7]
    found["neuron reads"] = (w_in / w_in.norm()) @ probe
    found["neuron writes"] = model.W_out[1, 7] @ model.W_U
    direction = probe[:, 0] / probe[:, 0].norm()

    def flip(resid: Tensor, hook: Any) -> Tensor:
        coefficient = resid[0, 4] @ direction
        resid[0, 4] -= 3 * coefficient * direction
        return resid

    for layer in range(2):
        pair = (utils.get_act_name("resid_post", layer), flip)
        found[f"flipped {layer}"] = model.run_with_hooks(IDS, fwd_hooks=[pair])
    model.add_hook("blocks.0.mlp.hook_post", lambda value, hook: value * (value > 0.1))
    found["cut"], found["saved"] = model(IDS), model.run_with_cache(IDS)[1]["post", 0]
    model.reset_hooks()
    spectrum = torch.linalg.svdvals(model.W_out[1] @ model.W_U)
    return {**found, "spectrum": spectrum, "after": model(IDS)}


def results(weights: Found) -> Found:
    found: Found = {}
    for chapter, run in CHAPTERS.items():
        for name, one in run(weights).items():
            value = one.detach().clone() if isinstance(one, Tensor) else one
            found[f"{chapter}: {name}"] = value
    return found


CHAPTERS = {
    "scratch": from_scratch,
    "brackets": brackets,
    "addition": modular_addition,
    "board": board_game,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(results(torch.load(sys.argv[1])), sys.argv[2])
