"""What programs that attribute edges ask of a model: EAP-IG and ACDC. Knows nothing of lensbridge.

python edges.py weights.pt results.pt
"""

import copy
import sys
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

CLEAN = torch.tensor([[0, 5, 17, 8, 44, 9], [0, 31, 7, 7, 12, 40]])
CORRUPT = torch.tensor([[0, 5, 22, 8, 44, 10], [0, 31, 9, 7, 50, 40]])
ANSWERS, WRONG = torch.tensor([3, 14]), torch.tensor([20, 2])


def model_of(weights: dict[str, Any]) -> Any:
    model = HookedTransformer(HookedTransformerConfig(**weights.pop("cfg")))
    model.load_state_dict(weights, strict=False)
    return model


def senders(cfg: Any) -> list[str]:
    layers = range(cfg.n_layers)
    pairs = [(f"blocks.{i}.attn.hook_result", f"blocks.{i}.hook_mlp_out") for i in layers]
    return ["hook_embed", *(name for pair in pairs for name in pair)]


def receivers(cfg: Any) -> list[str]:
    names = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
    inside = [f"blocks.{i}.{name}" for i in range(cfg.n_layers) for name in names]
    return [*inside, f"blocks.{cfg.n_layers - 1}.hook_resid_post"]


def score(logits: Tensor) -> Tensor:
    rows = torch.arange(len(logits))
    return (logits[rows, -1, ANSWERS] - logits[rows, -1, WRONG]).mean()


def kept(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """What senders give, kept by hooks."""
    found: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        found[hook.name] = value.detach()

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, keep) for name in senders(model.cfg)]):
        model(ids)
    return found


def attribution(model: Any, start: Any, steps: int) -> dict[str, Tensor]:
    """Gradients at receivers, summed over the steps of an interpolation of one sender."""
    clean, corrupt = kept(model, CLEAN), kept(model, CORRUPT)
    sums: dict[str, Tensor] = {}

    def add(gradient: Tensor, hook: Any) -> None:
        sums[hook.name] = sums.get(hook.name, 0) + gradient.detach()

    def between(value: Tensor, hook: Any, share: float) -> Tensor:
        mixed = share * clean[hook.name] + (1 - share) * corrupt[hook.name]
        return mixed.requires_grad_() if hook.name == "hook_embed" else mixed

    back = [(name, add) for name in receivers(model.cfg)]
    for step in range(1, steps + 1):
        there = [(start, partial(between, share=step / steps))] if start else []
        with model.hooks(fwd_hooks=there, bwd_hooks=back):
            score(model(CLEAN)).backward(retain_graph=True)
        model.zero_grad()
    return {f"{start}, {name}": one for name, one in sums.items()}


def evaluation(model: Any) -> dict[str, Tensor]:
    """Each receiver reads what one corrupted sender would have given it."""
    clean, corrupt = kept(model, CLEAN), kept(model, CORRUPT)
    found: dict[str, Tensor] = {}
    for sender in senders(model.cfg):
        change = corrupt[sender] - clean[sender]
        change = change.sum(2) if change.ndim == 4 else change

        def put(value: Tensor, hook: Any, change: Tensor = change) -> Tensor:
            value[:] += change.unsqueeze(2) if value.ndim == 4 else change
            return value

        for receiver in receivers(model.cfg)[-5:]:
            with torch.no_grad(), model.hooks(fwd_hooks=[(receiver, put)]):
                found[f"{sender} to {receiver}"] = model(CLEAN)
    return found


def circuits(model: Any) -> dict[str, Tensor]:
    """Logits where one in three edges carries what another run gives, zeros or means.

    A receiver gets, for each of its edges that is not in the circuit, the other value of the sender
    minus the value that the sender has in this run.
    """
    corrupt, clean = kept(model, CORRUPT), kept(model, CLEAN)
    bases = {
        "patching": corrupt,
        "zero": {name: torch.zeros_like(one) for name, one in clean.items()},
        "mean": {name: one.mean((0, 1), keepdim=True) for name, one in corrupt.items()},
    }
    return {f"circuit, {kind}": circuit(model, base) for kind, base in bases.items()}


def circuit(model: Any, base: dict[str, Tensor]) -> Tensor:
    draw, now = torch.Generator().manual_seed(3), {}

    def keep(value: Tensor, hook: Any) -> None:
        now[hook.name] = value.detach().clone()

    def construct(value: Tensor, hook: Any, cut: dict[str, Tensor]) -> Tensor:
        changes = [change(model, name, base[name], one, cut[name]) for name, one in now.items()]
        total = sum(changes)
        value += total if value.ndim == 4 else total.squeeze(2)
        return value

    heads = model.cfg.n_heads
    hooks = [(name, keep) for name in senders(model.cfg)]
    for receiver in receivers(model.cfg):
        rows = heads if "_input" in receiver else 1
        sizes = {one: heads if "result" in one else 1 for one in senders(model.cfg)}
        cut = {one: torch.rand(rows, n, generator=draw).lt(0.3).float() for one, n in sizes.items()}
        hooks.append((receiver, partial(construct, cut=cut)))
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        return model(CLEAN)


def change(model: Any, sender: str, base: Tensor, now: Tensor, cut: Tensor) -> Tensor:
    """What the edges that are cut change in the input of each head of a receiver."""
    if now.ndim == 3:
        return (base - now).unsqueeze(2) * cut
    difference = torch.einsum("bphm,rh->bprm", base - now, cut)
    if not model.cfg.use_normalization_before_and_after:
        return difference
    block = model.blocks[int(sender.split(".")[1])]
    together = (now.sum(2) + block.attn.b_O).unsqueeze(2)
    return block.ln1_post(together + difference) - block.ln1_post(together)


def one_head(model: Any) -> dict[str, Tensor]:
    """An edit of the key that one query head reads reaches no other head."""

    def change(value: Tensor, hook: Any) -> Tensor:
        value[:, :, 1] = 0.5 * value[:, :, 1]
        return value

    names = [f"blocks.1.{name}" for name in ("hook_k_input", "hook_v_input", "attn.hook_v")]
    return {name: model.run_with_hooks(CLEAN, fwd_hooks=[(name, change)]) for name in names}


def corrected(model: Any) -> dict[str, Any]:
    """Permanently hooked, as ACDC works: caches of all points, then senders, receivers, removal."""
    cache: OrderedDict[str, Tensor] = OrderedDict()
    model.cache_all(cache)
    model(CORRUPT)
    model.reset_hooks()
    online: dict[str, Tensor] = {}

    def save(value: Tensor, hook: Any, verbose: bool = False) -> Tensor:
        online[hook.name] = value
        return value

    def receive(value: Tensor, hook: Any, verbose: bool = False) -> Tensor:
        value[:] = cache[hook.name]
        value[:, :, 0] += online["hook_embed"] - cache["hook_embed"]
        return value

    model.add_hook("hook_embed", partial(save, verbose=False))
    model.add_hook(lambda name: name.endswith(("q_input", "v_input")), partial(receive))
    here = model.hook_dict["hook_embed"].fwd_hooks
    names = [one.__name__ for held in here for one in held.hook.hooks_dict_ref().values()]
    found = {"edited": model(CLEAN), "hooks": len(here), "is named": "save" in names[0]}
    here[0].hook.remove()
    model.hook_dict["hook_embed"].remove_hooks("fwd")
    online["hook_embed"] = cache["hook_embed"]
    found["without sender"] = model(CLEAN)
    model.reset_hooks()
    hooked = [name for name, point in model.hook_dict.items() if point.fwd_hooks]
    return {**found, "left": hooked, "after": model(CLEAN)}


def results(weights: dict[str, Any]) -> dict[str, Any]:
    model = model_of(weights)
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    if model.cfg.n_key_value_heads is not None:
        model.set_ungroup_grouped_query_attention(True)
    found: dict[str, Any] = {"logits": model(CLEAN)}
    found.update(kept(model, CLEAN))
    for start in (None, "hook_embed", "blocks.0.attn.hook_result", "blocks.0.hook_mlp_out"):
        found.update(attribution(model, start, 3 if start else 1))
    found.update(evaluation(model))
    found.update(circuits(model))
    found.update(one_head(model))
    found.update(corrected(model))
    found["copy"] = copy.deepcopy(model)(CLEAN)
    plain = {name: one.detach() if isinstance(one, Tensor) else one for name, one in found.items()}
    return dict(sorted(plain.items()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(results(torch.load(sys.argv[1])), sys.argv[2])
