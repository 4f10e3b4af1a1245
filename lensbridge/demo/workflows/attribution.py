"""Direct logit attribution of heads, checked by its sum and by ablation.

Source: per-head attribution on indirect objects after Wang et al. 2022, "Interpretability in the
Wild".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensbridge.demo.text import Prompt
from lensbridge.demo.workflows.runs import Answers, answers_of, as_logits, cached, largest, strings
from lensbridge.errors import LensbridgeError
from lensbridge.hooks.callbacks import Hook
from lensbridge.model import LensModel

EXACT = 1e-4
"""How far the sum of contributions may be from the logit difference, in logits (rounding)."""


@dataclass(frozen=True)
class Attribution:
    """Every term of the logit difference, averaged over prompts, and each head's ablation.

    Args:
        prompts: the prompts that were averaged over.
        heads: the contribution of each head.
        mlps: the contribution of each MLP.
        attention_biases: the contribution of each attention's output bias.
        embeddings: the contributions of token and position embedding.
        constants: the contributions of the biases of final norm and head.
        before: logit difference of each prompt.
        ablated: logit difference of each prompt with one head ablated.
        error: the largest difference, over prompts, between the sum of all terms and the logit
            difference.
        tokens: the tokens of the first prompt.
        attention: attention of the top head from the last position of the first prompt.

    Shapes: heads `[layer, head]`; mlps and attention_biases `[layer]`; before `[batch]`; ablated
        `[layer, head, batch]`; attention `[pos]`.
    Units: logits, right name minus wrong name; attention is a probability.
    """

    prompts: tuple[Prompt, ...]
    heads: Tensor
    mlps: Tensor
    attention_biases: Tensor
    embeddings: dict[str, float]
    constants: dict[str, float]
    before: Tensor
    ablated: Tensor
    error: float
    tokens: tuple[str, ...]
    attention: Tensor

    @property
    def top(self) -> tuple[int, int]:
        """Layer and head of the largest contribution."""
        return largest(self.heads)

    @property
    def drops(self) -> Tensor:
        """How much the logit difference falls when each head is ablated.

        Shapes: `[layer, head]`
        """
        return (self.before - self.ablated).mean(-1)

    @property
    def confirmed(self) -> bool:
        """Whether ablating the top head costs at least half of its contribution."""
        return bool(self.drops[self.top] >= 0.5 * self.heads[self.top] > 0)


@torch.no_grad()
def attribute_heads(model: LensModel, prompts: Sequence[Prompt]) -> Attribution:
    """Split the logit difference into contributions of each part, then ablate each head.

    The final norm divides by the scale of the run, so the logits are linear in what parts write.

    Raises:
        LensbridgeError: the terms do not sum to the logit difference.
    """
    texts, answers = [prompt.text for prompt in prompts], answers_of(model, prompts)
    before = answers.difference(as_logits(model(texts, padding_side="left")))
    terms = _terms(model, texts, answers)
    error = float((sum(value.sum(0) for value in terms.values()) - before).abs().max())
    if not error <= EXACT:
        raise LensbridgeError(
            f"The sum of contributions differs from the logit difference by {error:.2g} logits, "
            f"more than the {EXACT:g} that rounding explains."
        )
    mean = {name: value.mean(-1) for name, value in terms.items()}
    heads = mean["heads"].view(model.cfg.n_layers, model.cfg.n_heads)
    first = model.to_tokens(texts[0])
    layer, head = largest(heads)
    return Attribution(
        prompts=tuple(prompts),
        heads=heads,
        mlps=mean["mlps"],
        attention_biases=mean["attention biases"],
        embeddings={name: float(mean[name].sum()) for name in _embeddings(model)},
        constants={name: float(mean[name].sum()) for name in ("final norm bias", "unembed bias")},
        before=before,
        ablated=_ablate_each(model, texts, answers),
        error=error,
        tokens=strings(model, first[0]),
        attention=cached(model, first, ["pattern"])["pattern", layer][0, head, -1],
    )


def _terms(model: LensModel, texts: list[str], answers: Answers) -> dict[str, Tensor]:
    """Every term of the logit difference, each `[part, batch]`."""
    scale = "ln_final.hook_scale"
    points = ["result", "mlp_out", scale, *_embeddings(model).values()]
    cache = cached(model, texts, points, padding_side="left", pos_slice=-1)
    norm, layers = model.ln_final, range(model.cfg.n_layers)
    towards = model.W_U.T[answers.right] - model.W_U.T[answers.wrong]

    def seen(writes: Tensor) -> Tensor:
        """Logits `[part, batch]` of vectors `[part, batch, d_model]` (or `[part, 1, d_model]`)."""
        return (norm.norm.centered(writes) / cache[scale][:, 0] * norm.w * towards).sum(-1)

    heads = torch.cat([cache["result", layer][:, 0].transpose(0, 1) for layer in layers])
    return {
        **{name: seen(cache[point][:, 0][None]) for name, point in _embeddings(model).items()},
        "heads": seen(heads),
        "attention biases": seen(model.b_O[:][:, None]),
        "mlps": seen(torch.stack([cache["mlp_out", layer][:, 0] for layer in layers])),
        "final norm bias": (towards @ norm.b)[None],
        "unembed bias": (model.b_U[answers.right] - model.b_U[answers.wrong])[None],
    }


def _embeddings(model: LensModel) -> dict[str, str]:
    learned = model.cfg.positional_embedding_type == "standard"
    positions = {"position embedding": "hook_pos_embed"} if learned else {}
    return {"token embedding": "hook_embed", **positions}


def _ablate(model: LensModel, texts: list[str], answers: Answers, layer: int, head: int) -> Tensor:
    """Logit differences with one head set to zero at all positions.

    Shapes: `[batch]`
    """

    def silence(z: Tensor, hook: Hook) -> None:
        z[:, :, head] = 0

    hooks = [(("z", layer), silence)]
    logits = model.run_with_hooks(texts, fwd_hooks=hooks, padding_side="left")
    return answers.difference(as_logits(logits))


def _ablate_each(model: LensModel, texts: list[str], answers: Answers) -> Tensor:
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    rows = [[_ablate(model, texts, answers, layer, head) for head in heads] for layer in layers]
    return torch.stack([torch.stack(row) for row in rows])
