"""Run with the two packages installed: what a user of the toy model sees, as JSON.

Every point of the toy is compared with what plain PyTorch hooks see on the bare model.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from lensbridge_toy.model import Floor, ToyConfig, ToyForCausalLM
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, YosoConfig, YosoForMaskedLM

import lensbridge
from lensbridge.errors import UnsupportedArchitectureError

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def toy() -> ToyForCausalLM:
    """A toy with weights of order one."""
    model = ToyForCausalLM(ToyConfig(**SPECIAL)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


class Recording:
    """Logits of a bare model, and the inputs and outputs of its modules."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        self.inputs: dict[nn.Module, Tensor] = {}
        self.outputs: dict[nn.Module, Tensor] = {}
        parts = [part for part in model.modules() if part is not model]
        handles = [part.register_forward_hook(self.note, with_kwargs=True) for part in parts]
        self.logits = model(ids).logits
        for handle in handles:
            handle.remove()

    def note(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.inputs[module] = args[0] if args else kwargs["hidden_states"]
        self.outputs[module] = output if isinstance(output, Tensor) else output[0]


def native_points(model: ToyForCausalLM, seen: Recording) -> dict[str, Tensor]:
    """What has to be there bit for bit."""
    body, (batch, _, _) = model.body, seen.logits.shape
    found = {
        "hook_embed": seen.outputs[body.lookup],
        "hook_pos_embed": seen.outputs[body.places].expand(batch, -1, -1),
        "ln_final.hook_out": seen.outputs[body.last_calm],
        "hook_logits": seen.logits,
    }
    for i, floor in enumerate(body.floors):
        for name, value in native_points_of(floor, seen, model.config).items():
            found[f"blocks.{i}.{name}"] = value
    return found


def native_points_of(floor: Floor, seen: Recording, config: ToyConfig) -> dict[str, Tensor]:
    """The same for one layer."""

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, config.head_width))

    def copies(n: int) -> Tensor:
        return stream.unsqueeze(-2).expand(-1, -1, n, -1)

    stream, gaze, mind = seen.inputs[floor], floor.gaze, floor.mind
    return {
        "hook_resid_pre": stream,
        "hook_attn_in": stream,
        "hook_mlp_in": stream,
        "hook_q_input": copies(config.askers),
        "hook_k_input": copies(config.answerers),
        "hook_v_input": copies(config.answerers),
        "ln1.hook_out": seen.outputs[floor.calm["look"]],
        "ln2.hook_out": seen.outputs[floor.calm["think"]],
        "attn.hook_q": heads(seen.outputs[gaze.ask]),
        "attn.hook_k": heads(seen.outputs[gaze.offer]),
        "attn.hook_v": heads(seen.outputs[gaze.carry]),
        "attn.hook_z": heads(seen.inputs[gaze.say]),
        "hook_attn_out": seen.outputs[floor.said],
        "mlp.hook_pre": seen.outputs[mind.doors["a"]],
        "mlp.hook_pre_linear": seen.outputs[mind.doors["b"]],
        "mlp.hook_post": seen.inputs[mind.exit],
        "hook_mlp_out": seen.outputs[mind],
        "hook_resid_post": seen.outputs[floor],
    }


def computed_points(model: ToyForCausalLM, seen: Recording) -> dict[str, Tensor]:
    """What is computed beside the model, from the formulas."""
    found = norm_points(seen.inputs[model.body.last_calm], "ln_final")
    for i, floor in enumerate(model.body.floors):
        at = f"blocks.{i}."
        native = native_points_of(floor, seen, model.config)
        q, k = (native[f"attn.hook_{role}"].transpose(1, 2) for role in "qk")
        repeated = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = q @ repeated.mT / model.config.head_width**0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
        weight = floor.gaze.say.weight.T.unflatten(0, (model.config.askers, -1))
        found |= norm_points(native["hook_resid_pre"], f"{at}ln1")
        found |= norm_points(native["hook_resid_pre"], f"{at}ln2")
        found |= {
            f"{at}attn.hook_attn_scores": scores,
            f"{at}attn.hook_pattern": scores.softmax(-1),
            f"{at}attn.hook_result": torch.einsum("bphd,hdm->bphm", native["attn.hook_z"], weight),
        }
    return found


def norm_points(x: Tensor, at: str) -> dict[str, Tensor]:
    """Divisor of an RMSNorm, and its output before the gain."""
    scale = (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return {f"{at}.hook_scale": scale, f"{at}.hook_normalized": x / scale}


def differing(
    expected: dict[str, Tensor], found: Any, same: Callable[[Tensor, Tensor], bool]
) -> list[str]:
    """Names of the points that are not as expected."""
    return [name for name, value in expected.items() if not same(found[name], value)]


def close(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def read_toy() -> dict[str, object]:
    """The toy through its entry point."""
    model, ids = toy(), torch.randint(3, 37, (2, 7))
    seen = Recording(model, ids)
    lens = lensbridge.load(model)
    logits, cache = lens.run_with_cache(ids, names_filter=lens.hook_names)
    native, computed = native_points(model, seen), computed_points(model, seen)
    options = {"max_new_tokens": 4, "do_sample": False}
    return {
        "repr": repr(lens),
        "logits_equal": torch.equal(logits, seen.logits),
        "not_covered": sorted(set(lens.hook_names) ^ (native.keys() | computed.keys())),
        "not_cached": sorted(set(lens.hook_names) ^ set(cache)),
        "native_differ": differing(native, cache, torch.equal),
        "computed_differ": differing(computed, cache, close),
        "n_native": len(native),
        "generates_the_same": torch.equal(
            lens.generate(ids, use_past_kv_cache=False, verbose=False, **options),
            model.generate(ids, attention_mask=ids > 0, use_cache=False, **options),
        ),
    }


def read_gpt2() -> dict[str, object]:
    """A built-in architecture beside a broken plugin."""
    sizes = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **SPECIAL)).eval()
    lens, ids = lensbridge.load(model), torch.randint(3, 32, (2, 7))
    logits, cache = lens.run_with_cache(ids)
    return {"logits_equal": torch.equal(logits, model(ids).logits), "cached": len(cache)}


def ask_for_unsupported() -> str:
    """What is said about a class that nobody describes."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = YosoConfig(vocab_size=32, **sizes, **SPECIAL)
    try:
        lensbridge.load(YosoForMaskedLM(config), derive=False)
    except UnsupportedArchitectureError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        found = {"toy": read_toy(), "gpt2": read_gpt2(), "unsupported": ask_for_unsupported()}
    print(json.dumps(found))
