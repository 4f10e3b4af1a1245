"""A decoder that transformers does not know: parallel residual, odd names, other sizes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class ToyConfig(PretrainedConfig):
    """Sizes of the toy; heads are wider than width / askers."""

    model_type = "lensbridge_toy"
    attribute_map = {"num_hidden_layers": "depth"}  # noqa: RUF012  (what transformers expects)

    depth: int = 2
    width: int = 20
    askers: int = 6
    answerers: int = 2
    head_width: int = 4
    words: int = 37
    room: int = 24
    thoughts: int = 14
    bend: str = "silu"
    tie_word_embeddings: bool = False


class Calm(nn.Module):
    """RMSNorm that calls its constant `epsilon`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * scaled.to(x.dtype)


class Gaze(nn.Module):
    """Causal attention with fewer keys and values than queries."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.ask = nn.Linear(config.width, config.askers * config.head_width)
        self.offer = nn.Linear(config.width, config.answerers * config.head_width, bias=False)
        self.carry = nn.Linear(config.width, config.answerers * config.head_width)
        self.say = nn.Linear(config.askers * config.head_width, config.width)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (self._heads(part(hidden_states)) for part in (self.ask, self.offer, self.carry))
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return self.say(mixed.transpose(1, 2).flatten(2))


class Mind(nn.Module):
    """Gated MLP."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.doors = nn.ModuleDict(
            {door: nn.Linear(config.width, config.thoughts) for door in ("a", "b")}
        )
        self.exit = nn.Linear(config.thoughts, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.exit(F.silu(self.doors["a"](x)) * self.doors["b"](x))


class Floor(nn.Module):
    """One layer: attention (behind a dropout) and MLP read the same stream."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.calm = nn.ModuleDict({"look": Calm(config.width), "think": Calm(config.width)})
        self.gaze = Gaze(config)
        self.said = nn.Dropout(0.1)
        self.mind = Mind(config)

    def forward(self, stream: Tensor, mask: Tensor | None) -> tuple[Tensor]:
        looked = self.said(self.gaze(hidden_states=self.calm["look"](stream), mask=mask))
        return (stream + looked + self.mind(self.calm["think"](stream)),)


class Body(nn.Module):
    """Everything but the head."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.lookup = nn.Embedding(config.words, config.width)
        self.places = nn.Embedding(config.room, config.width)
        self.floors = nn.ModuleList([Floor(config) for _ in range(config.depth)])
        self.last_calm = Calm(config.width)


class ToyForCausalLM(PreTrainedModel, GenerationMixin):
    """The toy with its head."""

    config_class = ToyConfig
    base_model_prefix = "body"
    _supports_sdpa = True

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.body = Body(config)
        self.speak = nn.Linear(config.width, config.words, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        length = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(length)[None]
        mask = None
        if attention_mask is not None:
            seen = torch.ones(length, length, dtype=torch.bool).tril()
            mask = seen & attention_mask.bool()[:, None, None, :] | torch.eye(length).bool()
        stream = self.body.lookup(input_ids) + self.body.places(position_ids)
        for floor in self.body.floors:
            (stream,) = floor(stream, mask)
        return CausalLMOutputWithPast(logits=self.speak(self.body.last_calm(stream)))
