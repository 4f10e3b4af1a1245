"""Comparison: what `compare` found, as tables and pictures."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lensbridge.analysis.frames import data_frame
from lensbridge.comparison.outputs import PromptChanges
from lensbridge.comparison.weights import WeightChanges
from lensbridge.errors import InputError
from lensbridge.viz import Bars, Drawn, Heatmap, Lines

Table: TypeAlias = Literal["weights", "stream", "tokens"]
"""weights: a row for each weight. stream: one for each layer, prompt and position. tokens: one for
each prompt, position and token whose probability changed."""

_SHOWN = 10


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Drawn):
    """What differs between two models.

    Args:
        a: the name of the base.
        b: the name of the fine-tune.
        weights: the weights; None if they were not compared.
        outputs: what both compute on the prompts; None if there were none.
    """

    a: str
    b: str
    weights: WeightChanges | None
    outputs: PromptChanges | None

    def __repr__(self) -> str:
        return "\n".join([f"Comparison of {self.a} (a) and {self.b} (b)", *self._lines()])

    def _lines(self) -> Iterator[str]:
        if self.weights is not None:
            yield from _weight_lines(self.weights)
        if self.outputs is not None:
            yield from _output_lines(self.outputs)

    # --- tables ------------------------------------------------------------------------------

    def to_dataframe(self, table: Table | None = None) -> Any:
        """A `pandas.DataFrame`.

        Args:
            table: "weights", "stream" or "tokens"; None is the first that there is.

        Raises:
            InputError: that was not compared.
            LensbridgeError: pandas is not installed.
        """
        table = table or ("weights" if self.weights is not None else "stream")
        return data_frame(self._rows(table))

    def _rows(self, table: Table) -> Iterator[dict[str, Any]]:
        if table == "weights":
            return _weight_rows(self._weights())
        if table == "stream":
            return _stream_rows(self._outputs())
        if table == "tokens":
            return _token_rows(self._outputs())
        raise InputError(f"table is 'weights', 'stream' or 'tokens', not {table!r}.")

    def _weights(self) -> WeightChanges:
        if self.weights is None:
            raise InputError("The weights were not compared: leave weights=False out.")
        return self.weights

    def _outputs(self) -> PromptChanges:
        if self.outputs is None:
            raise InputError("There were no prompts: pass compare(a, b, prompts).")
        return self.outputs

    # --- pictures ----------------------------------------------------------------------------

    def plot(self, what: Table | None = None, title: str = "") -> Heatmap | Lines | Bars:
        """A picture of the changes.

        Args:
            what: "weights": a heatmap of the relative change of each kind of weight in each layer.
                "stream": the relative difference of the residual streams over layers. "tokens": the
                tokens whose probabilities changed most at the end of the first prompt. None is the
                first that there is.
            title: above the picture.

        Raises:
            InputError: that was not compared.
        """
        what = what or ("weights" if self.weights is not None else "stream")
        about = f"{self.a} -> {self.b}"
        if what == "weights":
            return _weight_picture(self._weights(), title or f"Relative change, {about}")
        if what == "stream":
            return _stream_picture(self._outputs(), title or f"Residual stream, {about}")
        if what == "tokens":
            return _token_picture(self._outputs(), title or f"Next token, {about}")
        raise InputError(f"what is 'weights', 'stream' or 'tokens', not {what!r}.")


def _weight_lines(found: WeightChanges) -> Iterator[str]:
    changed = [row for row in found.rows if row.change]
    yield f"{len(changed)} of {len(found.rows)} weights differ; ||b - a|| / ||a||, largest first:"
    width = max((len(row.name) for row in changed[:_SHOWN]), default=0)
    for row in changed[:_SHOWN]:
        yield f"  {row.name:<{width}}  {row.change:.3g}"
    if len(changed) > _SHOWN:
        yield f"  and {len(changed) - _SHOWN} more: to_dataframe()"
    for letter, names in (("a", found.only_a), ("b", found.only_b)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            yield f"only in {letter}: {', '.join(names[:5])}{more}"
    yield from found.notes


def _output_lines(found: PromptChanges) -> Iterator[str]:
    count = len(found.tokens)
    last = float(found.relative_by_layer[-1])
    yield (
        f"On {count} prompt{'s'[: count != 1]} the last residual stream differs by {last:.3g} of "
        f"its norm (cosine {float(found.cosine_by_layer[-1]):.4f})."
    )
    if found.kl is not None:
        yield f"KL(a || b) of the next token: {float(found.kl.nanmean()):.3g} nats; most changed:"
        for one in found.most_changed(3):
            tokens = ", ".join(map(str, one.tokens[:3]))
            yield f"  prompt {one.prompt}, after {one.token!r}: {one.kl:.3g} nats; {tokens}"


def _weight_rows(found: WeightChanges) -> Iterator[dict[str, Any]]:
    for row in found.rows:
        yield {
            "name": row.name,
            "layer": row.layer,
            "kind": row.kind,
            "change": row.change,
            "size": row.size,
            "difference": row.difference,
        }


def _stream_rows(found: PromptChanges) -> Iterator[dict[str, Any]]:
    for i, label in enumerate(found.labels):
        for prompt, columns in enumerate((~found.cosine[i].isnan()).tolist()):
            for position, real in enumerate(columns):
                if real:
                    yield {
                        "row": label,
                        "prompt": prompt,
                        "position": position,
                        "cosine": float(found.cosine[i, prompt, position]),
                        "relative": float(found.relative[i, prompt, position]),
                    }


def _token_rows(found: PromptChanges) -> Iterator[dict[str, Any]]:
    for one in found.most_changed(found.tokens.numel()):
        for token in one.tokens:
            yield {
                "prompt": one.prompt,
                "position": one.position,
                "after": one.token,
                "kl": one.kl,
                "token": token.token,
                "id": token.id,
                "a": token.a,
                "b": token.b,
            }


def _weight_picture(found: WeightChanges, title: str) -> Heatmap:
    """A heatmap of layers and kinds; what is outside the layers is left out."""
    rows = [row for row in found.rows if row.layer is not None]
    if not rows:
        raise InputError("No weight of a layer was compared, so there is nothing to draw.")
    kinds = sorted({row.kind for row in rows})
    layers = sorted({row.layer for row in rows if row.layer is not None})
    by_place = {(row.layer, row.kind): row.change for row in rows}
    values = [[_finite(by_place.get((layer, kind))) for kind in kinds] for layer in layers]
    return Heatmap(title, values, [str(one) for one in layers], kinds, axes=("layer", "weight"))


def _finite(change: float | None) -> float | None:
    """A change that a heatmap can draw: not that of a weight that is zero in a."""
    return None if change is None or not math.isfinite(change) else change


def _stream_picture(found: PromptChanges, title: str) -> Lines:
    mean = found.relative_by_layer.tolist()
    return Lines(title, {"||b - a|| / ||a||": mean}, found.labels, axes=("layer", "difference"))


def _token_picture(found: PromptChanges, title: str) -> Bars:
    one = found.changed(0, -1)
    remarks = [f"({token.a:.1%} -> {token.b:.1%})" for token in one.tokens]
    return Bars(
        title,
        [token.b - token.a for token in one.tokens],
        [token.token for token in one.tokens],
        unit=f"change of probability after {one.token!r}",
        remarks=remarks,
    )
