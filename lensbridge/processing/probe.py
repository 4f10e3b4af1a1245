"""A check of a rewrite: the model's output for a small random input, before and after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lensbridge.errors import ProcessingError
from lensbridge.native.calling import spans_in
from lensbridge.native.parts import ResolvedModel

_OUTPUTS = ("logits", "prediction_logits", "last_hidden_state")
_POSITIONS = 8


@dataclass(frozen=True)
class Probe:
    """The inputs, and the model's output before the rewrite, as float64."""

    native: ResolvedModel
    inputs: dict[str, Tensor]
    before: Tensor

    @classmethod
    def of(cls, native: ResolvedModel, device: torch.device) -> "Probe":
        """Run the model on a small random input.

        Raises:
            ProcessingError: the model cannot be run on it.
        """
        errors = []
        for inputs in _inputs(native, device):
            try:
                return cls(native, inputs, _run(native, inputs))
            except Exception as error:  # whatever a forward may raise for an unsuitable input
                errors.append(error)
        raise ProcessingError(
            f"{type(native.core).__name__} could not be run on the small random input with which "
            f"processing is checked: {errors[-1]} Pass check=False to process without the check."
        ) from errors[-1]

    def require_same(self, step: str, up_to_a_constant: bool) -> None:
        """Require that the model's output changed by no more than rounding.

        Args:
            step: the step that was done last, for the message.
            up_to_a_constant: whether all logits may have shifted by the same number (after
                centring the unembedding).

        Raises:
            ProcessingError: it changed by more.
        """
        before, after = self.before, _run(self.native, self.inputs)
        if up_to_a_constant:
            before, after = before.log_softmax(-1), after.log_softmax(-1)
        deviation = relative_deviation(before, after)
        limit = _limit(_coarsest(self.native.core))
        if not deviation <= limit:
            raise ProcessingError(
                f"{step} changed what the model computes: on a small random input its outputs "
                f"moved by {deviation:.2g} of their spread (rounding explains {limit:.2g}). "
                f"Everything was restored. Either {type(self.native.core).__name__} does something "
                f"with these weights that '{self.native.architecture.name}' does not describe, or "
                f"hooks edit the run. Remove the hooks, leave the step out ({step}=False), or pass "
                "check=False to go on without the check."
            )


def relative_deviation(before: Tensor, after: Tensor) -> float:
    """The median over positions of the root mean square change, in units of the spread.

    It is the median because rounding may send single tokens to other experts.
    """
    finite = before.isfinite()
    if not torch.equal(finite, after.isfinite()):
        return float("inf")
    before, after = before.masked_fill(~finite, 0.0), after.masked_fill(~finite, 0.0)
    moved = (after - before).pow(2).mean(-1).sqrt().flatten()
    spread = before.std(-1).flatten() if before.shape[-1] > 1 else before.abs().flatten()
    return float((moved / spread.clamp_min(torch.finfo(before.dtype).tiny)).median())


def _inputs(native: ResolvedModel, device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The inputs to try: only ids, then all inputs of the model."""
    if native.main_input == "input_ids":
        ids = _ids(native, device)
        decoder = {"decoder_input_ids": ids[:, :-2]} if native.is_encoder_decoder else {}
        yield {"input_ids": ids, **decoder}
    from lensbridge.inputs.random import inputs_for

    yield {name: value.to(device) for name, value in inputs_for(native.core).items()}


def _ids(native: ResolvedModel, device: torch.device) -> Tensor:
    """Ordinary ids: no padding, and no special ids, which are usually last."""
    sizes = native.sizes
    length = min(_POSITIONS, sizes.n_ctx or _POSITIONS)
    pad = native.main.config.to_dict().get("pad_token_id")
    ordinary = [one for one in range(min(sizes.d_vocab, 97)) if one != pad][-89:]
    drawn = torch.randint(len(ordinary), (1, length), generator=torch.Generator().manual_seed(0))
    return torch.tensor(ordinary)[drawn].to(device)


def _run(native: ResolvedModel, inputs: dict[str, Tensor]) -> Tensor:
    with evaluating(native.root), torch.no_grad():
        output = native.call(inputs)
    if native.calling.is_plain:
        return native.logits(output).detach().double().cpu()
    found = spans_in(output)
    if found is None:
        found = next((output[name] for name in _OUTPUTS if name in output), None)
    if found is None:
        found = next(one for one in output.values() if isinstance(one, Tensor))
    return found.detach().double().cpu()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run without dropout; afterwards each module is in its earlier mode again."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _limit(dtype: torch.dtype) -> float:
    """The deviation that rounding explains.

    In half precision a deep model is far from itself in float32: Gemma 3 270M by 0.15 of the
    spread in bfloat16 on such an input. What a norm left out of a fold moves is 0.3 or more.
    """
    root = torch.finfo(dtype).eps ** 0.5
    return root if dtype == torch.float32 else 3 * root


def _coarsest(model: nn.Module) -> torch.dtype:
    """The floating-point type with the largest rounding error, of those in which it computes."""
    found = {one.dtype for one in model.parameters() if one.is_floating_point()}
    computed = {*found, torch.float32}  # many float64 models compute norms or rotary in float32
    return max(computed, key=lambda dtype: torch.finfo(dtype).eps)
