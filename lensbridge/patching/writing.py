"""How the cells of a sweep continue an input: many in one generation, or one by one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lensbridge.errors import InputError, LensbridgeError
from lensbridge.hooked_model import HookedModel
from lensbridge.inputs.prepare import Prepared
from lensbridge.inputs.prompts import is_one_text, is_text
from lensbridge.interventions.callbacks import callbacks_of
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.rows import at_rows, moves
from lensbridge.sweeps.memory import generated_tokens
from lensbridge.sweeps.options import SweepOptions
from lensbridge.sweeps.progress_bar import ProgressBar

Texts: TypeAlias = "str | list[str]"
"""What one cell wrote: a text if the input is one, else a text for each example."""

_ELSEWHERE = {
    "interventions": "the cells have the interventions",
    "return_cache": "a sweep keeps texts, no activations",
    "names_filter": "a sweep keeps texts, no activations",
    "return_type": "a sweep gives texts",
    "num_return_sequences": "each cell writes one text for each example",
}
_OF_THE_BATCH = ("logits_processor", "stopping_criteria", "streamer", "max_time", "past_key_values")
_OF_THE_TEXT = ("prepend_bos", "padding_side", "add_generation_prompt")


class Wrote(NamedTuple):
    """What a cell wrote, and the values of that, `[metric, example]`."""

    texts: list[str]
    values: Tensor


@dataclass(frozen=True)
class Writing:
    """How cells continue an input.

    Args:
        model: the model.
        base: the input, as the user gave it.
        prepared: its ids or embeddings, with the mask.
        how: options of `model.generate`.
        seed: for the random numbers of each cell.
        skip_prompt: whether texts begin after the prompt.
        options: how to run cells.
        reasons: why cells are run one by one.
    """

    model: HookedModel
    base: Any
    prepared: Prepared
    how: Mapping[str, Any]
    seed: int
    skip_prompt: bool
    options: SweepOptions
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, model: HookedModel, base: Any, generate: Mapping[str, Any], options: SweepOptions
    ) -> "Writing":
        """The run of a sweep.

        Raises:
            InputError: an option that a sweep does not have.
            LensbridgeError: the model has no `generate`.
        """
        if not hasattr(model, "generate"):
            raise LensbridgeError(f"{type(model).__name__} has no generate(): use lensbridge.load.")
        if not isinstance(generate, Mapping):
            raise InputError(
                'generate is the options of model.generate, such as {"max_new_tokens": 8}, not '
                f"{generate!r}."
            )
        how = {"do_sample": False, "verbose": False, **generate}
        for name in how.keys() & _ELSEWHERE.keys():
            raise InputError(f"generate has {name!r}, and {_ELSEWHERE[name]}. Leave it out.")
        model.tokens.need()
        side = "right" if model.native.is_encoder_decoder else "left"
        text = {
            "padding_side": side,
            **{name: how.pop(name) for name in _OF_THE_TEXT if name in how},
        }
        seed, skip = how.pop("seed", 0), how.pop("skip_prompt", False)
        return cls(model, base, model.prepare(base, **text), how, int(seed), bool(skip), options)

    @property
    def new(self) -> int:
        """How many tokens are added at most."""
        return int(self.how.get("max_new_tokens", 10))

    @cached_property
    def given(self) -> dict[str, Tensor]:
        """The input as ids or embeddings with their mask."""
        found = self.prepared
        whole = found.tokens if found.tokens is not None else found.embeds
        if whole is None:
            raise InputError("A sweep over generated texts takes text, ids or embeddings.")
        mask = found.mask
        if mask is None:
            mask = torch.ones(whole.shape[:2], dtype=torch.long, device=whole.device)
        name = "input_ids" if found.tokens is not None else "inputs_embeds"
        return {name: whole, "attention_mask": mask}

    @property
    def examples(self) -> int:
        """How many texts are continued."""
        return len(self.given["attention_mask"])

    def check(self, cell: Sequence[Intervention]) -> None:
        """Refuse interventions that do not fit, before anything is generated.

        Raises:
            InputError: as `model.generate` does.
        """
        for callback in callbacks_of(self.model, cell):
            if callback.check is not None:
                callback.check(self.prepared, self.new - 1)

    def all(
        self, cells: Sequence[Sequence[Intervention]], measure: Callable[[list[str]], Tensor]
    ) -> "list[Wrote | None]":
        """What each cell wrote; None for those that an interrupt cut off.

        Args:
            cells: the interventions of each.
            measure: gives the values of some texts; called as soon as there are any.

        Raises:
            InputError: `exact=False`, and cells cannot be run in batches.
        """
        found: list[Wrote | None] = [None] * len(cells)
        meter = ProgressBar(len(cells), self.options.verbose)
        try:
            for group in self._groups(cells):
                for i, texts in zip(group, self._texts([cells[i] for i in group]), strict=True):
                    found[i] = Wrote(texts, measure(texts))
                    meter.done()
        except KeyboardInterrupt:
            pass
        finally:
            meter.close()
        return found

    def _groups(self, cells: Sequence[Sequence[Intervention]]) -> Iterator[list[int]]:
        why = "asked for" if self.options.exact else self._why_single()
        alone = [i for i, cell in enumerate(cells) if why or not all(map(moves, cell))]
        if alone:
            self.reasons.append(why or "noise depends on the row of an example")
            if self.options.exact is False:
                raise InputError(
                    f"These cells cannot be run in batches: {self.reasons[0]}. Pass exact=True."
                )
        together = [i for i in range(len(cells)) if i not in set(alone)]
        each = self.examples * (self.given["attention_mask"].shape[1] + self.new)
        size = max(1, generated_tokens(self.model, self.options.max_batch_tokens) // each)
        yield from (together[i : i + size] for i in range(0, len(together), size))
        yield from ([i] for i in alone)

    def _why_single(self) -> str | None:
        """Why no cell can be run beside another; None if it can."""
        if self.how["do_sample"] and self.how.get("temperature", 1.0):
            return "sampled texts are drawn for each cell from the same seed"
        named = [name for name in _OF_THE_BATCH if name in self.how]
        if named:
            return f"{named[0]} acts on whole batches"
        engine = self.model.engine
        if not engine.is_idle and not engine.works_by_row:
            return "other hooks are on the model, and may act on the batch"
        return None

    def _texts(self, cells: Sequence[Sequence[Intervention]]) -> list[list[str]]:
        """What some cells write in one generation."""
        count, alone = self.examples, len(cells) == 1
        edits = [
            one if alone else at_rows(one, i * count, count)
            for i, cell in enumerate(cells)
            for one in cell
        ]
        given = {
            name: value.repeat(len(cells), *[1] * (value.ndim - 1))
            for name, value in self.given.items()
        }
        generate: Callable[..., Any] = self.model.generate  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=_devices(self.model)):
            torch.manual_seed(self.seed)
            found = generate(given, interventions=edits, return_type="tokens", **self.how)
        texts = self._decoded(found if isinstance(found, Tensor) else found.sequences, len(cells))
        return [texts[i * count : (i + 1) * count] for i in range(len(cells))]

    def _decoded(self, ids: Tensor, copies: int) -> list[str]:
        """Generated rows as texts, without padding."""
        decode: Any = self.model.tokens.need().decode
        apart = self.model.native.is_encoder_decoder or self.prepared.tokens is None
        mask = self.given["attention_mask"].repeat(copies, 1)
        starts = [0] * len(ids) if apart else mask.argmax(-1).tolist()
        if self.skip_prompt and not apart:
            starts = [mask.shape[1]] * len(ids)
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        pairs = zip(ids.tolist(), starts, strict=True)
        return [str(decode(row[start:], **plain)) for row, start in pairs]

    def shown(self, texts: list[str]) -> Texts:
        """The texts of one cell as `model.generate` gives them."""
        several = is_text(self.base) and not is_one_text(self.base)
        return texts if several or len(texts) > 1 else texts[0]


def _devices(model: HookedModel) -> list[torch.device]:
    return [model.device] if model.device.type == "cuda" else []
