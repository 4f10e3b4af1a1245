"""A trained model, bare and as lensbridge opens it, with its points written out by hand."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from raw import Recording, record
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lensbridge

MODELS = Path(__file__).parents[2] / "build/real/models"
NAMES = ("smollm2-135m", "gemma3-270m")
DTYPES = (torch.float32, torch.bfloat16)

TOWER = "The Eiffel Tower is in the city of"
STORY = "When Mary and John talked, {} gave a letter to"


@dataclass(eq=False)
class Trained:
    """One of the models in one dtype."""

    name: str
    dtype: torch.dtype

    @cached_property
    def hf(self) -> Any:
        """The bare model."""
        return AutoModelForCausalLM.from_pretrained(MODELS / self.name, dtype=self.dtype).eval()

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(MODELS / self.name)

    @cached_property
    def lens(self) -> lensbridge.LensModel:
        """The same model with lensbridge's names."""
        return lensbridge.load(self.hf, tokenizer=self.tokenizer)

    @property
    def rounding(self) -> float:
        """The largest relative error of one rounding to the model's dtype."""
        return torch.finfo(self.dtype).eps / 2

    def ids(self, text: str) -> Tensor:
        """A prompt with BOS in front, by the tokenizer alone. Shapes: `[1, pos]`"""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor([[self.tokenizer.bos_token_id, *ids]])

    def token(self, text: str) -> int:
        """The id of a text that is one token."""
        (found,) = self.tokenizer(text, add_special_tokens=False).input_ids
        return found

    def answer(self, text: str) -> str:
        """The token that the bare model holds most likely after a prompt."""
        with torch.no_grad():
            return self.tokenizer.decode(self.hf(self.ids(text)).logits[0, -1].argmax())

    def record(self, ids: Tensor, **call: Any) -> Recording:
        """What goes in and out of every module of the bare model."""
        with torch.no_grad():
            return record(self.hf, input_ids=ids, **call)

    def places(self, index: int) -> dict[str, tuple[nn.Module, str]]:
        """The module of each native point of a layer that can be read at a `[b, p, ...]` tensor."""
        layer = self.hf.model.layers[index]
        attn, mlp = layer.self_attn, layer.mlp
        norm, added = layer.post_attention_layernorm, (attn.o_proj, mlp.down_proj)
        if hasattr(layer, "pre_feedforward_layernorm"):  # Gemma has norms on both sides of a branch
            norm, added = layer.pre_feedforward_layernorm, (norm, layer.post_feedforward_layernorm)
        return {
            "hook_resid_pre": (layer, "input"),
            "ln1.hook_out": (layer.input_layernorm, "output"),
            "attn.hook_v": (attn.v_proj, "output"),
            "attn.hook_z": (attn.o_proj, "input"),
            "hook_attn_out": (added[0], "output"),
            "hook_resid_mid": (norm, "input"),
            "ln2.hook_out": (norm, "output"),
            "mlp.hook_pre": (mlp.gate_proj, "output"),
            "mlp.hook_pre_linear": (mlp.up_proj, "output"),
            "mlp.hook_post": (mlp.down_proj, "input"),
            "hook_mlp_out": (added[1], "output"),
            "hook_resid_post": (layer, "output"),
        }

    def queries_and_keys(self, index: int, recording: Recording) -> tuple[Tensor, Tensor]:
        """Before rotary. Shapes: `[b, p, head, d_head]`"""
        attn = self.hf.model.layers[index].self_attn
        if hasattr(attn, "q_norm"):
            normed = (recording.outputs[norm] for norm in (attn.q_norm, attn.k_norm))
            return tuple(one.transpose(1, 2) for one in normed)
        projected = (recording.outputs[one] for one in (attn.q_proj, attn.k_proj))
        return tuple(one.unflatten(-1, (-1, attn.head_dim)) for one in projected)


def at(recording: Recording, place: tuple[nn.Module, str]) -> Tensor:
    """The input or output of a module in a recording."""
    module, side = place
    return (recording.inputs if side == "input" else recording.outputs)[module]
