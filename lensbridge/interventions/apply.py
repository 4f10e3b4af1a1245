"""Apply: what a function of the user's own makes of the run's value."""

from dataclasses import dataclass

from torch import Tensor

from lensbridge.errors import EditError, InputError
from lensbridge.interventions.functions import EditFunction, function_of
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.region import Region
from lensbridge.interventions.source import SourceValues


@dataclass(frozen=True, eq=False, repr=False)
class Apply(Intervention):
    """What a function makes of the run's value.

    The function is given the part that `positions`, `heads` and the others name: examples,
    positions, heads (if the point has any), entries. With a `subspace`, the entries are the
    coordinates along it. In generation it is called in each pass with the positions of that pass.
    A sweep may call it more often than once for a run, so it should do nothing else than compute.

    Args:
        fn: the function, or the name under which it was registered (`register_function`). It gives
            the new value, of the same shape, or changes the one that it is given and gives None.
        by_row: whether the function treats each example by itself. Sweeps inside `model.intervene`
            then run in batches too.

    Shapes: fn `[example, pos, (head), entry]` -> the same.

    Raises:
        InputError: it is neither a function nor the name of one.
        EditError: in a run, it gives something else than a tensor of that shape.

    Example:
        >>> import torch, lensbridge
        >>> from lensbridge.interventions import Apply
        >>> model = lensbridge.load("demo")
        >>> rectified = Apply(("z", 1), torch.relu, heads=[0, 2], positions="last")
        >>> with model.intervene(rectified):
        ...     _, cache = model.run_with_cache("The Eiffel Tower is in the city of")
        >>> cache["z", 1][0, -1].amin(-1) >= 0
        tensor([ True, False,  True, False])
    """

    fn: EditFunction | str
    by_row: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        found = function_of(self.fn) if isinstance(self.fn, str) else self.fn
        if not callable(found):
            raise InputError(
                f"fn is a function of the value, or the name of one, not a {type(found).__name__}."
            )
        self._set("fn", found)

    @property
    def mixes_positions(self) -> bool:
        return True

    @property
    def works_by_row(self) -> bool:
        return self.by_row and self.examples is None

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        assert not isinstance(self.fn, str)
        value = region.value.clone()
        new = self.fn(value)
        if new is None:
            return value
        if not isinstance(new, Tensor) or new.shape != value.shape:
            found = f"shape {tuple(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
            raise EditError(
                f"Apply at {region.place.name}: the function gives {found}; it is given, and has "
                f"to give, a tensor of shape {tuple(value.shape)}."
            )
        return new
