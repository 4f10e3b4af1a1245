"""The logit lens as a heatmap: what each layer would predict at each position."""

from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from lensbridge.analysis.positions import Positions
from lensbridge.analysis.readout import COLUMN, LogitReadout, decoded
from lensbridge.errors import InputError
from lensbridge.inputs.tokens import Tokens
from lensbridge.viz import Heatmap, Lines, Picture, Scale
from lensbridge.viz.labels import label_of
from lensbridge.viz.scale import Row

SHOWN = 5
"""How many tokens the tip of a cell lists."""
MOST_TEXTS = 64
"""Columns up to which tokens are written into the cells."""


LensQuantity: TypeAlias = Literal["values", "kl", "entropy", "rank"]
"""What a picture shows of each layer."""


class Lens(Protocol):
    """What is drawn: a `LogitLensResult`."""

    @property
    def readout(self) -> LogitReadout:
        """Values, ids, ranks."""

    @property
    def labels(self) -> list[str]:
        """The label of each row."""

    @property
    def where(self) -> Positions:
        """The positions that were read."""

    @property
    def input_ids(self) -> Tensor | None:
        """The tokens there. Shapes: `[batch, pos]`"""

    def target_values(self, target: str | int | None = None) -> Tensor:
        """The values of one token. Shapes: `[row, batch]`, or `[row, batch, pos]`"""

    def rank_trajectory(self, target: str | int | None = None) -> Tensor:
        """The rank of one token. Shapes: as `target_values`"""

    @property
    def entropy(self) -> Tensor:
        """Shapes: as `target_values`"""

    @property
    def kl(self) -> Tensor:
        """Shapes: as `target_values`"""


def of_top_tokens(result: Lens, example: int, title: str) -> Heatmap:
    """The likeliest tokens in the cells, on the colour of their values.

    Raises:
        InputError: a part of the vocabulary was read.
    """
    values, ids, unit = _ranked(result, example)
    texts = _decoded(ids, result.readout.tokenizer)
    columns = _columns(result, example)
    if result.where.single:  # its likeliest tokens are the columns
        values, texts = values.mT, [[[word] for word in row[0]] for row in texts]
        columns = [str(rank) for rank in range(values.shape[1])]
    tips = [
        [
            _tip(f"{label}, {label_of(column)}", words, numbers, unit)
            for column, words, numbers in zip(columns, *line, strict=True)
        ]
        for label, *line in zip(result.labels, texts, values.tolist(), strict=True)
    ]
    written = [[cell[0] for cell in row] for row in texts] if len(columns) <= MOST_TEXTS else None
    cells = _cells(result, example, values[..., 0])
    title = title or f"Logit lens: the likeliest tokens{_where(result, example)}"
    return _heatmap(result, title, cells, columns, unit, written, tips)


def of_targets(result: Lens, example: int, target: str | int | None, title: str) -> Picture:
    """The values of a token as a heatmap; where one position was read, of all targets as lines.

    Raises:
        InputError: it was not read, or there are several targets and none was chosen.
    """
    asked = [target] if target is not None or not result.where.single else _targets(result)
    names = {_name(result, one): one for one in asked}
    title = title or f"Logit lens: {', '.join(names)}{_where(result, example)}"
    values = {
        name: result.target_values(one)[:, example].detach().float().cpu()
        for name, one in names.items()
    }
    if result.where.single:
        lines = {name: line.tolist() for name, line in values.items()}
        return Lines(title, lines, result.labels, ("layer", _unit(result)))
    (only,) = values.values()
    columns = _columns(result, example)
    return _heatmap(result, title, _cells(result, example, only), columns, _unit(result))


def of_quantity(
    result: Lens, example: int, target: str | int | None, quantity: LensQuantity, title: str
) -> Picture:
    """KL divergence, entropy or ranks by layer: lines where one position was read.

    Raises:
        InputError: there is no such quantity, or it was not read.
    """
    units = {"kl": "KL divergence (nats)", "entropy": "entropy (nats)", "rank": "rank"}
    if quantity not in units:
        raise InputError(f"quantity is 'values', {', '.join(map(repr, units))}, not {quantity!r}.")
    ranked = quantity == "rank"
    asked = _targets(result) if ranked and target is None and result.where.single else [target]
    names = {_name(result, one) if ranked else units[quantity]: one for one in asked}
    read = {"kl": lambda one: result.kl, "entropy": lambda one: result.entropy}
    found = {
        name: read.get(quantity, result.rank_trajectory)(one)[:, example].detach().float().cpu()
        for name, one in names.items()
    }
    what = f"rank of {', '.join(names)}" if ranked else units[quantity].removesuffix(" (nats)")
    title = title or f"Logit lens: {what}{_where(result, example)}"
    if result.where.single:
        lines = {name: line.tolist() for name, line in found.items()}
        return Lines(title, lines, result.labels, ("layer", units[quantity]))
    (only,) = found.values()
    cells, unit = _cells(result, example, only), units[quantity]
    return _heatmap(result, title, cells, _columns(result, example), unit)


def _targets(result: Lens) -> list[str | int | None]:
    """The targets of every position; [None] if each position has its own."""
    shared = result.readout.ids is not None and result.readout.ids.ndim == 1
    return (
        list(result.readout.ids.tolist()) if shared and result.readout.ids is not None else [None]
    )


def _name(result: Lens, target: str | int | None) -> str:
    """The text of a target."""
    shared = _targets(result)
    one = shared[0] if target is None and len(shared) == 1 else target
    known = result.readout.tokenizer
    if one is None:
        return "the target"
    if isinstance(one, str) or known.tokenizer is None:
        return label_of(one)
    return label_of(known.to_single_str_token(one))


def _heatmap(
    result: Lens,
    title: str,
    cells: list[Row],
    columns: list[str],
    unit: str,
    texts: list[list[str]] | None = None,
    tips: list[list[str]] | None = None,
) -> Heatmap:
    fitting = Scale.fitting(cells, unit=unit)
    scale = Scale(1.0, diverging=False, unit=unit) if unit == "probability" else fitting
    across = "rank" if texts is not None and result.where.single else "position"
    axes = ("layer", across)
    return Heatmap(title, cells, result.labels, columns, scale, axes, texts=texts, tips=tips)


def _unit(result: Lens) -> str:
    return COLUMN[result.readout.return_type].replace("_", " ")


def _ranked(result: Lens, example: int) -> tuple[Tensor, Tensor, str]:
    """The likeliest tokens of one example, and what their values are.

    Shapes: both `[row, pos, k]`
    """
    values = result.readout.values[:, example].detach().float().cpu()
    values = values.unsqueeze(1) if result.where.single else values
    if result.readout.selected == "top_k" and result.readout.ids is not None:
        ids = result.readout.ids[:, example].cpu()
        ids = ids.unsqueeze(1) if result.where.single else ids
        return values[..., :SHOWN], ids[..., :SHOWN], _unit(result)
    if result.readout.selected != "all":
        raise InputError(
            "Only a part of the vocabulary was read: say which token to draw, plot(target=...), or "
            "pass top_k=5 to logit_lens."
        )
    kind = result.readout.return_type
    probs = {"logits": lambda: values.softmax(-1), "log_probs": values.exp}.get(
        kind, lambda: values
    )
    found = probs().topk(min(SHOWN, values.shape[-1]), dim=-1)
    return found.values, found.indices, "probability"


def _decoded(ids: Tensor, tokens: Tokens) -> list[list[list[str]]]:
    """Every id as text, or as a number where there is no tokenizer."""
    several = torch.unique(ids)
    texts = (
        list(map(str, several.tolist())) if tokens.tokenizer is None else decoded(several, tokens)
    )
    known = dict(zip(several.tolist(), texts, strict=True))
    return [[[known[one] for one in cell] for cell in row] for row in ids.tolist()]


def _columns(result: Lens, example: int) -> list[str]:
    """The tokens at the positions that were read, or the positions."""
    if result.input_ids is None or result.readout.tokenizer.tokenizer is None:
        return [str(at) for at in result.where.columns[example].tolist()]
    texts: list[str] = decoded(result.input_ids[example], result.readout.tokenizer)
    return texts


def _where(result: Lens, example: int) -> str:
    """For a title, what was read, where that is one position."""
    return f" after “{label_of(_columns(result, example)[0])}”" if result.where.single else ""


def _cells(result: Lens, example: int, values: Tensor) -> list[Row]:
    """The values, without those of padding."""
    real = result.where.real[example].tolist()
    real = real if len(real) == values.shape[1] else [True] * values.shape[1]
    return [
        [value if there else None for value, there in zip(row, real, strict=True)]
        for row in values.tolist()
    ]


def _tip(place: str, words: list[str], values: list[float], unit: str) -> str:
    ranked = zip(words, values, strict=True)
    return "\n".join([place, *(f"{label_of(word)}: {value:.4g} {unit}" for word, value in ranked)])
