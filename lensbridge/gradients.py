"""Gradients of a number at any points, and Jacobians of one point by another.

The model runs as it is; gradients are autograd's, of the tensors that the model computes with.
Parameters' `.grad` stay as they are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.capture import GRAD, Collector, Keep, position_axis
from lensbridge.errors import InputError
from lensbridge.hooks import Callback, Hook
from lensbridge.inputs import Prepared
from lensbridge.names import Name
from lensbridge.slices import PosSlice, taken
from lensbridge.vocabulary import NamesFilter, names_points

if TYPE_CHECKING:
    from lensbridge.model import LensModel

Objective: TypeAlias = Callable[[Tensor], Tensor] | Literal["loss"]
"""What is differentiated: a function of the logits that gives one number, or the loss."""

CHUNK_TOKENS = 1024
"""Positions, of all copies of the input together, in one pass of a Jacobian."""


class Gradients(NamedTuple):
    """What `model.gradients` gives: the number and its gradients by name."""

    value: Tensor
    gradients: ActivationCache


class GradientsAndActivations(NamedTuple):
    """The same with the activations of that run."""

    value: Tensor
    gradients: ActivationCache
    activations: ActivationCache


def number_of(of: Callable[[Tensor], Any], logits: Tensor) -> Tensor:
    """An objective's value, which has to be one number that gradients can flow from.

    Raises:
        InputError: another shape, cut off from the logits, or of a place that they lack.
    """
    try:
        value = of(logits)
    except IndexError as error:
        raise InputError(
            f"The objective reads a place that the logits do not have; they are [batch, pos, "
            f"d_vocab] = {list(logits.shape)}: {error}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"Gradients are of one number; the objective gives {found}. Sum or average it."
        )
    check_connected(value, logits)
    return value.reshape(())


def check_connected(value: Tensor, logits: Tensor) -> None:
    """Refuse a value that autograd cannot follow back to the logits.

    Raises:
        InputError: it is cut off.
    """
    if logits.requires_grad and not value.requires_grad:
        raise InputError(
            "The objective is cut off from the logits (detach, item, argmax, no_grad or numpy in "
            "it), so it has no gradient."
        )


class GradientMethods:
    """Gradients as a model offers them."""

    def gradients(
        self,
        input: Any,
        names_filter: NamesFilter,
        of: Objective = "loss",
        *,
        return_activations: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        pos_slice: PosSlice = None,
        **forward: Any,
    ) -> "Gradients | GradientsAndActivations":
        """Run the model once forward and once back, and keep gradients at some points.

        Args:
            input: as in `forward`.
            names_filter: at which points, as in `run_with_cache`.
            of: what is differentiated: a function that maps logits `[batch, pos, d_vocab]` to one
                number, or "loss".
            return_activations: also keep the activations there.
            device: where to keep them.
            dtype: as what to keep them.
            pos_slice: which positions to keep; the axis stays.
            forward: other arguments of `forward`.

        Shapes: each gradient has its activation's, and is under its activation's name.

        Raises:
            InputError: the objective gives no number, or is cut off from the logits.
            HookNeverFiredError: a named point that the run did not pass.

        Example:
            >>> import lensbridge
            >>> model = lensbridge.load("demo")
            >>> loss, grads = model.gradients("The Eiffel Tower is in", ["z", "resid_post"])
            >>> grads["z", 2].shape
            torch.Size([1, 6, 4, 32])
        """
        model = cast("LensModel", self)
        names = model.vocabulary.select(names_filter)
        collector = Collector(model.engine.sites, names, Keep(device, dtype, pos_slice))
        callbacks = collector.callbacks(names_points(names_filter), with_grad=True)
        kind: Literal["loss", "logits"] = "loss" if of == "loss" else "logits"
        with torch.enable_grad():
            result, prepared = model._forward(callbacks, input, kind, **forward)
            assert isinstance(result, Tensor)
            value = number_of((lambda loss: loss) if of == "loss" else of, result)
            collector.backward(value)
        cache = model._cache(collector, prepared)
        found = cache._like({name: cache[name + GRAD] for name in names})
        if not return_activations:
            return Gradients(value.detach(), found)
        kept = cache._like({name: cache[name] for name in names})
        return GradientsAndActivations(value.detach(), found, kept)

    def activation_x_gradient(
        self, input: Any, names_filter: NamesFilter, of: Objective = "loss", **options: Any
    ) -> ActivationCache:
        """Each activation times its gradient: to first order, what setting it to zero takes away.

        Args:
            input: as in `forward`.
            names_filter: at which points.
            of: as in `gradients`.
            options: others of `gradients`.

        Shapes: as the activations, entry by entry; sum over what should count as one.
        """
        found = self.gradients(input, names_filter, of, return_activations=True, **options)
        assert isinstance(found, GradientsAndActivations)
        grads = found.gradients
        return grads._like({name: found.activations[name] * grads[name] for name in grads})

    def jacobian(
        self,
        input: Any,
        source: Name,
        target: Name,
        *,
        positions: PosSlice = None,
        source_positions: PosSlice = None,
        chunk: int | None = None,
        **forward: Any,
    ) -> Tensor:
        """How one activation changes with another, entry by entry, for each example.

        Of a block: `model.jacobian(text, ("resid_pre", 2), ("resid_post", 2), positions=-1)`.

        Args:
            input: as in `forward`.
            source: the point that is varied; what lies behind it in the model follows.
            target: the point whose change is told.
            positions: of the target; an int takes the axis away.
            source_positions: of the source, likewise.
            chunk: rows that one backward pass gives; each is a copy of the input in the batch.
            forward: other arguments of `forward`.

        Shapes: `[batch, *target, *source]`, each without its batch axis.

        Raises:
            InputError: the target does not depend on the source, or an axis is not there.
        """
        model = cast("LensModel", self)
        end = _End.of(model, target, positions)
        begin = _End.of(model, source, source_positions)
        prepare = {k: forward.pop(k) for k in list(forward) if k not in _OF_THE_RUN}
        prepared = model._preparer.prepare(input, **prepare)
        with torch.enable_grad():
            return _jacobian(model, prepared, end, begin, chunk, forward)


_OF_THE_RUN = ("start_at_layer", "stop_at_layer")


@dataclass
class _End:
    """One end of a Jacobian: a point and which of its positions."""

    name: str
    axis: int | None
    positions: PosSlice
    value: Tensor | None = None

    @classmethod
    def of(cls, model: "LensModel", name: Name, positions: PosSlice) -> "_End":
        full = model.vocabulary.canonical(name)
        axes = model.engine.sites[full].axes
        if axes.split()[0] != "b":
            raise InputError(f"{full} has axes {axes!r}: its examples cannot be told apart.")
        axis = position_axis(axes)
        if positions is not None and axis is None:
            raise InputError(f"{full} has axes {axes!r}: there are no positions to choose from.")
        return cls(full, None if axis is None else axis - len(axes.split()), positions)

    def callback(self) -> Callback:
        def keep(value: Tensor, hook: Hook) -> Tensor:
            self.value = value if value.requires_grad else value.requires_grad_()
            return self.value

        return Callback(self.name, "edit", keep, self.name)

    @property
    def live(self) -> Tensor:
        assert self.value is not None
        return self.value

    def taken(self, value: Tensor) -> Tensor:
        return value if self.axis is None else taken(value, self.positions, self.axis)


def _jacobian(
    model: "LensModel",
    prepared: Prepared,
    target: _End,
    source: _End,
    chunk: int | None,
    forward: dict[str, Any],
) -> Tensor:
    """Rows in chunks: the batch holds a copy of the input for each, so that one pass back does."""
    batch, tokens = _size(prepared)
    copies = max(1, CHUNK_TOKENS // tokens) if chunk is None else chunk
    if copies < 1:
        raise InputError(f"chunk={chunk}: at least one row at a time.")
    given, kwargs = _repeated(prepared, copies)
    callbacks = [source.callback(), target.callback()]
    model._forward(callbacks, given, None, **kwargs, **forward)
    wanted = target.taken(target.live)
    shape = wanted.shape[1:]
    rows = wanted.reshape(copies, batch, -1)
    blocks = [source.taken(block) for block in _blocks(rows, source, target, batch)]
    found = torch.cat([one.unflatten(0, (-1, batch)) for one in blocks])[: rows.shape[-1]]
    return found.transpose(0, 1).unflatten(1, tuple(shape)) if shape else found[0]


def _blocks(rows: Tensor, source: _End, target: _End, batch: int) -> Iterator[Tensor]:
    """Shapes: rows `[copy, batch, row]` -> gradients `[copy * batch, *source]`, one at a time."""
    copies, _, count = rows.shape
    for start in range(0, count, copies):
        index = torch.arange(copies, device=rows.device)
        column = (start + index).clamp(max=count - 1)
        picked = rows[index, :, column].sum()
        (grad,) = torch.autograd.grad(picked, [source.live], retain_graph=True, allow_unused=True)
        if grad is None:
            raise InputError(
                f"{target.name} does not depend on {source.name}: it is computed before it."
            )
        yield grad


def _size(prepared: Prepared) -> tuple[int, int]:
    """Examples, and positions of all together."""
    whole = prepared.tokens if prepared.tokens is not None else prepared.embeds
    if whole is None:
        first = next(v for v in prepared.kwargs.values() if isinstance(v, Tensor))
        return first.shape[0], CHUNK_TOKENS
    return whole.shape[0], whole.shape[0] * whole.shape[1]


def _repeated(prepared: Prepared, copies: int) -> tuple[Any, dict[str, Any]]:
    """The input as often as there are copies, and its keywords."""
    if prepared.kwargs.get("past_key_values") is not None:
        raise InputError("A Jacobian runs copies of its input, and a key/value cache has none.")
    batch, _ = _size(prepared)

    def copied(value: Any) -> Any:
        many = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch
        return value.repeat(copies, *[1] * (value.ndim - 1)) if many else value

    kwargs = {name: copied(value) for name, value in prepared.kwargs.items()}
    whole = prepared.tokens if prepared.tokens is not None else prepared.embeds
    return (kwargs, {}) if whole is None else (copied(whole), kwargs)
