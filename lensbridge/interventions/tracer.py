"""Tracer: the runs of a causal trace, with noise on the subject and some states restored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.errors import InputError, TokenError
from lensbridge.hooked_model import HookedModel
from lensbridge.interventions.exchange import Swap
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.kinds import Add
from lensbridge.interventions.running import edited, run_edited
from lensbridge.points.names import layer_of, stack_of
from lensbridge.sweeps.base_run import BaseRun, noting_arrivals
from lensbridge.sweeps.rows import run_rows, same, started_late


@dataclass(eq=False)
class Tracer:
    """One prompt, its clean run and its noise.

    Args:
        model: the model.
        ids: of the prompt.
        position: where the answer is read.
        max_batch_tokens: how many positions a batch may have.
        clean: probabilities at that position in the clean run.
        cache: states of the clean run.
        options: of every run.
        noise: on the subject, for each sample.
        subject: positions of the subject.
        partial: whether the runs were interrupted.
        base: the run with noise and nothing restored: the logits where the answer is read, and the
            stream before each layer that a run may start from.
        refusals: layer -> why no run can start there; None: it can.

    Shapes: ids `[1, pos]`, clean `[d_vocab]`, noise `[sample, subject, d_model]`.
    """

    model: HookedModel
    ids: Tensor
    position: int
    max_batch_tokens: int
    clean: Tensor
    cache: ActivationCache
    options: dict[str, Any]
    noise: Tensor = field(default_factory=lambda: torch.empty(0))
    subject: tuple[int, ...] = ()
    partial: bool = False
    base: BaseRun | None = None
    refusals: dict[int, str | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: HookedModel, ids: Tensor, position: int, size: int, sites: Sequence[str]
    ) -> "Tracer":
        names = [
            "hook_embed",
            *(name for site in sites for name in layers_of(model, site).values()),
        ]
        keeps = "logits_to_keep" in signature(model.native.core.forward).parameters
        last = keeps and position == ids.shape[1] - 1
        options: dict[str, Any] = {"logits_to_keep": 1} if last else {}
        logits, cache = model.run_with_cache(ids, names_filter=names, **options)
        position = -1 if last else position
        clean = logits[0, position].float().softmax(-1)
        return cls(model, ids, position, size, clean, cache, options)

    def draw(
        self, subject: tuple[int, ...], samples: int, noise: float, std: float | None, seed: int
    ) -> None:
        """Draw the noise of a subject."""
        self.subject = subject
        generator = torch.Generator().manual_seed(seed)
        shape = (samples, len(subject), self.cache["hook_embed"].shape[-1])
        spread = noise * (self.embedding_std() if std is None else std)
        self.noise = spread * torch.randn(shape, generator=generator)

    def target(self, answer: str | int | None) -> int:
        """The token of an answer.

        Raises:
            TokenError: the text has several tokens, or the id is not in the vocabulary.
        """
        if answer is None:
            return int(self.clean.argmax())
        found = self.model.to_single_token(answer) if isinstance(answer, str) else int(answer)
        if not 0 <= found < len(self.clean):
            raise TokenError(f"answer {found} is no token; there are {len(self.clean)}.")
        return found

    def embedding_std(self) -> float:
        """Standard deviation of the embedding matrix, scaled as embeddings are in the run."""
        table = self.model.W_E.float()
        rows = table[self.ids[0].to(table.device)]
        scale = self.cache["hook_embed"].float().norm().to(rows.device) / rows.norm()
        return float(table.std() * scale)

    def corrupted(self, target: int) -> Tensor:
        """Probability of the answer with nothing restored. Shapes: `[sample]`"""
        if self._hooked:
            return self._in_full([], list(range(len(self.noise))), target)
        rows, entrances = self._rows(), self._entrances()
        arriving: dict[str, Tensor] = {}
        with noting_arrivals(self.model, entrances, arriving), edited(self.model, self._noise()):
            logits, streams = self.model.run_with_cache(
                rows, names_filter=entrances, **self.options
            )
        self.base = BaseRun(self.model, rows, logits[:, [self.position]], streams, arriving)
        return self._read(logits, target)

    def _entrances(self) -> list[str]:
        """The streams that runs may start from, if each layer reads one stream alone."""
        names = [self._stream(layer) for layer in range(1, len(self.model.native.blocks))]
        sites = self.model.engine.sites
        return [name for name in names if name in sites and sites[name].axes == "b p m"]

    @property
    def _hooked(self) -> bool:
        """Whether there are hooks that may act on other rows, so that each run has one row."""
        return not self.model.engine.is_idle and not self.model.engine.works_by_row

    @property
    def engine(self) -> str:
        """How the runs were made, in words."""
        why = "; ".join(dict.fromkeys(reason for reason in self.refusals.values() if reason))
        return f"from the first layer: {why}" if why else "from the restored layer"

    def trace(self, site: str, width: int, target: int) -> Tensor:
        """Shapes: `[layer, pos, sample]`"""
        layers, count = layers_of(self.model, site), self.ids.shape[1]
        found = torch.full((self.model.cfg.n_layers, count, len(self.noise)), torch.nan)
        try:
            for layer in () if self.partial else layers:
                start, stop = layer - width // 2, layer + (width + 1) // 2
                names = [name for at, name in layers.items() if start <= at < stop]
                for cells in self._batches(count):
                    values = self._run(names, cells, target)
                    found[layer, cells] = values.unflatten(0, (len(cells), -1))
        except KeyboardInterrupt:
            self.partial = True
        return found

    def _batches(self, count: int) -> Iterator[list[int]]:
        size = max(1, self.max_batch_tokens // (count * len(self.noise)))
        cells = list(range(count))
        yield from (cells[i : i + size] for i in range(0, count, size))

    def _run(self, names: list[str], cells: list[int], target: int) -> Tensor:
        """Probability of the answer for each cell and sample, with the cell's state restored."""
        samples = range(len(self.noise))
        where = [[cell] for cell in cells for _ in samples]
        first = min(layer_of(name) or 0 for name in names)
        if first and self._refusal(first) is None:
            restored = Swap(names, self.cache, positions=where)
            return self._read(self._from(first, len(cells), [restored]), target)
        return self._in_full(names, [*samples] * len(cells), target, where)

    def _in_full(
        self, names: list[str], samples: list[int], target: int, where: Sequence[list[int]] = ()
    ) -> Tensor:
        """Probability of the answer in runs from the first layer on, one row for each sample given.

        Args:
            names: the points that are restored.
            samples: number of the noise of each row.
            target: token of the answer.
            where: the positions that are restored in each row.
        """
        size = 1 if self._hooked else len(samples)
        found = []
        for i in range(0, len(samples), size):
            some = samples[i : i + size]
            edits: list[Intervention] = [self._noise(some)]
            if names:
                edits.append(Swap(names, self.cache, positions=where[i : i + size]))
            rows = self.ids.expand(len(some), -1)
            found.append(self._read(run_edited(self.model, rows, edits, **self.options), target))
        return torch.cat(found)

    def _refusal(self, layer: int) -> str | None:
        """Why a run cannot start at a layer, from the stream before it; None: it can."""
        if layer not in self.refusals:
            self.refusals[layer] = self._tried(layer)
        return self.refusals[layer]

    def _tried(self, layer: int) -> str | None:
        if self._hooked:
            return "other hooks are on the model, and may act on earlier layers or on the batch"
        assert self.base is not None
        if self._stream(layer) not in self.base.cache:
            return "its layers read more than one stream"
        logits = started_late(layer, lambda: self._unrestored(layer))
        return logits if isinstance(logits, str) else None

    def _unrestored(self, layer: int) -> Tensor | None:
        """Logits of a run from a layer with nothing restored; None if the whole run's differ."""
        assert self.base is not None
        logits = self._from(layer, 1, [])[:, [self.position]]
        return logits if same(logits, self.base.logits) else None

    def _from(self, layer: int, copies: int, restored: list[Swap]) -> Tensor:
        assert self.base is not None
        rows = self.base.stream(layer).repeat(copies, 1, 1)
        with edited(self.model, restored):
            return run_rows(self.base, rows, [], layer, **self.options)

    def _stream(self, layer: int) -> str:
        return f"{self.model.native.main.prefix}.{layer}.hook_resid_pre"

    def _rows(self) -> Tensor:
        return self.ids.expand(len(self.noise), -1)

    def _noise(self, samples: Sequence[int] | None = None) -> Add:
        """The noise of these samples, one for each row; None: of all."""
        noise = self.noise if samples is None else self.noise[list(samples)]
        return Add("hook_embed", noise, positions=self.subject)

    def _read(self, logits: Any, target: int) -> Tensor:
        return logits[:, self.position].float().softmax(-1)[:, target].cpu()


def layers_of(model: HookedModel, site: str) -> dict[int, str]:
    """The points of a short name in the main stack, by layer."""
    prefix = model.native.main.prefix
    names = [name for name in model.vocabulary.select(site) if stack_of(name) == prefix]
    found = {layer: name for name in names if (layer := layer_of(name)) is not None}
    if not found:
        raise InputError(f"{site!r} is not a point in the layers of {prefix}.")
    return found
