"""Runs of the rows of an input as requests of vLLM, with what listens and each row's own edits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lensbridge.engines.vllm.acting import Acting, check_rows, own_acts
from lensbridge.engines.vllm.program import Act, to_text
from lensbridge.engines.vllm.requests import Request, Runner, batched, ids_of, rows_of
from lensbridge.errors import InputError, UnsupportedError
from lensbridge.hooked_model import HookedModel
from lensbridge.hooks.callbacks import Callback
from lensbridge.inputs.prepare import Prepared
from lensbridge.interventions.callbacks import callbacks_of
from lensbridge.interventions.intervention import Intervention

_TAKEN = ("prepend_bos", "padding_side", "attention_mask", "add_generation_prompt", "use_cache")
_GREEDY = {"temperature": 0.0, "detokenize": False}


class RowRuns(HookedModel):
    """A model whose rows are requests of vLLM."""

    _runner: Runner

    def _prepared(self, input: Any, given: Mapping[str, Any]) -> Prepared:
        for name, value in given.items():
            if name not in _TAKEN and value is not None:
                raise UnsupportedError(
                    f"The vLLM engine takes no {name}: vLLM makes positions, masks and caches of "
                    f"keys and values itself. It takes {', '.join(_TAKEN[:-1])}."
                )
        options = {k: v for k, v in given.items() if v is not None and k != "use_cache"}
        return self.prepare(input, **options)

    def run_rows(
        self, prepared: Prepared, callbacks: list[Callback], each: Any = (), **sampling: Any
    ) -> list[list[int]]:
        """Run every row as a request, show callbacks what they read; what each row generated.

        Args:
            prepared: the input.
            callbacks: readers and interventions.
            each: interventions, as `interventions` in `run_callbacks`.
            sampling: options of vLLM's `SamplingParams`.
        """
        new = sampling["max_tokens"] - 1
        common, own = shared_and_own(each, len(rows_of(prepared)))
        reads = Acting.of(callbacks)
        self._check(prepared, callbacks, new)
        requests = self._requests(prepared, common, own, reads, new)
        found = self._runner.run(requests, **{**_GREEDY, **sampling})
        width = ids_of(prepared).shape[1]
        reads.show(
            {
                one.label: batched(requests, [kept[one.label] for _, kept in found], width)
                for one in reads.readings
            }
        )
        return [made for made, _ in found]

    def run_cells(
        self, prepared: Prepared, cells: Sequence[Sequence[Intervention]]
    ) -> list[Tensor]:
        """Logits of an input with each cell's interventions, all cells in one dynamic batch.

        Args:
            prepared: the input.
            cells: the interventions of each run.

        Shapes: `[batch, pos, d_vocab]` for each cell
        """
        rows = len(rows_of(prepared))
        reads = Acting.of([Callback("hook_logits", "read", lambda value: None)])
        nobody: list[Sequence[Intervention]] = [()] * rows
        groups = [self._requests(prepared, cell, nobody, reads, 0) for cell in cells]
        found = self._runner.run(
            [one for group in groups for one in group], max_tokens=1, **_GREEDY
        )
        label, width = reads.readings[0].label, ids_of(prepared).shape[1]
        kept = [values[label] for _, values in found]
        return [
            batched(group, kept[i * rows : (i + 1) * rows], width) for i, group in enumerate(groups)
        ]

    def _requests(
        self,
        prepared: Prepared,
        common: Iterable[Intervention],
        own: Sequence[Sequence[Intervention]],
        reads: Acting,
        new: int,
    ) -> list[Request]:
        """A request for each row, with what listens here, and its interventions."""
        everywhere = [*self._listening, *callbacks_of(self, common)]
        edits = Acting.of(everywhere)
        if edits.readings:
            raise UnsupportedError(
                "A reader listens in a context around this run, and the vLLM engine has readers "
                "only in the run itself. Call run_with_cache."
            )
        self._check(prepared, everywhere, new)
        rows = rows_of(prepared)
        check_rows([*edits.acts, *reads.acts], len(rows))
        requests = []
        for row, (ids, first) in enumerate(rows):
            alone = self._own_acts(own[row], ids, new)
            text = to_text([*edits.acts, *alone, *reads.acts])
            requests.append(Request(ids, first, row, len(rows), text))
        return requests

    def _check(self, prepared: Prepared, callbacks: Iterable[Callback], new: int) -> None:
        for one in callbacks:
            if one.check is not None:
                one.check(prepared, new)

    @property
    def _listening(self) -> list[Callback]:
        """What is in force in this context.

        Raises:
            UnsupportedError: something stands in the place of modules.
        """
        engine = self.engine
        if engine.replaced or engine.splices or (engine.current and engine.current.splices):
            raise UnsupportedError(
                "Something stands in the place of a module or a point (a sparse autoencoder, "
                "processed weights), and that is not sent to vLLM's workers. Take it off."
            )
        if engine.current is not None:
            engine.current.count_run()
        return engine.listening

    def _own_acts(self, given: Sequence[Intervention], ids: list[int], new: int) -> list[Act]:
        if not given:
            return []
        alone = Prepared(torch.tensor([ids]), None, None, None)
        return own_acts(self, given, alone, new)


def shared_and_own(each: Any, rows: int) -> tuple[list[Intervention], list[Sequence[Intervention]]]:
    """Interventions of all rows, and those of each row; with 0 rows, of as many as there are.

    Raises:
        InputError: there is not one entry for each row.
    """
    nobody: list[Sequence[Intervention]] = [()] * rows
    if each is None or isinstance(each, Intervention):
        return ([] if each is None else [each]), nobody
    listed = list(each)
    if all(isinstance(one, Intervention) for one in listed):
        return listed, nobody
    if rows and len(listed) != rows:
        raise InputError(
            f"interventions has {len(listed)} entries, and there are {rows} rows. Give one or "
            "several interventions for all rows; or one entry for each row: a list of "
            "interventions, or None."
        )
    own = [[one] if isinstance(one, Intervention) else list(one or ()) for one in listed]
    return [], list(own)
