"""Which part of a model a run computes."""

from dataclasses import dataclass

from lensbridge.errors import InputError
from lensbridge.native.parts import BlockPart
from lensbridge.points.names import is_before_layers, layer_of


@dataclass(frozen=True)
class Span:
    """Which part of the model runs: layers `start` to `stop`, and whether the head does.

    `start` None: from the tokens. `stop` None: through to the head. `enough`: the run gives
    nothing, and nobody looks behind this layer.
    """

    start: int | None = None
    stop: int | None = None
    head: bool = True
    enough: BlockPart | None = None

    @classmethod
    def of(cls, start: int | None, stop: int | None, n_layers: int, head: bool) -> "Span":
        """A span from what a user wrote; negative layers count from the end.

        Raises:
            InputError: there is no such layer, or nothing between the two.
        """
        first = None if start is None else _layer("start_at_layer", start, n_layers)
        last = None if stop is None else _layer("stop_at_layer", stop, n_layers)
        if last is not None and first is not None and last <= first:
            raise InputError(f"start_at_layer={start} leaves nothing before stop_at_layer={stop}.")
        return cls(first, last, head)

    def misses(self, name: str) -> bool:
        """Whether a point lies before what runs."""
        if self.start is None:
            return False
        layer = layer_of(name)
        if layer is None:
            return is_before_layers(name)
        return layer < self.start

    def __str__(self) -> str:
        begin = "the tokens" if self.start is None else f"layer {self.start}"
        end = "the head" if self.stop is None else f"before layer {self.stop}"
        end = end if self.enough is None else f"{self.enough.path}, behind which nobody looks"
        return f" It ran from {begin} to {end}."


def _layer(what: str, layer: int, n_layers: int) -> int:
    positive = layer + n_layers if layer < 0 else layer
    if not 0 <= positive <= n_layers:
        raise InputError(f"{what}={layer}: this model has {n_layers} layers.")
    return positive
