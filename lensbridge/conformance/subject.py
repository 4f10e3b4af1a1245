"""The subject of the checks: a model with a lens, an input, and passes that checks share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.conformance.expect import Expect, NotApplicable
from lensbridge.conformance.failures import RUN_ERRORS, told
from lensbridge.conformance.fingerprint import Fingerprint
from lensbridge.conformance.passes import (
    Block,
    Edit,
    Inputs,
    Pass,
    kind_of,
    live_tensor,
    native_output,
)
from lensbridge.hooks.callbacks import Hook
from lensbridge.hooks.hook_point import HookPoint
from lensbridge.model import LensModel
from lensbridge.native.calling import Calling
from lensbridge.native.parts import BlockPart, StackPart
from lensbridge.native.resolve import config_dict
from lensbridge.native.resolve.config_reader import ConfigReader
from lensbridge.native.settings import kernel_of, settings_of
from lensbridge.native.wrappers import core_of, unwrapped
from lensbridge.spec import Architecture, Stack

TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-4}
"""float64 has a tolerance too: many norms and rotary embeddings compute in float32 inside."""

LOOSE = 0.1
"""The tolerance in half precision."""


class Subject:
    """One model under one description, with the input that it is checked on.

    Args:
        hf_model: the model, in eval mode.
        inputs: keywords of its forward: `input_ids`, and others that it needs.
        architecture: the description, or None for the registered one.
        label: its name in reports.
        tolerance: the largest allowed difference of two values of one computation; None to choose
            it by dtype.
    """

    def __init__(
        self,
        hf_model: nn.Module,
        inputs: Inputs,
        architecture: Architecture | None = None,
        label: str = "",
        tolerance: float | None = None,
    ) -> None:
        self.hf_model = unwrapped(hf_model).eval()
        self.inputs = dict(inputs)
        self.calling = Calling.of(core_of(hf_model))
        with torch.no_grad():
            self.call(self.inputs)  # some models change themselves in their first pass
        self.before = Fingerprint.of(self.hf_model)
        self.model = LensModel(self.hf_model, lambda: None, architecture)
        self.label = label or type(self.hf_model).__name__
        self.variant = f"{self.dtype_name}, {kernel_of(core_of(hf_model))}"
        self.expect = Expect(tolerance or TOLERANCE.get(self.model.dtype, LOOSE))

    @cached_property
    def names(self) -> list[str]:
        """Every point, those that have to be named too; without towers that have no input."""
        if "pixel_values" in self.inputs:
            return self.model.hook_names
        return [n for n in self.model.hook_names if not n.startswith(("vision.", "projector."))]

    @property
    def points(self) -> dict[str, HookPoint]:
        """Every point that the inputs reach, by name."""
        return {name: self.model.hook_dict[name] for name in self.names}

    def axes(self, name: str) -> str:
        """The axes of a point of this model, in the passes of a subject."""
        axes = self.model.engine.sites[name].axes
        return f"b {axes}" if name.startswith(self._rows) else axes

    @cached_property
    def _rows(self) -> tuple[str, ...]:
        """The beginnings of points without a batch axis, which checks see as a batch of one."""
        return tuple(at for at, stack in self.stacks.items() if stack.in_one_row)

    @property
    def merges_pictures(self) -> bool:
        """Whether images replace some of the ids, so that the ids cannot be changed."""
        if not {"pixel_values", "input_ids"} <= set(self.inputs):
            return False
        token = self.image_token
        merged = token is not None and bool((self.inputs["input_ids"] == token).any())
        return merged or self.model.native.projector is not None

    @property
    def image_token(self) -> int | None:
        """The id that images replace."""
        places: dict[str, Any] = config_dict(self.model.native.core)
        return places.get("image_token_id", places.get("image_token_index"))

    @cached_property
    def has_head(self) -> bool:
        """Whether there are logits."""
        return "hook_logits" in self.names

    @property
    def dtype_name(self) -> str:
        """`float32`, `bfloat16`..."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def is_half(self) -> bool:
        """Whether sums are too coarse to be compared."""
        return self.model.dtype not in TOLERANCE

    @cached_property
    def accepted(self) -> frozenset[str]:
        """Keywords of the model's forward."""
        return frozenset(signature(self.model.native.core.forward).parameters)

    @property
    def tokens(self) -> Tensor:
        """The ids `[batch, pos]`."""
        return self.inputs["input_ids"]

    @cached_property
    def parts(self) -> dict[str, BlockPart]:
        """Every block's modules by its prefix, `blocks.0.`."""
        return {
            f"{stack.prefix}.{i}.": block
            for stack in self.model.native.stacks
            for i, block in enumerate(stack.blocks)
        }

    @cached_property
    def stacks(self) -> dict[str, StackPart]:
        """Every stack by the beginning of its names outside the blocks: nothing, `encoder.`..."""
        main, *towers = self.model.native.stacks
        return {"": main, **{f"{tower.prefix.partition('.')[0]}.": tower for tower in towers}}

    def ids_of(self, at: str) -> Tensor | None:
        """The ids that a stack reads, or None."""
        if at not in ("", "encoder."):
            return None
        decodes = at == "" and "decoder_input_ids" in self.inputs
        return self.inputs.get("decoder_input_ids" if decodes else "input_ids")

    def samples(self, *points: str) -> list[Block]:
        """The last block of each kind that has all of these points; kinds differ in points."""
        kinds: dict[tuple[str, frozenset[str]], Block] = {}
        for block in self.clean.having(*points):
            own = frozenset(kind_of(n) for n in self.names if n.startswith(block.at))
            kinds[kind_of(block.at), own] = block
        return list(kinds.values())

    def weight(self, name: str) -> Tensor | None:
        """A weight by name, or None."""
        return self.model.weight(name).detach() if name in self._weights else None

    @cached_property
    def _weights(self) -> frozenset[str]:
        return frozenset(self.model.weight_names)

    # --- passes ------------------------------------------------------------------------------

    def bare(self, inputs: Inputs | None = None, **more: Any) -> Tensor:
        """The output of the model alone."""
        with torch.no_grad():
            return self.live(self.call({**(inputs or self.inputs), **more})).detach()

    def live(self, output: Any) -> Tensor:
        """The logits of a native output, or the first thing that it has, in the graph."""
        return self.model.native.logits(output) if self.calling.is_plain else live_tensor(output)

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """What the model alone returns."""
        return self.calling.call(self.hf_model, inputs)

    def read(
        self,
        names: Iterable[str] | None = None,
        edits: Sequence[Edit] = (),
        inputs: Inputs | None = None,
        **more: Any,
    ) -> Pass:
        """Run with edits, and read points after them."""
        wanted = self.names if names is None else list(names)
        with (
            torch.no_grad(),
            self.model.hooks(fwd_hooks=[(name, self._seen(fn)) for name, fn in edits]),
            native_output(self.hf_model, self.live) as out,
        ):
            _, cache = self.model.run_with_cache(
                dict(inputs or self.inputs),
                names_filter=wanted,
                return_type="logits" if self.has_head else None,
                return_cache_object=False,
                **more,
            )
        rows = (name for name in cache if name.startswith(self._rows))
        return Pass(out[-1], {**cache, **{name: cache[name].unsqueeze(0) for name in rows}})

    def _seen(self, edit: Callable[[Tensor, Hook], Tensor | None]) -> Any:
        """An edit that sees each value with a batch axis."""

        def act(value: Tensor, hook: Hook) -> Tensor | None:
            if not hook.name.startswith(self._rows):
                return edit(value, hook)
            new = edit(value.unsqueeze(0), hook)
            return None if new is None else new.squeeze(0)

        return act if self._rows else edit

    def run(self, edits: Sequence[Edit], inputs: Inputs | None = None) -> Tensor:
        """The output with edits."""
        return self.read([], edits, inputs).output

    @cached_property
    def clean(self) -> Pass:
        """Every point on the input, without edits."""
        return self.read()

    @property
    def unreadable(self) -> str:
        """The reason why the points cannot be read at all; "" if they can."""
        try:
            return self._turned if self.clean.values else "the model has no points"
        except RUN_ERRORS as error:
            return told(error)

    @property
    def _turned(self) -> str:
        """What to say of a stream that has positions first, if the description does not say it."""
        ids, embedded = self.ids_of(""), self.clean.values.get("hook_embed")
        if ids is None or embedded is None or ids.ndim != 2 or embedded.ndim != 3:
            return ""
        if embedded.shape[:2] == ids.shape or embedded.shape[:2] != ids.T.shape:
            return ""
        return (
            f"hook_embed is {tuple(embedded.shape)} where the ids are {tuple(ids.shape)}: its "
            "positions come first, and the description has to say streams='positions_first'."
        )

    @cached_property
    def one_token(self) -> Pass:
        """Every point on an input of one position."""
        one = {name: value[:, :1] for name, value in self.inputs.items() if value.ndim == 2}
        names = [n for n in self.names if n.endswith(("hook_v", "hook_z", "hook_pattern"))]
        inputs = {**self.inputs, **one}
        try:
            self.bare(inputs)
        except RUN_ERRORS as error:
            raise NotApplicable("the bare model does not run on one position") from error
        return self.read(names, inputs=inputs)

    @cached_property
    def is_causal(self) -> bool:
        """Whether later positions do not change the bare model's outputs."""
        name = "decoder_input_ids" if "decoder_input_ids" in self.inputs else "input_ids"
        if name not in self.inputs or self.merges_pictures:
            return False
        changed = self.inputs[name].clone()
        changed[:, -1] = torch.where(changed[:, -1] == 7, 8, 7)
        before, after = self.bare(), self.bare({**self.inputs, name: changed})
        return before.ndim == 3 and self.expect.are_close(after[:, :-1], before[:, :-1])


def config_of(subject: Subject, stack: Stack) -> ConfigReader:
    """The config that has the sizes of a stack."""
    core, name = subject.model.native.core, subject.model.architecture.name
    return ConfigReader(core, name, "", settings_of(core)).at_config(stack.config)
