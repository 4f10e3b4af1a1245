"""The weights of MLPs and of mixtures of experts under the field's names."""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias, Union

from torch import Tensor

from lensbridge.errors import WeightError
from lensbridge.native.experts import Experts
from lensbridge.native.holding import Held
from lensbridge.native.parts import MLPPart, MoEPart, Role
from lensbridge.weights import effective
from lensbridge.weights.view import View, given


@dataclass(frozen=True)
class MLPView(View):
    """MLP of one layer. Calling it runs the native module on the output of its norm."""

    at: ClassVar[str] = "blocks.{i}.mlp."

    part: MLPPart

    @property
    def W_in(self) -> Tensor:
        """Shapes: `[d_model, d_mlp]`. The linear branch of a gated MLP."""
        return given(effective.share(self.part.up), effective.share_held(self.part.up))

    @property
    def W_gate(self) -> Tensor:
        """Shapes: `[d_model, d_mlp]`. Only a gated MLP has one."""
        gate = self._gate()
        return given(effective.share(gate), effective.share_held(gate))

    @property
    def W_out(self) -> Tensor:
        """Shapes: `[d_mlp, d_model]`"""
        return given(self.part.down.weight(), self.part.down.held)

    @property
    def b_in(self) -> Tensor:
        """Shapes: `[d_mlp]`. Zeros where there is no bias, as in every `b_*`."""
        return given(effective.share_of_bias(self.part.up), effective.share_held(self.part.up))

    @property
    def b_gate(self) -> Tensor:
        """Shapes: `[d_mlp]`. Only a gated MLP has one."""
        gate = self._gate()
        return given(effective.share_of_bias(gate), effective.share_held(gate))

    @property
    def b_out(self) -> Tensor:
        """Shapes: `[d_model]`"""
        return given(self.part.down.bias(), self.part.down.held)

    def _absent(self) -> set[str]:
        return set() if self.part.gate else {"W_gate", "b_gate"}

    def _gate(self) -> Role:
        if self.part.gate is None:
            raise WeightError("This model's MLP is not gated, so it has no W_gate or b_gate.")
        return self.part.gate

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: `[batch, pos, d_model]` (after the norm) -> `[batch, pos, d_model]`"""
        out = self.part.module(x)
        return out if isinstance(out, Tensor) else out[0]


@dataclass(frozen=True)
class MoEView(View):
    """A mixture of experts. The first axis of its weights is the expert: `W_in[expert]`."""

    at: ClassVar[str] = "blocks.{i}.mlp."

    part: MoEPart

    @property
    def W_in(self) -> Tensor:
        """Shapes: `[expert, d_model, d_mlp]`. The linear branch of gated experts."""
        return given(self.experts.w_in(), self._held("in"))

    @property
    def W_gate(self) -> Tensor:
        """Shapes: `[expert, d_model, d_mlp]`. Only gated experts have one."""
        self._require_gate()
        return given(self.experts.w_gate(), self._held("gate"))

    @property
    def W_out(self) -> Tensor:
        """Shapes: `[expert, d_mlp, d_model]`"""
        return given(self.experts.w_out(), self._held("out"))

    @property
    def b_in(self) -> Tensor:
        """Shapes: `[expert, d_mlp]`. Zeros where there is no bias, as in every `b_*`."""
        return given(self.experts.b_in(), self._held("in"))

    @property
    def b_gate(self) -> Tensor:
        """Shapes: `[expert, d_mlp]`"""
        self._require_gate()
        return given(self.experts.b_gate(), self._held("gate"))

    @property
    def b_out(self) -> Tensor:
        """Shapes: `[expert, d_model]`"""
        return given(self.experts.b_out(), self._held("out"))

    @property
    def shared(self) -> MLPView:
        """The MLP that all tokens use beside the experts.

        Raises:
            WeightError: this mixture has none.
        """
        if self.part.shared is None:
            raise WeightError("This mixture has no MLP that all tokens use.")
        return MLPView(self.part.shared)

    @property
    def experts(self) -> Experts:
        """The stacked experts.

        Raises:
            WeightError: they are not stacked in the usual form.
        """
        if self.part.experts is None:
            raise WeightError("The experts of this model cannot be read one by one.")
        return self.part.experts

    def _held(self, side: str) -> Held:
        return self.experts.held(self.experts.weights[side])

    def _absent(self) -> set[str]:
        gates = set() if self.part.experts and self.experts.gated else {"W_gate", "b_gate"}
        return gates if self.part.shared else gates | {"shared"}

    def _require_gate(self) -> None:
        if not self.experts.gated:
            raise WeightError("The experts of this model are not gated.")

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: `[batch, pos, d_model]` (after the norm) -> `[batch, pos, d_model]`"""
        out = self.part.module(x)
        return out if isinstance(out, Tensor) else out[0]


FeedForwardView: TypeAlias = Union[MLPView, MoEView]  # noqa: UP007
"""What a layer has after attention. `Union`, because jedi does not complete what `|` makes."""
