"""The stream of reversible layers: two tensors, which a layer takes and gives one by one.

Attention reads the second and is added to the first; the MLP reads the first and is added to the
second (Reformer). The point has both, `[r, b, p, m]`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.errors import HookError
from lensbridge.sites.call import Call, Chain, Phase, Stage
from lensbridge.sites.site import Site

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PairSite(Site):
    """Both streams before a layer, or after it.

    Args:
        module: the layer.
        names: the two arguments of its forward.
        phase: which side of it.
    """

    module: nn.Module
    names: tuple[str, str]
    phase: Phase

    def _stages(self) -> list[Stage]:
        find, put = (_given, _give) if self.phase == "input" else (_returned, _return)

        def act(call: Call, chain: Chain) -> None:
            new = chain.run(torch.stack(self._both(find(call, self.names))))
            if new is not None:
                first, second = (one.contiguous() for one in new.unbind(0))
                put(call, self.names, (first, second))
                call.replaced = True

        return [Stage(self.module, self.phase, 0 if self.phase == "input" else 2, act)]

    def _both(self, found: tuple[Any, ...]) -> Pair:
        """Two streams of one shape.

        Raises:
            HookError: the layer has none.
        """
        shapes = [tuple(one.shape) for one in found if isinstance(one, Tensor)]
        if len(shapes) != 2 or shapes[0] != shapes[1]:
            does = "takes" if self.phase == "input" else "gives"
            what = ", ".join(map(str, shapes)) or "no tensor"
            raise HookError(
                f"{self.name}: with residual='reversible' a layer takes and gives two streams of "
                f"one shape, and {type(self.module).__name__} {does} {what}."
            )
        return found[0], found[1]


Find = Callable[[Call, tuple[str, str]], tuple[Any, ...]]
Put = Callable[[Call, tuple[str, str], Pair], None]


def _given(call: Call, names: tuple[str, str]) -> tuple[Any, ...]:
    passed = dict(zip(names, call.args, strict=False))
    return tuple({**passed, **call.kwargs}.get(name) for name in names)


def _give(call: Call, names: tuple[str, str], streams: Pair) -> None:
    by_name = dict(zip(names, streams, strict=True))
    call.args = (*streams[: len(call.args)], *call.args[2:])
    call.kwargs = {name: by_name.get(name, one) for name, one in call.kwargs.items()}


def _places(output: Any, names: tuple[str, str]) -> tuple[int, int]:
    """Where the streams are in what the layer returns: the second keeps its argument's name."""
    fields = getattr(output, "_fields", ())
    second = fields.index(names[1]) if names[1] in fields else 1
    return 1 - second, second


def _returned(call: Call, names: tuple[str, str]) -> tuple[Any, ...]:
    output = call.output
    if not isinstance(output, tuple) or len(output) < 2:
        return (output,)
    return tuple(output[i] for i in _places(output, names))


def _return(call: Call, names: tuple[str, str], streams: Pair) -> None:
    places = dict(zip(_places(call.output, names), streams, strict=True))
    values = [places.get(i, one) for i, one in enumerate(call.output)]
    kind = type(call.output)
    call.output = kind(*values) if hasattr(call.output, "_fields") else kind(values)
