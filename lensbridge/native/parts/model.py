"""A native model, resolved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from lensbridge.native.calling import Calling, logits_in
from lensbridge.native.linear import Linear
from lensbridge.native.norm import Norm
from lensbridge.native.parts.stack import BlockPart, Sizes, StackPart
from lensbridge.native.pieces import Sharding
from lensbridge.spec import Architecture


@dataclass(frozen=True)
class Override:
    """Code that a description does not speak of.

    Args:
        where: path of the first module that runs it; "" is the model itself.
        what: the code, in words.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where or 'the model'}: {self.what}"


LabelKind: TypeAlias = Literal["position", "input", "other"]
"""Whether a label is of each position, each input (a class, or numbers), or something else."""


@dataclass(frozen=True)
class ResolvedModel:
    """One model, resolved.

    Args:
        root: the object that is called: the model, or a PEFT wrapper around it.
        core: the transformers model inside it.
        rivals: what else claims the model's class, and is not in use.
        overrides: code that a registered description does not speak of.
        main: the stack whose output the head reads; `towers` are the others.
        act_fn: the activation of the main stack's MLPs, under its name in the config.
        main_input: what the input is: `input_ids`, `pixel_values`, `input_features`.
        calling: how `core.forward` is called.
        returns_logits: whether the output has logits, also those of a head that is not described.
        logits_axes: "b p v", or "b v" where the head reads one vector for the whole input.
        is_encoder_decoder: whether the input goes to a tower and the main stack has another.
        predicts_next: whether the logits at a position are for the next token, which the model has
            not read there: then an input has a loss without labels.
        label_kind: what the `labels` of `core.forward` are of; None where it takes none.
        paths: module -> its dotted path in `core`, for messages.
        checkpointers: the modules with a `gradient_checkpointing` switch.
        sharding: which native tensors are in pieces on several ranks; None: none is.
    """

    root: nn.Module
    core: nn.Module
    architecture: Architecture
    plugin: str
    rivals: tuple[str, ...]
    overrides: tuple[Override, ...]
    main: StackPart
    towers: tuple[StackPart, ...]
    act_fn: str
    unembed: Linear | None
    returns_logits: bool
    unembed_bias: tuple[nn.Module, str] | None
    head_scale: float
    logit_scale: float
    logit_softcap: float | None
    head_hidden: nn.Module | None
    pooler: nn.Module | None
    projector: nn.Module | None
    main_input: str
    calling: Calling
    logits_axes: str
    is_encoder_decoder: bool
    predicts_next: bool
    label_kind: LabelKind | None
    paths: dict[nn.Module, str]
    checkpointers: tuple[Any, ...]
    sharding: Sharding | None = None

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """Call the model with inputs under the names that lensbridge has for them."""
        return self.calling.call(self.root, inputs)

    @property
    def has_unnamed_head(self) -> bool:
        """Whether it returns logits of a head that the description says why it leaves out."""
        left_out = self.unembed is None and "unembed" in self.architecture.undescribed
        return left_out and self.returns_logits

    @property
    def has_deep_head(self) -> bool:
        """Whether more than one projection makes the logits of the stream, or of its norm."""
        return self.head_hidden is not None or self.has_unnamed_head

    @property
    def head_width(self) -> int | None:
        """Logits for each position; None where nothing says how many."""
        return self.unembed.n_out if self.unembed is not None else self.sizes.d_vocab or None

    def logits(self, output: Any) -> Tensor:
        """The head's output in what the model returns.

        Raises:
            InputError: there are no logits.
        """
        return logits_in(output, self.head_width)

    @property
    def stacks(self) -> tuple[StackPart, ...]:
        """Every stack, the main one first."""
        return (self.main, *self.towers)

    def front_of(self, stack: StackPart) -> str:
        """The beginning of names outside a stack's layers: nothing, `encoder.` or `vision.`."""
        return "" if stack is self.main else stack.prefix.removesuffix(".blocks") + "."

    @property
    def ln_final(self) -> Norm | None:
        """Of the main stack."""
        return self.main.ln_final

    @property
    def sizes(self) -> Sizes:
        """Of the main stack."""
        return self.main.sizes

    @property
    def blocks(self) -> tuple[BlockPart, ...]:
        """Of the main stack."""
        return self.main.blocks
