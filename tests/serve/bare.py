"""The demo model without lensbridge, under plain PyTorch hooks."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def run(bare: Any, ids: Tensor, *hooks: tuple[nn.Module, Any, bool]) -> Tensor:
    """Logits with hooks: `(module, fn, whether before it)`."""
    with ExitStack() as stack:
        for module, fn, before in hooks:
            add = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(add(fn).remove)
        return bare(ids).logits[0]


def near(found: Any, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    return torch.allclose(torch.tensor(found), wanted.float(), atol=tolerance, rtol=1e-4)


def without_head(head: int, size: int = 32) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        value = args[0].clone()
        value[..., head * size : (head + 1) * size] = 0
        return (value,)

    return hook


def as_zero(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return torch.zeros_like(out)


def compare(found: dict[str, Any], before: Tensor, after: Tensor) -> None:
    told = [row["id"] for row in found["rows"]]
    assert set(told) >= {*before.topk(5).indices.tolist(), *after.topk(5).indices.tolist()}
    for i, logits in enumerate((before, after)):
        assert near([row["logit"][i] for row in found["rows"]], logits[told])
        assert near([row["probability"][i] for row in found["rows"]], logits.softmax(-1)[told])


def continued(bare: Any, ids: Tensor, count: int, *hooks: Any) -> list[int]:
    """The likeliest tokens one after the other, up to the end of the text."""
    made: list[int] = []
    while len(made) < count and bare.config.eos_token_id not in made:
        row = torch.cat([ids, torch.tensor([made], dtype=torch.long)], -1)
        made.append(int(run(bare, row, *hooks)[-1].argmax()))
    return made
