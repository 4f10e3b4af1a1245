"""Kinds of intervention that write values of other examples, or of another run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.inputs.special import Excluded
from lensbridge.interventions.columns import Positions, normalized, repeated
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.region import Region
from lensbridge.interventions.source import Source, SourceValues


def blended(region: Region, new: Tensor, inside: Tensor) -> Tensor:
    """The new value where there is one, and the region's own elsewhere."""
    shape = inside.shape + (1,) * (region.value.ndim - 2)
    return torch.where(inside.reshape(shape), new, region.value)


@dataclass(frozen=True, eq=False, repr=False)
class Mean(Intervention):
    """A mean in place of the run's value. Padding is left out of it.

    Args:
        source: the activations that are averaged; None: those of the run itself, in the same pass.
        over: "examples": the mean of the examples at the same position (each at its own, if
            positions are given for each); "all": the mean of all examples and positions, so that
            the source may have another length.
        exclude_special_tokens: for the mean over "all": leave BOS, EOS, padding and separators out
            of it, or tokens with these ids. Where there are no other tokens, they count. A source
            that is no cache does not say which tokens it has, so all of them count.
    """

    source: Source | None = None
    over: Literal["examples", "all"] = "examples"
    exclude_special_tokens: Excluded = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.over not in ("examples", "all"):
            raise InputError(f"over is 'examples' or 'all', not {self.over!r}.")
        if not isinstance(self.exclude_special_tokens, bool):
            self._set("exclude_special_tokens", tuple(map(int, self.exclude_special_tokens)))

    @property
    def left_out(self) -> Excluded:
        return self.exclude_special_tokens if self.over == "all" else False

    @property
    def origin(self) -> Source | None:
        return self.source

    @property
    def pairs_columns(self) -> bool:
        return self.over == "examples"

    @property
    def mixes_examples(self) -> bool:
        return self.source is None

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        if self.over == "all":
            return self._of_all(region, given).to(region.value).expand_as(region.value)
        if given is None:
            mean = _mean(region.value, region.mask, (0,))
            return mean.expand_as(region.value)
        value, inside, real = given.paired(region, None)
        mean = _mean(value, real.to(value.device).expand(len(value), -1), (0,))
        return blended(region, mean, inside.any(0, keepdim=True))

    def _of_all(self, region: Region, given: SourceValues | None) -> Tensor:
        place, window = region.place, region.window if given is None else given.window
        value = place.inner(region.whole, window) if given is None else given.seen(place)
        return _mean(value, window.counted(value.device), (0, 1))


def _mean(value: Tensor, real: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mean of the entries of tokens. Shapes: `[b, n, ...]`, `[b, n]` -> averaged axes are 1."""
    weight = real.to(value).reshape(*real.shape, *[1] * (value.ndim - 2))
    kept = torch.where(weight > 0, value, torch.zeros_like(value))
    wide = torch.promote_types(value.dtype, torch.float32)  # sums of many values need it
    count = weight.sum(axes, keepdim=True, dtype=wide).clamp(min=1)
    return (kept.sum(axes, keepdim=True, dtype=wide) / count).to(value.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class Resample(Intervention):
    """The value of another example, drawn with a seed.

    Within the run, no example keeps its own value. From a source, each example takes one of the
    source's, different ones as long as there are enough. The draw depends only on the seed and the
    number of examples, so all sites, columns and passes of an intervention take the same example.

    Args:
        source: the activations that values are taken from; None: those of the run itself.
        seed: of the draw.
    """

    source: Source | None = None
    seed: int = 0
    on_integers: ClassVar[bool] = True

    @property
    def origin(self) -> Source | None:
        return self.source

    @property
    def mixes_examples(self) -> bool:
        return self.source is None

    @property
    def works_by_row(self) -> bool:
        return False

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        rows = len(region.value)
        if given is None:
            partners = others(rows, self.seed).to(region.value.device)
            inside = region.inside.expand(rows, -1)
            return blended(region, region.value[partners], inside[partners])
        value, inside, _ = given.paired(region, None)
        chosen = drawn(len(value), rows, self.seed).to(value.device)
        kept = inside if len(inside) == 1 else inside[chosen.to(inside.device)]
        return blended(region, value[chosen], kept)

    def check_rows(self, rows: int, what: str) -> None:
        if self.source is None and rows < 2:
            raise InputError(
                f"{what}: Resample takes the value of another example, and the input has one "
                "example. Give more examples, or a source."
            )


def others(rows: int, seed: int) -> Tensor:
    """Another example for each example: a random cycle. Shapes: `[rows]`"""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    found = torch.empty_like(order)
    found[order] = order.roll(-1)
    return found


def drawn(size: int, rows: int, seed: int) -> Tensor:
    """`rows` numbers of `size` examples, without repetition as long as there are enough."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-rows // size)
    return torch.cat([torch.randperm(size, generator=generator) for _ in range(rounds)])[:rows]


@dataclass(frozen=True, eq=False, repr=False)
class Swap(Intervention):
    """An interchange: each example gets the value of its partner.

    With a source, the partner of example i is example i of the source (or its only one), at
    `source_positions`. Without one, examples of the run are partners in pairs; if positions are
    given for each example, each takes the value at its partner's positions.

    One example can read another in the same pass: `Swap(site, partners=[0], examples=[1])`.

    Args:
        source: the activations of another run; None: interchange within this run.
        source_positions: where in the source, or in the partners; None: at the same positions.
        partners: for each example that is edited, the one of the run whose value it takes; None: 0
            and 1 are partners, then 2 and 3, and so on.

    Example:
        >>> import lensbridge
        >>> from lensbridge.interventions import Swap
        >>> model = lensbridge.load("demo")
        >>> prompts = [f"The {name} Tower is in the city of" for name in ("Eiffel", "Galata")]
        >>> reads = Swap(("resid_post", 1), examples=[1], partners=[0], positions=2)
        >>> logits = model.run_with_interventions(prompts, reads)
        >>> [model.to_single_str_token(one) for one in logits[:, -1].argmax(-1)]
        [' Paris', ' Paris']
    """

    source: Source | None = None
    source_positions: Positions = None
    partners: Sequence[int] | None = None
    on_integers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("source_positions", normalized(self.source_positions))
        if self.partners is not None:
            self._set("partners", tuple(int(partner) for partner in self.partners))
        if self.source is None and self.partners is None and self.source_positions is not None:
            raise InputError(
                "source_positions needs a source or partners. Or give positions for each example."
            )
        if self.source is not None and self.partners is not None:
            raise InputError("partners are examples of the run itself, so they go with no source.")

    @property
    def origin(self) -> Source | None:
        return self.source

    @property
    def pairs_examples(self) -> bool:
        return True

    @property
    def mixes_examples(self) -> bool:
        return self.source is None

    @property
    def other_positions(self) -> Any:
        return self.source_positions

    def act(self, region: Region, given: SourceValues | None) -> Tensor:
        rows = len(region.value)
        if given is None:
            partners = self._in_pairs(rows).to(region.value.device)
            inside = region.inside.expand(rows, -1)
            return blended(region, region.value[partners], inside[partners])
        value, inside, _ = given.paired(region, self.source_positions)
        what = f"{region.place.name}: the source"
        return blended(region, repeated(value, rows, what), repeated(inside, rows, what))

    def _in_pairs(self, rows: int) -> Tensor:
        if self.partners is not None:
            return torch.tensor(self.partners) % rows
        return torch.arange(rows).unflatten(0, (-1, 2)).flip(-1).flatten()

    def check_rows(self, rows: int, what: str) -> None:
        if self.source is not None:
            return
        if self.partners is None and rows % 2:
            raise InputError(
                f"{what}: Swap interchanges examples in pairs, and the input has {rows} examples. "
                "Give partners, or a source."
            )
        if self.partners is not None and len(self.partners) != rows:
            raise InputError(
                f"{what}: there are {len(self.partners)} partners for {rows} examples. Name one "
                "for each, or say with examples=... which ones take another's value."
            )

    def others(self, count: int, what: str) -> tuple[int, ...] | None:
        given = self.partners
        for partner in given or ():
            if not -count <= partner < count:
                raise InputError(
                    f"{what}: partner {partner} is out of range; there are {count} examples."
                )
        apart = self.examples is not None or self.source_positions is not None
        return None if given is None or not apart else tuple(one % count for one in given)
