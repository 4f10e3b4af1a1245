"""`fit_tuned_lens`: maps of the stream whose predictions are near the model's own."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lensbridge.analysis.head import Head, head_of
from lensbridge.analysis.tuned_lens import LayerMap, TunedLens
from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel

Optimizer: TypeAlias = Literal["adam", "sgd"]
"""adam; or sgd with Nesterov momentum."""


def fit_tuned_lens(
    model: HookedModel,
    data: Iterable[Any],
    steps: int | None = None,
    batch_size: int = 8,
    lr: float = 1e-3,
    optimizer: Optimizer = "adam",
    weight_decay: float = 0.0,
    max_tokens: int = 1024,
    start: TunedLens | None = None,
    **input_options: Any,
) -> TunedLens:
    """Fit an affine map for each layer, through which the final norm and head predict what the
    model predicts.

    The loss of a layer is the KL divergence of its prediction from the model's own, over the tokens
    of a batch. Each batch is run once for all layers, and the model's weights do not change. The
    learning rate falls to zero in a straight line if the number of steps is known.

    Args:
        model: the model.
        data: texts, or ids of each, in anything that can be looped over; a list is looped over
            again until there were enough steps.
        steps: how many batches; None: each once.
        batch_size: how many texts are run at once.
        lr: the learning rate.
        optimizer: "adam", or "sgd" with Nesterov momentum of 0.9.
        weight_decay: draws the maps to the identity.
        max_tokens: how many tokens of a batch are used at most; logits of so many are in memory.
        start: a lens to begin with; None: the identity, which is the logit lens.
        input_options: `prepend_bos` and other options of `run_with_cache`.

    Units: losses in nats per token.

    Raises:
        InputError: there are no texts, or an option is wrong.
        LensbridgeError: a model whose head does not read each position by itself.

    Source: Belrose et al. 2023, "Eliciting latent predictions from transformers with the tuned
        lens".

    Example:
        >>> import lensbridge
        >>> from lensbridge.analysis import fit_tuned_lens
        >>> model = lensbridge.load("demo")
        >>> texts = ["The Eiffel Tower is in the city of Paris", "The Louvre is in Paris"]
        >>> tuned = fit_tuned_lens(model, texts, steps=20)
        >>> tuned, bool((tuned.losses[-1] < tuned.losses[0]).all())
        (TunedLens(4 layers, d_model 128), True)
        >>> lens = model.logit_lens("The Louvre is in", top_k=1, lens=tuned)
    """
    if optimizer not in ("adam", "sgd"):
        raise InputError(f"optimizer is 'adam' or 'sgd', not {optimizer!r}.")
    if steps is not None and (isinstance(steps, bool) or steps < 1):
        raise InputError(f"steps is None or a number of steps, 1 or more, not {steps!r}.")
    head = head_of(model)
    if start is not None:
        start.require_fit(model)
    with torch.inference_mode(False), torch.enable_grad():
        fit = _Fit.of(head, start, optimizer, lr, weight_decay, max_tokens)
        total = steps if steps is not None else _length(data, batch_size)
        losses = []
        for number, texts in enumerate(islice(_batches(data, batch_size, steps), steps)):
            rate = lr if total is None else lr * (1 - number / total)
            losses.append(fit.step(fit.streams(texts, **input_options), rate))
    if not losses:
        raise InputError("There are no texts to fit a tuned lens to.")
    name = str(getattr(model.native.main.config, "_name_or_path", ""))
    weight, bias = (torch.stack([one.detach() for one in some]) for some in fit.maps)
    return TunedLens(weight, bias, torch.stack(losses), name)


def _length(data: Any, size: int) -> int | None:
    return -(-len(data) // size) if hasattr(data, "__len__") and not isinstance(data, str) else None


def _batches(data: Iterable[Any], size: int, steps: int | None) -> Iterator[Any]:
    """Batches of texts; again from the front where a number of steps is asked for."""
    data = [data] if isinstance(data, str) else data
    again = steps is not None and not isinstance(data, Iterator)
    while True:
        rest, count = iter(data), 0
        while some := list(islice(rest, size)):
            count += 1
            yield torch.stack(some) if isinstance(some[0], Tensor) else some
        if not again or not count:
            return


@dataclass(frozen=True)
class _Fit:
    """The maps of all layers and what updates them.

    Args:
        head: the model's.
        maps: the weights and the biases.
        update: makes a step of the optimizer with a learning rate.
        max_tokens: of a batch.
    """

    head: Head
    maps: tuple[list[Tensor], list[Tensor]]
    update: Callable[[float], None]
    max_tokens: int

    @classmethod
    def of(
        cls,
        head: Head,
        start: TunedLens | None,
        optimizer: Optimizer,
        lr: float,
        weight_decay: float,
        max_tokens: int,
    ) -> "_Fit":
        """A fit that begins with a lens, or with the identity."""
        model = head.model
        layers, width = len(model.native.blocks), model.cfg.d_model
        shape = (torch.zeros(layers, width, width), torch.zeros(layers, width))
        values = shape if start is None else (start.weight, start.bias)
        kept = torch.promote_types(model.dtype, torch.float32)
        maps = tuple(
            [one.detach().to(model.device, kept).clone().requires_grad_() for one in some]
            for some in values
        )
        every = [*maps[0], *maps[1]]
        made: torch.optim.Optimizer
        if optimizer == "adam":
            made = torch.optim.Adam(every, lr=lr, weight_decay=weight_decay)
        else:
            made = torch.optim.SGD(
                every, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
            )

        def update(rate: float) -> None:
            made.param_groups[0]["lr"] = rate
            made.step()
            made.zero_grad()

        return cls(head, maps, update, max_tokens)  # type: ignore[arg-type]

    def streams(self, texts: Any, **options: Any) -> list[Tensor]:
        """The stream before each layer and after the last, of the tokens of some texts.

        Shapes: `[token, d_model]` each
        """
        model = self.head.model
        prefix, count = model.native.main.prefix, len(model.native.blocks)
        names = [f"{prefix}.{i}.hook_resid_pre" for i in range(count)]
        names.append(f"{prefix}.{count - 1}.hook_resid_post")
        with torch.no_grad():
            _, cache = model.run_with_cache(texts, names_filter=names, return_type=None, **options)
        real = _real(cache, cache[names[0]])
        return [cache[name][real.to(cache[name].device)] for name in names]

    def step(self, streams: Sequence[Tensor], rate: float) -> Tensor:
        """One update; the losses before it. Shapes: `[layer]`"""
        chosen = torch.linspace(0, len(streams[0]) - 1, min(len(streams[0]), self.max_tokens))
        rows = [stream[chosen.round().long().to(stream.device)] for stream in streams]
        with torch.no_grad():
            wanted = self.head.logits(rows[-1]).float().log_softmax(-1)
        losses = [self._learned(layer, stream, wanted) for layer, stream in enumerate(rows[:-1])]
        self.update(rate)
        return torch.stack(losses)

    def _learned(self, layer: int, stream: Tensor, wanted: Tensor) -> Tensor:
        """The loss of a layer, whose derivatives are added to those of its map."""
        weight, bias = (some[layer] for some in self.maps)
        found = self.head.logits(LayerMap(weight, bias)(stream)).float().log_softmax(-1)
        loss = torch.nn.functional.kl_div(
            found, wanted.to(found.device), log_target=True, reduction="batchmean"
        )
        weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
        return loss.detach().cpu()


def _real(cache: ActivationCache, stream: Tensor) -> Tensor:
    """Which columns hold tokens. Shapes: `[batch, pos]`"""
    real = cache.real_tokens(stream.shape[1])
    return torch.ones(stream.shape[:2], dtype=torch.bool) if real is None else real
