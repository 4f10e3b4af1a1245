"""The result of the logit lens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lensbridge.analysis.frames import data_frame
from lensbridge.analysis.lens_picture import (
    LensQuantity,
    of_quantity,
    of_targets,
    of_top_tokens,
)
from lensbridge.analysis.positions import Positions
from lensbridge.analysis.readout import COLUMN, LogitReadout, decoded
from lensbridge.errors import InputError
from lensbridge.viz import Drawn, Picture


@dataclass(frozen=True, repr=False)
class LogitLensResult(Drawn):
    """What the residual stream predicts, a row for each layer from the embedding to the last.

    Args:
        readout: values, ids, ranks and entropy; its first axis is the row.
        labels: the label of each row: `0_pre`, `0_mid`, ..., `final_post`.
        layers: the layer after each row; the number of layers for the last row.
        where: the positions that were read in each example.
        target_names: the text of each target that was given as text.
        input_ids: the tokens at these positions, `[batch, pos]`; None if the input had none.

    Shapes: values `[row, batch, selected]`, or `[row, batch, pos, selected]`.
    """

    readout: LogitReadout
    labels: list[str]
    layers: list[int]
    where: Positions
    target_names: list[str | None] | None = None
    input_ids: Tensor | None = None

    def __repr__(self) -> str:
        batch, positions = self.positions.shape
        return (
            f"LogitLensResult({self.readout.return_type} of {self.readout.selected}; "
            f"{len(self.labels)} rows {self.labels[0]} to {self.labels[-1]}, {batch} "
            f"example{'s'[: batch != 1]}, {positions} position{'s'[: positions != 1]})"
        )

    @property
    def values(self) -> Tensor:
        """Shapes: `[row, batch, selected]`, or `[row, batch, pos, selected]`"""
        return self.readout.values

    @property
    def ids(self) -> Tensor | None:
        """Ids of the selected tokens; None if all are selected."""
        return self.readout.ids

    @property
    def ranks(self) -> Tensor | None:
        """Ranks of the targets, 0 for the most likely token. Shapes: as values."""
        return self.readout.ranks

    @property
    def positions(self) -> Tensor:
        """The columns that were read. Shapes: `[batch, pos]`"""
        return self.where.columns

    @property
    def entropy(self) -> Tensor:
        """The entropy of the whole distribution, in nats.

        Shapes: `[row, batch]`, or `[row, batch, pos]`
        """
        return self.readout.entropy

    @property
    def kl(self) -> Tensor:
        """The KL divergence of each row's distribution from the model's own prediction.

        Shapes: `[row, batch]`, or `[row, batch, pos]`
        Units: nats.

        Raises:
            InputError: it was not asked for.
        """
        if self.readout.kl is None:
            raise InputError("There is no KL divergence: pass kl=True to logit_lens.")
        return self.readout.kl

    def decode(self, tokenizer: Any = None) -> Any:
        """The selected tokens as text, nested as `ids` is."""
        return self.readout.decode(tokenizer)

    def top_tokens(self, tokenizer: Any = None, k: int | None = None) -> dict[str, Any]:
        """The most likely tokens of each row, by label, as text.

        Args:
            tokenizer: used instead of the model's own.
            k: how many; None: as many as were asked for, or 5 where the whole vocabulary was read.

        Raises:
            InputError: only targets or a part of the vocabulary were read.
        """
        if self.readout.selected == "all":
            ids = self.values.topk(min(k or 5, self.values.shape[-1]), dim=-1).indices
        elif self.readout.selected == "top_k" and self.ids is not None:
            ids = self.ids[..., :k]
        else:
            raise InputError(
                f"Only {self.readout.selected} were read. Pass top_k=... to logit_lens, or read "
                "the whole vocabulary."
            )
        texts = decoded(ids, self.readout.tokenizer, tokenizer)
        return dict(zip(self.labels, texts, strict=True))

    def plot(
        self,
        example: int = 0,
        target: str | int | None = None,
        quantity: LensQuantity = "values",
        *,
        title: str = "",
    ) -> Picture:
        """One example: a heatmap with a row for each layer and a column for each token.

        A cell has the likeliest token, on the colour of its value; the pointer over it shows the
        next ones. Where one position was read, the columns are its likeliest tokens, and targets
        are lines over the layers.

        Args:
            example: which example.
            target: the token whose values are drawn; None: the likeliest ones, or the targets.
            quantity: "values"; or by layer the "kl" divergence from the model's own prediction, the
                "entropy", or the "rank" of a target. Where one position was read, these are lines.
            title: written above the picture.

        Raises:
            InputError: there is no such example, or this token was not read.
        """
        if not -len(self.positions) <= example < len(self.positions):
            raise InputError(f"There is no example {example}: there are {len(self.positions)}.")
        example %= len(self.positions)
        if quantity != "values":
            return of_quantity(self, example, target, quantity, title)
        if target is not None or self.readout.selected == "targets":
            return of_targets(self, example, target, title)
        return of_top_tokens(self, example, title)

    def rank_trajectory(self, target: str | int | Sequence[str | int] | None = None) -> Tensor:
        """The rank of a target in every row; 0 is the most likely token.

        Args:
            target: a target as it was passed, or its id; a list gives a last axis; None is the
                only target. Where the whole vocabulary was read: any token.

        Shapes: `[row, batch]`, or `[row, batch, pos]`; for a list `[..., target]`

        Raises:
            InputError: the token was not read.
        """
        if isinstance(target, Sequence) and not isinstance(target, str):
            return torch.stack([self.rank_trajectory(one) for one in target], dim=-1)
        if self.readout.selected == "all" and target is not None:
            own = self.values[..., self._id(target)]
            return (self.values > own.unsqueeze(-1)).sum(-1)
        if self.ranks is None or self.readout.selected != "targets":
            raise InputError(
                "Only targets have ranks: pass targets=... to logit_lens, or read the whole "
                "vocabulary."
            )
        return self.ranks[..., self._column(target)]

    def target_values(self, target: str | int | None = None) -> Tensor:
        """The values of one token in every row; arguments as in `rank_trajectory`.

        Shapes: `[row, batch]`, or `[row, batch, pos]`

        Raises:
            InputError: the token was not read.
        """
        if self.readout.selected == "all" and target is not None:
            return self.values[..., self._id(target)]
        if self.readout.selected not in ("targets", "vocab"):
            raise InputError(
                "Single tokens were not read: pass targets=... to logit_lens, or read the whole "
                "vocabulary."
            )
        return self.values[..., self._column(target)]

    def _id(self, target: str | int) -> int:
        return self.readout.tokenizer.to_single_token(target) if isinstance(target, str) else target

    def _column(self, target: str | int | None) -> int:
        width = self.values.shape[-1]
        if target is None and width == 1:
            return 0
        names = self.target_names or []
        if target is not None and target in names:
            return names.index(target)
        ids = self.ids.tolist() if self.ids is not None and self.ids.ndim == 1 else []
        if target is None or self._id(target) not in ids:
            raise InputError(f"{target!r} is not one of the targets, {names or ids}.")
        return ids.index(self._id(target))

    def to_dataframe(self, tokenizer: Any = None, top_k: int | None = None) -> Any:
        """A `pandas.DataFrame` with a line for each row, example, position and token.

        The highest values come first.

        Args:
            tokenizer: used instead of the model's own for the column `token_string`, which is left
                out if there is no tokenizer.
            top_k: only this many tokens for each position.

        Raises:
            LensbridgeError: pandas is not installed.
        """
        return data_frame(self._lines(tokenizer, top_k))

    def _lines(self, tokenizer: Any, top_k: int | None) -> Iterator[dict[str, Any]]:
        values, entropy = self._with_positions(self.values), self._with_positions(self.entropy)
        texts = _Texts(self.readout, tokenizer)
        places = product(range(len(self.labels)), *map(range, self.positions.shape))
        for row, example, at in places:
            if not self.where.real[example, at]:
                continue
            place = (row, example, at)
            ids = self._ids_at(place)
            for one in values[place].argsort(descending=True)[:top_k].tolist():
                yield {
                    "layer": self.labels[row],
                    "batch": example,
                    "pos": int(self.positions[example, at]),
                    "token_index": ids[one],
                    **texts.column(ids[one]),
                    COLUMN[self.readout.return_type]: float(values[place][one]),
                    **self._rank_at(place, one),
                    "entropy": float(entropy[place]),
                }

    def _with_positions(self, values: Tensor) -> Tensor:
        return values.unsqueeze(2) if self.where.single else values

    def _ids_at(self, place: tuple[int, int, int]) -> Any:
        if self.ids is None:
            return range(self.values.shape[-1])
        ids = self.ids if self.ids.ndim == 1 else self._with_positions(self.ids)[place]
        return ids.tolist()

    def _rank_at(self, place: tuple[int, int, int], one: int) -> dict[str, int]:
        if self.ranks is None:
            return {}
        return {"rank": int(self._with_positions(self.ranks)[place][one])}


@dataclass(frozen=True)
class _Texts:
    """Ids as text, if there is a tokenizer."""

    readout: LogitReadout
    tokenizer: Any

    def column(self, one: int) -> dict[str, str]:
        if self.tokenizer is None and self.readout.tokenizer.tokenizer is None:
            return {}
        text = decoded(torch.tensor([one]), self.readout.tokenizer, self.tokenizer)
        return {"token_string": text[0]}
