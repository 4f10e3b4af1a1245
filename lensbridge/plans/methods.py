"""Methods of a model that tell what a run takes before it is run."""

from __future__ import annotations

from typing import Any

import torch

from lensbridge.plans.plan import Plan
from lensbridge.plans.rehearsal import Runnable, rehearse
from lensbridge.points.point_names import NamesFilter
from lensbridge.tensors.positions import Count
from lensbridge.tensors.slices import PosSlice


class PlanMethods:
    """What a model has to plan runs."""

    def plan(
        self: Runnable,
        input: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        pos_slice: PosSlice = None,
        incl_bwd: bool = False,
        remove_batch_dim: bool = False,
        return_type: Any = "logits",
        detach: bool = True,
        count: Count = "tokens",
        **forward: Any,
    ) -> Plan:
        """What `run_with_cache` would take, in bytes, without running the model.

        A copy of the model without values is run, so weights are neither read nor moved. A model
        on the meta device is planned as on the CPU. Hooks are not in the plan; SAEs that are
        spliced in are.

        Args:
            input: a shape `(batch, tokens)`, or an input as in `run_with_cache`.
            names_filter: as in `run_with_cache`, like all other arguments.
            device: where activations are kept.
            dtype: as what they are kept.
            pos_slice: which positions are kept.
            incl_bwd: also plan the gradients and the backward pass.
            remove_batch_dim: drop the batch axis of a batch of one.
            return_type: what the run returns.
            detach: False: the activations stay in the autograd graph.
            count: what `pos_slice` counts.
            forward: other arguments of `forward`. A decoder that reads an encoder gets ids of the
                same shape, or of the shape in `decoder_input_ids`.

        Units: bytes.

        Raises:
            InputError: the input cannot be run, or what is kept depends on values.
            UnknownPointError: a name or glob that matches nothing.

        Example:
            >>> import lensbridge
            >>> plan = lensbridge.load("demo").plan((2, 10), "resid_post")
            >>> plan.total == 4 * 2 * 10 * 128 * 4  # layers, batch, tokens, d_model, float32
            True
        """
        keep = {
            "device": device,
            "dtype": dtype,
            "pos_slice": pos_slice,
            "incl_bwd": incl_bwd,
            "remove_batch_dim": remove_batch_dim,
            "return_type": return_type,
            "detach": detach,
            "count": count,
        }
        return rehearse(self, input, names_filter, keep, **forward)
