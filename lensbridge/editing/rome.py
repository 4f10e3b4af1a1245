"""ROME: one fact of a model, changed by an update of rank one to one MLP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensbridge.editing.moments import SecondMoment
from lensbridge.editing.updates import rank_one_update
from lensbridge.errors import InputError, WeightError
from lensbridge.hooked_model import HookedModel
from lensbridge.native.parts import MLPPart

_ENOUGH = 0.05
"""The loss at which the search for a value ends."""


def rome(
    model: HookedModel,
    prompt: str,
    subject: str,
    target: str,
    layer: int,
    moment: SecondMoment | Tensor | None = None,
    contexts: Sequence[str] = (),
    steps: int = 25,
    lr: float = 0.5,
    decay: float = 0.5,
    drift: float = 0.0625,
    largest: float = 4.0,
) -> dict[str, Tensor]:
    """New values of one `W_out`, with which the model completes a prompt about a subject otherwise.

    The key is the input of `W_out` at the last token of the subject. The value is found by gradient
    descent: what the MLP has to add there for the target to be likely. The update is
    `rank_one_update`.

    Args:
        model: the model.
        prompt: a text with "{}" where the subject goes: "{} is in the city of".
        subject: the subject.
        target: what is to come after the prompt, with its space: " Rome".
        layer: whose MLP is edited.
        moment: the second moment of the inputs of `W_out`, from `second_moments`; None: all
            directions count the same, so more other texts change.
        contexts: texts to put in front of the prompt; the key is the mean over them and none.
        steps: how many steps the search makes at most.
        lr: its learning rate.
        decay: how strongly a large change is held against it.
        drift: how strongly a change of what follows "{subject} is a" is.
        largest: the largest change, in norms of what the MLP adds.

    Returns:
        Values for `model.edited` and `model.edit_weights`.

    Raises:
        InputError: the prompt has no "{}", or the subject is no part of its tokens.
        WeightError: the layer has no such weight, or what it computes is not added to the stream as
            it is.

    Source: Meng et al. 2022, "Locating and editing factual associations in GPT".

    Example:
        >>> import lensbridge
        >>> from lensbridge.editing import rome
        >>> model = lensbridge.load("demo")
        >>> edit = rome(model, "The {} is in the city of", "Eiffel Tower", " Rome", layer=1)
        >>> with model.edited(edit):
        ...     logits = model("The Eiffel Tower is in the city of")
        >>> model.to_single_str_token(logits[0, -1].argmax())
        ' Rome'
    """
    if not isinstance(prompt, str) or "{}" not in prompt:
        raise InputError(f"prompt is a text with {{}} where the subject goes, not {prompt!r}.")
    if not target:
        raise InputError("target is what the model is to say, such as ' Rome', and it is empty.")
    name = _weight_name(model, layer)
    weight = model.weight(name).detach()
    prefixes = [*dict.fromkeys(["", *contexts])]
    asked = [_Text.of(model, before + prompt, subject, target) for before in prefixes]
    essence = _Text.of(model, "{} is a", subject, "")
    points = [f"{name.removesuffix('W_out')}hook_post", name.replace("mlp.W_out", "hook_mlp_out")]
    key, size = _key(model, asked, points)
    search = _Search(model, points[1], asked, essence, decay, drift)
    change = search.found(size, steps, lr, largest)
    value = key.double() @ weight.double() + change.double()
    return {name: rank_one_update(weight, key, value, moment)}


def _weight_name(model: HookedModel, layer: int) -> str:
    count = len(model.native.blocks)
    if not -count <= layer < count:
        raise WeightError(f"There is no layer {layer}: the model has {count} layers.")
    block, name = (
        model.native.blocks[layer],
        f"{model.native.main.prefix}.{layer % count}.mlp.W_out",
    )
    if not isinstance(block.mlp, MLPPart):
        raise WeightError(f"Layer {layer} has no dense MLP, so there is no {name} to edit.")
    after = [slot for slot in ("ln2_post",) if slot in block.norms]
    if after or not (block.mlp.writer.scale.is_one and block.mlp.writes_neurons):
        how = f"goes through {after[0]}" if after else "is multiplied"
        raise WeightError(
            f"What {name} computes {how} before it is added to the stream, so ROME's value cannot "
            "be searched for there. rank_one_update takes a key and a value of your own."
        )
    return name


@dataclass(frozen=True)
class _Text:
    """A text, where the last token of the subject is in it, and what is to come after it.

    Shapes: ids `[1, pos]`, target `[token]`
    """

    ids: Tensor
    place: int
    target: Tensor

    @classmethod
    def of(cls, model: HookedModel, prompt: str, subject: str, target: str) -> "_Text":
        before, _, _ = prompt.partition("{}")
        ids = model.to_tokens(prompt.replace("{}", subject))
        start = model.to_tokens(before + subject)
        if not torch.equal(ids[:, : start.shape[1]], start):
            raise InputError(
                f"{subject!r} does not end at the end of a token of {prompt.format(subject)!r}."
            )
        wanted = model.to_tokens(target, prepend_bos=False)[0] if target else ids[0, :0]
        return cls(torch.cat([ids, wanted[None, :-1]], dim=1), start.shape[1] - 1, wanted)


def _key(model: HookedModel, texts: Sequence[_Text], points: Sequence[str]) -> tuple[Tensor, float]:
    """The mean input of the weight at the subject, and the norm of what the MLP adds there."""
    keys, sizes = [], []
    for text in texts:
        with torch.no_grad():
            _, cache = model.run_with_cache(text.ids, names_filter=list(points), return_type=None)
        keys.append(cache[points[0]][0, text.place].float())
        sizes.append(float(cache[points[1]][0, text.place].float().norm()))
    return torch.stack(keys).mean(0), sizes[0]


@dataclass(frozen=True)
class _Search:
    """The search for what an MLP has to add at the last token of a subject."""

    model: HookedModel
    point: str
    asked: Sequence[_Text]
    essence: _Text
    decay: float
    drift: float

    def found(self, size: float, steps: int, lr: float, largest: float) -> Tensor:
        """The change of what is added. Shapes: `[d_model]`"""
        with torch.inference_mode(False), torch.enable_grad():
            device = self.asked[0].ids.device
            change = torch.zeros(self.model.cfg.d_model, device=device, requires_grad=True)
            with torch.no_grad():
                kept = self._log_probs(self.essence, change)[-1]
            search = torch.optim.Adam([change], lr=lr)
            for _ in range(steps):
                loss, held_against = self._loss(change, kept, size)
                if float(loss.detach()) < _ENOUGH:
                    break
                (change.grad,) = torch.autograd.grad(loss + held_against, change)
                search.step()
                with torch.no_grad():
                    norm = float(change.norm())
                    change.mul_(min(1.0, largest * size / max(norm, 1e-12)))
        return change.detach()

    def _loss(self, change: Tensor, kept: Tensor, size: float) -> tuple[Tensor, Tensor]:
        """How unlikely the target is, and what is held against the change."""
        unlikely = torch.stack([self._unlikely(text, change) for text in self.asked]).mean()
        now = self._log_probs(self.essence, change)[-1]
        drift = torch.nn.functional.kl_div(now, kept, log_target=True, reduction="sum")
        return unlikely, self.drift * drift + self.decay * change.norm() / size**2

    def _unlikely(self, text: _Text, change: Tensor) -> Tensor:
        own = self._log_probs(text, change)[-len(text.target) :]
        return -own.gather(-1, text.target[:, None]).mean()

    def _log_probs(self, text: _Text, change: Tensor) -> Tensor:
        """Of each next token, with the change. Shapes: `[pos, d_vocab]`"""

        def add(value: Tensor, hook: Any) -> Tensor:
            shift = torch.zeros_like(value)
            shift[:, text.place] = change.to(value)
            return value + shift

        logits = self.model.run_with_hooks(text.ids, fwd_hooks=[(self.point, add)])
        return logits[0].float().log_softmax(-1)
