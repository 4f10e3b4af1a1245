"""SAEs written out by hand, and what raw PyTorch hooks make of them on the bare model."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Plain:
    """Encodes and decodes; says nothing of itself."""

    def __init__(self, d_in: int, d_out: int | None = None, n: int = 11, **kind: Any) -> None:
        generator = torch.Generator().manual_seed(d_in)
        self.W_enc = torch.randn(d_in, n, generator=generator).to(**kind) / d_in**0.5
        self.W_dec = torch.randn(n, d_out or d_in, generator=generator).to(**kind) / n**0.5
        self.b_enc = torch.randn(n, generator=generator).to(**kind) / 5

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_enc + self.b_enc).relu()

    def decode(self, features: Tensor) -> Tensor:
        return features @ self.W_dec


class Told(Plain):
    """Says where it belongs, as SAELens 6 does."""

    use_error_term = False

    def __init__(self, hook_name: str, d_in: int, d_out: int | None = None, **more: Any) -> None:
        super().__init__(d_in, d_out)
        told = {"hook_name": hook_name, "hook_name_out": None, "hook_head_index": None, **more}
        self.cfg = SimpleNamespace(metadata=SimpleNamespace(**told))


class Showing(nn.Module):
    """Passes its values through modules of its own, as SAELens's do."""

    def __init__(self, d_in: int, n: int = 11) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(d_in, n), nn.Linear(n, d_in)
        self.hook_sae_input = nn.Identity()
        self.hook_sae_acts_pre = nn.Identity()
        self.hook_sae_acts_post = nn.Identity()
        self.hook_sae_recons = nn.Identity()

    def encode(self, x: Tensor) -> Tensor:
        return self.hook_sae_acts_post(
            self.hook_sae_acts_pre(self.enc(self.hook_sae_input(x))).relu()
        )

    def decode(self, features: Tensor) -> Tensor:
        return 2 * self.hook_sae_recons(self.dec(features))


class Skipping(Plain):
    """A transcoder that also hands on a part of its input."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        self.W_skip = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(3)) / 9
