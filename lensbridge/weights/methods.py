"""Weights of the whole model: `model.W_Q[5, 3]`, `model.weight("blocks.5.attn.W_Q")`."""

from abc import abstractmethod
from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import Tensor

from lensbridge.errors import WeightError, suggest
from lensbridge.native.linear import State
from lensbridge.tensors.layer_stack import LayerStack
from lensbridge.weights.components import Components
from lensbridge.weights.description import DescribedWeights, described
from lensbridge.weights.entry import Weight
from lensbridge.weights.views import BlocksView, EmbedView, NormView, UnembedView


class WeightMethods:
    """Methods of `LensModel` for weights.

    Stacks over layers are lazy: `model.W_Q[5, 3]` reads only layer 5, as a view of the native
    parameter where the layout allows. A bias that the model does not have is zeros.
    """

    @property
    @abstractmethod
    def components(self) -> Components:
        """Every part of the model under the field's names."""

    @property
    def blocks(self) -> BlocksView:
        """The layers."""
        return self.components.blocks

    @property
    def embed(self) -> EmbedView:
        """The token embedding."""
        return self.components.embed

    @property
    def pos_embed(self) -> EmbedView:
        """The learned positions."""
        return self.components.pos_embed

    @property
    def ln_final(self) -> NormView:
        """The final norm."""
        return self.components.ln_final

    @property
    def unembed(self) -> UnembedView:
        """The language-model head."""
        return self.components.unembed

    def weight(self, name: str) -> Tensor:
        """A weight by its name, such as `blocks.5.attn.W_Q`.

        Raises:
            WeightError: the model has no such weight.
        """
        return self._known(name).read()

    def weight_state(self, name: str) -> State:
        """How a weight is held: "plain", "quantized", "offloaded"...

        Reads of a "plain" one are views, which can be written to; all others are copies, which
        raise. `describe_weights` says what holds each.
        """
        return self._known(name).source.state

    def describe_weights(self, name: str | None = None) -> DescribedWeights:
        """How each weight is held, what it takes, how it is read, and whether it can be written to.

        Plain weights can be written to. Those that are sharded over processes, quantized, adapted,
        offloaded, or that their module uses in a way of its own, are read as whole float copies,
        and a write raises. Each module is run once on two rows, to see that it uses its weight as
        it is; nothing else is fetched, gathered or run.

        Args:
            name: a name, or a pattern with `*`: "blocks.0.*". None is all of them.

        Example:
            >>> import lensbridge
            >>> model = lensbridge.load("demo")
            >>> description = model.describe_weights()
            >>> description.counts
            {'plain': 70}
            >>> description["blocks.0.attn.W_Q"].shape
            (4, 128, 32)
            >>> print(model.describe_weights("embed.*"))
            weight     layers      shape  dtype    device  held   module      bytes  read
            embed.W_E       1  564 x 128  float32  cpu     plain  Embedding  289 kB  as a view
        """
        return described(
            self.components.weights, lambda one: name is None or fnmatchcase(one, name)
        )

    @property
    def weight_names(self) -> list[str]:
        """The names of all weights."""
        return list(self.components.weights)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight with its name."""
        return ((name, one.read()) for name, one in self.components.weights.items())

    def _known(self, name: str) -> Weight:
        weights = self.components.weights
        if name not in weights:
            raise WeightError(f"There is no weight {name!r}.{suggest(name, weights)}")
        return weights[name]

    def weight_stack(self, name: str) -> LayerStack:
        """One weight of every layer of the main stack, by its name in a block.

        Raises:
            WeightError: not every layer has it.
        """
        weights, count = self.components.weights, len(self.components.blocks)
        prefix = self.components.native.main.prefix
        names = [f"{prefix}.{i}.{name}" for i in range(count)]
        there = [i for i, one in enumerate(names) if one in weights]
        if not there:
            raise WeightError(f"This model has no {names[0]}, so it cannot be stacked.")
        if len(there) < count:
            raise WeightError(
                f"Only layers {there} have {name}, so it cannot be stacked over all {count}. "
                f"Take them one by one: model.weight({names[there[0]]!r})."
            )
        return LayerStack.of([weights[one].read for one in names])

    @property
    def W_E(self) -> Tensor:
        """Shapes: `[d_vocab, d_model]`"""
        return self.embed.W

    @property
    def W_pos(self) -> Tensor:
        """Shapes: `[n_ctx, d_model]`"""
        return self.pos_embed.W

    @property
    def W_U(self) -> Tensor:
        """Shapes: `[d_model, d_vocab]`"""
        return self.unembed.W_U

    @property
    def b_U(self) -> Tensor:
        """Shapes: `[d_vocab]`"""
        return self.unembed.b_U

    @property
    def W_Q(self) -> LayerStack:
        """Shapes: `[layer, head, d_model, d_head]`"""
        return self.weight_stack("attn.W_Q")

    @property
    def W_K(self) -> LayerStack:
        """Shapes: `[layer, kv_head, d_model, d_head]`, as stored."""
        return self.weight_stack("attn.W_K")

    @property
    def W_V(self) -> LayerStack:
        """Shapes: `[layer, kv_head, d_model, d_head]`, as stored."""
        return self.weight_stack("attn.W_V")

    @property
    def W_K_expanded(self) -> LayerStack:
        """Shapes: `[layer, head, d_model, d_head]`: one for each query head."""
        return LayerStack.of([lambda b=b: b.attn.W_K_expanded for b in self.blocks])  # type: ignore[misc]

    @property
    def W_V_expanded(self) -> LayerStack:
        """Shapes: `[layer, head, d_model, d_head]`: one for each query head."""
        return LayerStack.of([lambda b=b: b.attn.W_V_expanded for b in self.blocks])  # type: ignore[misc]

    @property
    def W_O(self) -> LayerStack:
        """Shapes: `[layer, head, d_head, d_model]`"""
        return self.weight_stack("attn.W_O")

    @property
    def b_Q(self) -> LayerStack:
        """Shapes: `[layer, head, d_head]`"""
        return self.weight_stack("attn.b_Q")

    @property
    def b_K(self) -> LayerStack:
        """Shapes: `[layer, kv_head, d_head]`"""
        return self.weight_stack("attn.b_K")

    @property
    def b_V(self) -> LayerStack:
        """Shapes: `[layer, kv_head, d_head]`"""
        return self.weight_stack("attn.b_V")

    @property
    def b_O(self) -> LayerStack:
        """Shapes: `[layer, d_model]`"""
        return self.weight_stack("attn.b_O")

    @property
    def W_in(self) -> LayerStack:
        """Shapes: `[layer, d_model, d_mlp]`; of experts `[layer, expert, d_model, d_mlp]`."""
        return self.weight_stack("mlp.W_in")

    @property
    def W_gate(self) -> LayerStack:
        """Shapes: `[layer, d_model, d_mlp]`. Only gated MLPs have one."""
        return self.weight_stack("mlp.W_gate")

    @property
    def W_out(self) -> LayerStack:
        """Shapes: `[layer, d_mlp, d_model]`"""
        return self.weight_stack("mlp.W_out")

    @property
    def b_in(self) -> LayerStack:
        """Shapes: `[layer, d_mlp]`"""
        return self.weight_stack("mlp.b_in")

    @property
    def b_gate(self) -> LayerStack:
        """Shapes: `[layer, d_mlp]`. Only gated MLPs have one."""
        return self.weight_stack("mlp.b_gate")

    @property
    def b_out(self) -> LayerStack:
        """Shapes: `[layer, d_model]`"""
        return self.weight_stack("mlp.b_out")
