"""The attention pattern of a head, and small pictures of all heads of its layer."""

from base64 import b64encode
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.serve.questions import Attention
from lensbridge.serve.subject import Subject
from lensbridge.serve.views.python import assigned, program
from lensbridge.serve.worker import Job


@torch.no_grad()
def attention(subject: Subject, asked: Attention, job: Job) -> dict[str, Any]:
    """The pattern of a head, and the patterns of all heads of the layer in 256 steps."""
    prompt = subject.read(asked.prompt)
    point = ("pattern", asked.layer)
    _, cache = subject.model.run_with_cache(prompt.given, names_filter=point, return_type=None)
    patterns = cache[point][0].float()
    if asked.head >= len(patterns):
        raise InputError(
            f"There is no head {asked.head}: layer {asked.layer} has {len(patterns)} heads, which "
            f"are numbered 0 to {len(patterns) - 1}."
        )
    return {
        "tokens": prompt.labels,
        "heads": len(patterns),
        "pattern": patterns[asked.head].tolist(),
        "strip": [_in_bytes(one) for one in patterns] if asked.strip else None,
        "python": program(
            subject,
            assigned("prompt", prompt),
            f"layer, head = {asked.layer}, {asked.head}",
            '_, cache = model.run_with_cache(prompt, names_filter=("pattern", layer))',
            'pattern = cache["pattern", layer][0, head]  # query, key',
            "print(pattern.shape)",
        ),
    }


def _in_bytes(pattern: Tensor) -> str:
    """A pattern in 256 steps, row by row, in base64."""
    steps = (pattern.clamp(0, 1) * 255).round().to(torch.uint8)
    return b64encode(steps.cpu().numpy().tobytes()).decode("ascii")
