"""Neurons on a text: one neuron at every token, and the strongest neurons at one token."""

from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.serve.questions import Neurons
from lensbridge.serve.subject import Prompt, Subject
from lensbridge.serve.views.python import assigned, at, program
from lensbridge.serve.worker import Job


@torch.no_grad()
def neurons(subject: Subject, asked: Neurons, job: Job) -> dict[str, Any]:
    """Activations of a neuron on the text; by default of the strongest at the position."""
    prompt = subject.read(asked.prompt)
    position = prompt.position(asked.position)
    activations = _activations(subject, asked, prompt)
    top = activations[position].abs().topk(min(asked.k, activations.shape[-1])).indices.tolist()
    neuron = top[0] if asked.neuron is None else asked.neuron
    return {
        "tokens": prompt.labels,
        "position": position,
        "neuron": neuron,
        "neurons": activations.shape[-1],
        "activations": activations[:, neuron].tolist(),
        "top": [{"neuron": one, "activation": float(activations[position, one])} for one in top],
        "python": _python(subject, prompt, position, asked.layer, neuron, len(top)),
    }


def _activations(subject: Subject, asked: Neurons, prompt: Prompt) -> Tensor:
    """Shapes: `[pos, d_mlp]`

    Raises:
        InputError: there is no such neuron.
    """
    point = ("post", asked.layer)
    _, cache = subject.model.run_with_cache(prompt.given, names_filter=point, return_type=None)
    activations: Tensor = cache[point][0].float()
    count = activations.shape[-1]
    if asked.neuron is not None and asked.neuron >= count:
        raise InputError(
            f"There is no neuron {asked.neuron}: the MLP of layer {asked.layer} has {count}, which "
            f"are numbered 0 to {count - 1}."
        )
    return activations


def _python(
    subject: Subject, prompt: Prompt, position: int, layer: int, neuron: int, shown: int
) -> str:
    return program(
        subject,
        assigned("prompt", prompt),
        at(prompt, position),
        f"layer, neuron = {layer}, {neuron}",
        '_, cache = model.run_with_cache(prompt, names_filter=("post", layer))',
        'activations = cache["post", layer][0]  # position, neuron',
        "print(activations[:, neuron])",
        f"print(activations[position].abs().topk({shown}).indices)",
    )
