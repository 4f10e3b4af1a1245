"""The model's own final norm and head, which turn the residual stream into logits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.errors import LensbridgeError
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Hook
from lensbridge.hooks.skip import layers_skipped
from lensbridge.native.holding import execution_device
from lensbridge.native.linear import fetch

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
"""How far logits may differ, relative to the largest: norms compute in float32 inside."""

LOOSE = 5e-2
"""The same in half precision."""


@dataclass(frozen=True)
class Head:
    """Computes logits from residual streams of one model; `head_of` makes one.

    It calls the final norm and then the head. Where the head is more than one projection (BERT's
    transform), it runs the whole model with the layers skipped instead.
    """

    model: HookedModel

    def logits(self, vectors: Tensor, apply_ln: bool = True) -> Tensor:
        """Logits of vectors, read like the stream after the last layer.

        Args:
            vectors: vectors with the width of the stream.
            apply_ln: whether they go through the final norm first.

        Shapes: `[row, d_model]` -> `[row, d_vocab]`

        Raises:
            LensbridgeError: `apply_ln=False` where the norm is inside the head.
        """
        if not self.model.native.has_deep_head:
            cap, logits = self.model.native.logit_softcap, self.uncapped(vectors, apply_ln)
            return logits if cap is None else torch.tanh(logits / cap) * cap
        if not apply_ln:
            raise LensbridgeError(
                "apply_ln=False cannot be done: the head of this model is more than a projection, "
                "such as a transform with a norm inside. Pass apply_ln=True."
            )
        return self.native(vectors)

    def uncapped(self, vectors: Tensor, apply_ln: bool = True) -> Tensor:
        """Logits before any soft-cap, where the head is one projection.

        Shapes: `[row, d_model]` -> `[row, d_vocab]`
        """
        native = self.model.native
        assert native.unembed is not None
        stream = vectors.unsqueeze(0)
        if apply_ln and native.ln_final is not None:
            stream = native.ln_final.module.forward(_placed(stream, native.ln_final.module))
        head = native.unembed.module
        logits = head.forward(_placed(stream * native.head_scale, head))[0]
        if native.unembed_bias is not None:
            logits = logits + fetch(*native.unembed_bias).flatten().to(logits.device)
        return logits * native.logit_scale

    def native(self, vectors: Tensor) -> Tensor:
        """Logits of the model's own forward, with the layers skipped and the vectors after them.

        Shapes: `[row, d_model]` -> `[row, d_vocab]`
        """
        model, parts = self.model, self.model.native
        last = f"{parts.main.prefix}.{len(parts.blocks) - 1}.hook_resid_post"
        ids = torch.zeros(len(vectors), 1, dtype=torch.long, device=model.device)
        decoder: dict[str, Any] = {"decoder_input_ids": ids} if parts.is_encoder_decoder else {}

        def put(stream: Tensor, hook: Hook) -> Tensor:
            # at every position: a model may put others beside the token
            return vectors.unsqueeze(1).to(stream).repeat(1, stream.shape[1], 1)

        with layers_skipped(parts.blocks):
            logits = model.run_with_hooks(ids, fwd_hooks=[(last, put)], **decoder)
        return logits[:, 0]

    def check(self, vectors: Tensor) -> None:
        """Compare the logits of vectors with the model's own forward, unless there are hooks.

        Shapes: `[row, d_model]`

        Raises:
            LensbridgeError: they differ.
        """
        model, parts = self.model, self.model.native
        hooked = not model.engine.is_idle or model.engine.current is not None
        if not parts.has_deep_head and parts.main_input == "input_ids" and not hooked:
            require_equal(self.logits(vectors), self.native(vectors), model)


def require_equal(found: Tensor, own: Tensor, model: HookedModel) -> None:
    """Compare logits that were computed from the stream with the model's own.

    Raises:
        LensbridgeError: they differ by more than rounding.
    """
    off = float((found.to(own) - own).abs().max())
    allowed = TOLERANCE.get(model.dtype, LOOSE) * max(1.0, float(own.abs().max()))
    if not off <= allowed:
        raise LensbridgeError(
            f"The final norm and head of {type(model.native.core).__name__}, applied to the stream "
            f"after the last layer, differ from the model's own logits by {off:.2g}. Something "
            "else happens in between: a hook that edits the final norm or the logits, or a part "
            "that the description (model.architecture) leaves out."
        )


def head_of(model: HookedModel) -> Head:
    """The head of a model.

    Raises:
        LensbridgeError: it has none, or one that does not read each position by itself.
    """
    native, kind = model.native, type(model.native.core).__name__
    if native.unembed is None and not native.has_unnamed_head:
        raise LensbridgeError(
            f"{kind} has no language-model head, so there are no logits. Load the class with a "
            "head."
        )
    if native.logits_axes != "b p v":
        raise LensbridgeError(
            f"The head of {kind} reads one vector for the whole input, so a single position has no "
            "logits."
        )
    if native.main.residual_axes != "b p m":
        raise LensbridgeError(
            f"{kind} has several residual streams [{native.main.residual_axes}], and its head "
            "reads a mixture of them, so no single stream can be read as logits."
        )
    return Head(model)


def _placed(value: Tensor, module: nn.Module) -> Tensor:
    """A value on the device where a module runs."""
    held = next(module.parameters(), None)
    device = execution_device(module) or (held.device if held is not None else value.device)
    return value.to(device) if device.type != "meta" else value
