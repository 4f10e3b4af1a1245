"""Steps of an interpretability course (ARENA): induction heads and indirect objects.

Knows nothing of lensbridge: python arena_circuits.py weights.pt results.pt
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import ActivationCache, FactoredMatrix, HookedTransformer, patching, utils
from transformer_lens import HookedTransformerConfig as Config

IDS = torch.tensor([[0, 5, 17, 8, 44, 9, 5, 17], [0, 31, 7, 7, 12, 40, 31, 7]])
CORRUPT = torch.tensor([[0, 9, 17, 8, 44, 5, 9, 17], [0, 31, 12, 7, 50, 40, 31, 12]])
ANSWERS = torch.tensor([[3, 20], [14, 2]])
Found = dict[str, Any]


def model_of(weights: dict[str, Any], name: str) -> Any:
    model = HookedTransformer(Config(**weights[name]["cfg"]))
    model.load_state_dict(weights[name]["state"], strict=False)
    return model


# --- induction heads ---------------------------------------------------------------------------


def patterns(model: Any, cache: Any) -> Found:
    q, k = cache["q", 0], cache["k", 0]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / model.cfg.d_head**0.5
    future = torch.triu(torch.ones(scores.shape[-2:]), 1).bool()
    found = {"by hand": scores.masked_fill(future, -1e9).softmax(-1)}
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "current": lambda p: p.diagonal(0, -2, -1).mean((0, 2)),
        "previous": lambda p: p.diagonal(-1, -2, -1).mean((0, 2)),
        "induction": lambda p: p.diagonal(1 - 4, -2, -1).mean((0, 2)),
    }
    for kind, of in kinds.items():
        store = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)

        def keep(pattern: Tensor, hook: Any, of: Any = of, store: Tensor = store) -> None:
            store[hook.layer()] = of(pattern)

        def named(name: str) -> bool:
            return name.endswith("pattern")

        model.run_with_hooks(IDS, return_type=None, fwd_hooks=[(named, keep)])
        found[kind] = store
    return found


def ablations(model: Any) -> Found:
    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())

    def zero(z: Tensor, hook: Any, head: int) -> Tensor:
        z[:, :, head, :] = 0.0
        return z

    def mean(z: Tensor, hook: Any, head: int) -> None:
        z[:, :, head, :] = z[:, :, head, :].mean(0)

    found = {"per token": model.loss_fn(model(IDS), IDS, per_token=True)}
    for kind in (zero, mean):
        scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
        for layer in range(model.cfg.n_layers):
            for head in range(model.cfg.n_heads):
                model.reset_hooks()
                pair = (utils.get_act_name("z", layer), partial(kind, head=head))
                scores[layer, head] = loss(model.run_with_hooks(IDS, fwd_hooks=[pair]))
        found[kind.__name__] = scores - loss(model(IDS))
    return found


def attributions(model: Any, cache: Any) -> Found:
    """Every path's share in the logit of the next token, of a model without norms."""
    directions = model.W_U[:, IDS[:, 1:]]
    parts = [cache["embed"].unsqueeze(2), cache["result", 0], cache["result", 1]]
    shares = torch.einsum("mbp,bpnm->bpn", directions, torch.cat(parts, 2)[:, :-1])
    logits = model(IDS)[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0]
    bias = sum(block.attn.b_O for block in model.blocks)
    rest = torch.einsum("mbp,m->bp", directions, bias) + model.b_U[IDS[:, 1:]]
    return {"shares": shares, "sum": shares.sum(-1) + rest, "logits": logits}


def circuits(model: Any, cache: Any) -> Found:
    """The circuit from weights: OV copies, QK looks back, and heads read each other."""
    ov = FactoredMatrix(model.W_V[1, 2], model.W_O[1, 2])
    whole = model.W_E @ ov @ model.W_U
    positions = model.W_pos @ model.W_Q[0, 1] @ model.W_K[0, 1].T @ model.W_pos.T
    pattern = (positions / model.cfg.d_head**0.5).tril().softmax(-1)
    two = torch.cat(list(model.W_V[1, :2]), -1), torch.cat(list(model.W_O[1, :2]), 0)
    both = FactoredMatrix(*two)
    later = model.W_Q[1, 3] @ model.W_K[1, 3].T

    def score(first: Tensor, second: Tensor) -> Tensor:
        return (first @ second).norm() / (first.norm() * second.norm())

    heads = range(model.cfg.n_heads)
    pairs = [(model.OV[0, one].AB, model.QK[1, other].AB.T) for one in heads for other in heads]
    composed = torch.stack([score(first, second) for first, second in pairs])
    u, s, v = whole.svd()
    streams = [cache["embed"][0][None], cache["pos_embed"][0][None]]
    keys = torch.cat([*streams, cache["result", 0][0].transpose(0, 1)]) @ model.W_K[1, 3]
    return {
        "OV": whole.AB, "corner": whole.get_corner(), "copies": whole.AB.argmax(0).tolist(),
        "values": s[: model.cfg.d_head], "again": u @ torch.diag(s) @ v.T,
        "eigenvalues": ov.eigenvalues.abs().sort().values, "norm": ov.norm(), "both": both.AB,
        "transposed": ov.T.AB, "row": whole[3].AB, "times": (ov @ ov).AB, "pattern": pattern,
        "composed": composed, "all": torch.as_tensor(model.all_composition_scores("K")),
        "later": later, "keys": keys,
    }  # fmt: skip


def induction(weights: Found) -> Found:
    model = model_of(weights, "attention only")
    logits, cache = model.run_with_cache(IDS)
    one = model.run_with_cache(IDS[:1], remove_batch_dim=True)[1]
    found = {"logits": logits, "pattern": one["pattern", 1]}
    steps = {
        "patterns": patterns(model, cache), "ablations": ablations(model),
        "attributions": attributions(model, cache), "circuits": circuits(model, cache),
    }  # fmt: skip
    for step, values in steps.items():
        found.update({f"{step}, {name}": one for name, one in values.items()})
    return found


# --- indirect objects --------------------------------------------------------------------------


def difference(logits: Tensor, per_prompt: bool = False) -> Tensor:
    both = logits[:, -1].gather(-1, ANSWERS)
    each = both[:, 0] - both[:, 1]
    return each if per_prompt else each.mean()


def decompositions(model: Any, cache: Any) -> Found:
    directions = model.tokens_to_residual_directions(ANSWERS)
    along = directions[:, 0] - directions[:, 1]

    def to_difference(stack: Tensor) -> Tensor:
        scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=-1)
        return torch.einsum("...bm,bm->...", scaled, along) / len(IDS)

    accumulated, labels = cache.accumulated_resid(
        layer=-1, incl_mid=True, pos_slice=-1, return_labels=True
    )
    layers, names = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    heads = cache.stack_head_results(layer=-1, pos_slice=-1)
    right, wrong = ANSWERS.unbind(1)
    attributed = cache.logit_attrs(heads, right, pos_slice=-1, incorrect_tokens=wrong)
    return {
        "accumulated": to_difference(accumulated), "labels": labels,
        "layers": to_difference(layers), "names": names, "attributed": attributed,
        "heads": to_difference(heads),
        "last": cache["resid_post", -1][:, -1], "from logits": difference(model(IDS), True),
    }  # fmt: skip


def patches(model: Any, clean: Any) -> Found:
    ways = {
        "resid": patching.get_act_patch_resid_pre, "blocks": patching.get_act_patch_block_every,
        "heads": patching.get_act_patch_attn_head_out_all_pos,
        "by position": patching.get_act_patch_attn_head_out_by_pos,
        "parts": patching.get_act_patch_attn_head_all_pos_every,
        "patterns": patching.get_act_patch_attn_head_by_pos_every,
        "MLP": patching.get_act_patch_mlp_out,
    }  # fmt: skip
    return {name: way(model, CORRUPT, clean, difference) for name, way in ways.items()}


def paths(model: Any, clean: ActivationCache) -> Found:
    """Path patching from each head to the end and to the values of later heads."""
    corrupt = model.run_with_cache(CORRUPT, names_filter=lambda name: name.endswith("z"))[1]
    cfg = model.cfg

    def frozen(z: Tensor, hook: Any, layer: int, head: int) -> Tensor:
        z[...] = clean[hook.name][...]
        if hook.layer() == layer:
            z[:, :, head] = corrupt[hook.name][:, :, head]
        return z

    def put(value: Tensor, hook: Any, other: Any) -> Tensor:
        value[:, :, 0] = other[hook.name][:, :, 0]
        return value

    end = utils.get_act_name("resid_post", cfg.n_layers - 1)
    values = utils.get_act_name("v", cfg.n_layers - 1)
    to_end, to_values = (torch.zeros(cfg.n_layers, cfg.n_heads) for _ in range(2))
    for layer in range(cfg.n_layers):
        for head in range(cfg.n_heads):
            model.reset_hooks()
            model.add_hook(lambda n: n.endswith("z"), partial(frozen, layer=layer, head=head))
            kept = model.run_with_cache(IDS, names_filter=lambda n: n in (end, values))[1]
            model.reset_hooks()
            logits = model.unembed(model.ln_final(kept[end]))
            to_end[layer, head] = difference(logits)
            pair = (values, partial(put, other=kept))
            to_values[layer, head] = difference(model.run_with_hooks(IDS, fwd_hooks=[pair]))
    return {"end": to_end, "values": to_values}


def mean_ablated(model: Any) -> Found:
    """A circuit of some heads, where the others give their mean: hooks that stay."""
    means = model.run_with_cache(
        CORRUPT, return_type=None, names_filter=lambda name: name.endswith("z")
    )[1]

    def ablate(z: Tensor, hook: Any) -> Tensor:
        other = means[hook.name].mean(0)
        for head in range(z.shape[2]):
            if (hook.layer() + head) % 2:
                z[:, :, head] = other[:, head]
        return z

    model.reset_hooks(including_permanent=True)
    model.add_hook(lambda name: name.endswith("z"), ablate, is_permanent=True)
    found = {"ablated": model(IDS)}
    model.reset_hooks()
    found["stays"] = model(IDS)
    model.reset_hooks(including_permanent=True)
    return {**found, "off": model(IDS)}


def indirect_objects(weights: Found) -> Found:
    model = model_of(weights, "objects")
    model.set_use_attn_result(True)
    _, clean = model.run_with_cache(IDS)
    found: Found = {}
    steps = {
        "decompositions": decompositions(model, clean), "patches": patches(model, clean),
        "paths": paths(model, clean), "means": mean_ablated(model),
    }  # fmt: skip
    for step, values in steps.items():
        found.update({f"{step}, {name}": one for name, one in values.items()})
    return found


def results(weights: Found) -> Found:
    found: Found = {}
    for chapter, run in CHAPTERS.items():
        for name, one in run(weights).items():
            value = one.detach().clone() if isinstance(one, Tensor) else one
            found[f"{chapter}: {name}"] = value
    return found


CHAPTERS = {"induction": induction, "names": indirect_objects}

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(results(torch.load(sys.argv[1])), sys.argv[2])
