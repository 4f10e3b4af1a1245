"""VLLMModel: a model that vLLM runs, with the methods of a lens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lensbridge.analysis.methods import AnalysisMethods
from lensbridge.engines.vllm import settings
from lensbridge.engines.vllm.acting import Acting, check_rows, own_acts
from lensbridge.engines.vllm.fetched_weights import FetchedWeights
from lensbridge.engines.vllm.generating import VLLMGeneration
from lensbridge.engines.vllm.program import Act, to_text
from lensbridge.engines.vllm.requests import Request, Runner, batched, ids_of, rows_of
from lensbridge.engines.vllm.sites import KERNEL
from lensbridge.engines.vllm.skeleton import skeleton
from lensbridge.engines.vllm.workers import Workers
from lensbridge.errors import InputError, UnsupportedError
from lensbridge.experiments import Experiment, ExperimentResult
from lensbridge.experiments.methods import ExperimentMethods
from lensbridge.hooked_model import LogitsAndLoss, Result, ReturnType
from lensbridge.hooks.callbacks import Callback
from lensbridge.inputs.prepare import Prepared, Preparer
from lensbridge.interventions.intervention import Intervention
from lensbridge.interventions.methods import InterventionMethods
from lensbridge.interventions.plan import acting, callbacks_of
from lensbridge.native.parts import ResolvedModel
from lensbridge.patching.methods import SweepMethods
from lensbridge.points.names import template
from lensbridge.points.point_names import PointNames
from lensbridge.sites.wiring.index import SiteIndex

_TAKEN = ("prepend_bos", "padding_side", "attention_mask", "add_generation_prompt", "use_cache")


class _HostPreparer(Preparer):
    """Makes ids on the CPU, from where vLLM takes them."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")


class VLLMModel(
    ExperimentMethods,
    VLLMGeneration,
    InterventionMethods,
    SweepMethods,
    AnalysisMethods,
    FetchedWeights,
):
    """A model that vLLM runs: activations, interventions and weights under the field's names.

    It has the methods of `LensModel` for runs, caches, interventions, sweeps, generation,
    experiments and analysis; those that need gradients or other modules are not there.
    What is read or edited is sent to vLLM's workers as data, and requests of one batch can have
    interventions of their own. `load_vllm` makes one.

    Args:
        llm: an `LLM` of vLLM.
        find_tokenizer: gives its tokenizer.

    Attributes:
        llm: the `LLM`.
        hf_model: the HuggingFace model without weights, which names and sizes are made of.
    """

    def __init__(self, llm: Any, find_tokenizer: Callable[[], Any] | None = None) -> None:
        self.llm = llm
        self._workers = Workers(llm)
        self._told: dict[str, Any] = self._workers.ask("describe")[0]
        self._runner = Runner(self._workers, settings.vllm().SamplingParams)
        super().__init__(skeleton(llm), find_tokenizer or llm.get_tokenizer)

    def _look(self) -> None:
        super()._look()
        self.preparer = _HostPreparer(self.native, self.tokens, self.native.calling.accepted)

    def _points(self, native: ResolvedModel) -> tuple[SiteIndex, PointNames]:
        every, names = super()._points(native)
        there = set(self._told["points"])
        fixed = {name: site for name, site in every.fixed.items() if name in there}
        lost = {template(name) for name in every.fixed if name not in there}
        absent = {**names.absent, **dict.fromkeys(lost, KERNEL)}
        here = SiteIndex(fixed, {})
        return here, replace(names, index=here, absent=absent, native=())

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights in vLLM."""
        found: torch.dtype = self.llm.llm_engine.vllm_config.model_config.dtype
        return found

    @property
    def device(self) -> torch.device:
        """Where inputs go and activations come back."""
        return torch.device("cpu")

    def plan(self, *args: Any, **options: Any) -> Any:
        """Refused: vLLM decides what a run takes.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "vLLM decides what runs together and where it is kept, so there is no plan of a run. "
            "Keep fewer points (names_filter) or positions (pos_slice) where memory is short."
        )

    def logit_lens(self, *args: Any, **options: Any) -> Any:
        """The logit lens, computed in this process; see `LensModel.logit_lens`.

        Args:
            args: as there.
            options: as there.
        """
        self.fetch_weights()
        return super().logit_lens(*args, **options)

    # --- runs --------------------------------------------------------------------------------

    def run_callbacks(  # type: ignore[override]  # one of its overloads
        self,
        callbacks: list[Callback],
        input: Any,
        return_type: ReturnType,
        *,
        loss_per_token: bool = False,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        labels: Any = None,
        tokens: Any = None,
        interventions: Any = (),
        **prepare: Any,
    ) -> tuple[Result, Prepared]:
        """One run of every row as a request of vLLM; see `HookedModel.run_callbacks`.

        Args:
            callbacks: what reads activations, and interventions.
            input: text or ids.
            return_type: as in `forward`.
            loss_per_token: as in `forward`.
            start_at_layer: refused.
            stop_at_layer: the layer whose input is returned; vLLM runs the others too.
            labels: refused, as `tokens`.
            tokens: refused.
            interventions: one or several for all rows; or a list with an entry for each row: its
                interventions, or None.
            prepare: options of `prepare`.

        Raises:
            UnsupportedError: what vLLM cannot do.
            InputError: an input or an intervention that does not fit.
        """
        self._check_return_type(return_type, stop_at_layer)
        _refuse(start_at_layer=start_at_layer, labels=labels, tokens=tokens)
        prepared = self._prepared(input, prepare)
        values: dict[str, Tensor] = {}
        ends = [self._stream_at(stop_at_layer, values)] if stop_at_layer is not None else []
        wants_logits = return_type is not None and stop_at_layer is None
        heads = [Callback("hook_logits", "read", _into(values, "logits"))] if wants_logits else []
        self.run_rows(prepared, [*callbacks, *ends, *heads], interventions, max_tokens=1)
        if stop_at_layer is not None:
            return values["stream"], prepared
        if not wants_logits:
            return None, prepared
        return self._returned(values["logits"], return_type, prepared, loss_per_token), prepared

    def _returned(
        self, logits: Tensor, return_type: ReturnType, prepared: Prepared, per_token: bool
    ) -> Result:
        if return_type == "logits":
            return logits
        loss = self.loss_fn(logits, ids_of(prepared), prepared.mask, per_token)
        return LogitsAndLoss(logits, loss) if return_type == "both" else loss

    def _prepared(self, input: Any, given: Mapping[str, Any]) -> Prepared:
        for name, value in given.items():
            if name not in _TAKEN and value is not None:
                raise UnsupportedError(
                    f"The vLLM engine takes no {name}: vLLM makes positions, masks and caches of "
                    f"keys and values itself. It takes {', '.join(_TAKEN[:-1])}."
                )
        options = {k: v for k, v in given.items() if v is not None and k != "use_cache"}
        return self.prepare(input, **options)

    def _stream_at(self, layer: int, values: dict[str, Tensor]) -> Callback:
        depth = self.native.sizes.n_layers
        at = layer + depth if layer < 0 else layer
        name = ("resid_pre", at) if at < depth else ("resid_post", depth - 1)
        return Callback(self.vocabulary.canonical(name), "read", _into(values, "stream"))

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
        common, own = _shared_and_own(each, len(rows_of(prepared)))
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

    def run_with_cache(self, *args: Any, incl_bwd: bool = False, **options: Any) -> Any:
        """Run texts in vLLM and keep activations; see `LensModel.run_with_cache`.

        Args:
            args: as there.
            incl_bwd: refused.
            options: as there, and `interventions`: one or several for all rows, or a list with an
                entry for each row: its interventions, or None.

        Raises:
            AbsentPointError: a point that vLLM never has.
            UnsupportedError: what vLLM cannot do.
        """
        if incl_bwd:
            raise UnsupportedError(
                "vLLM computes no gradients. Load the model with lensbridge.load(name)."
            )
        return super().run_with_cache(*args, **options)

    def run_with_interventions(self, input: Any, interventions: Any, **forward: Any) -> Any:
        """Run texts in vLLM with interventions.

        Args:
            input: text or ids.
            interventions: one or several for all rows; or a list with an entry for each row: its
                interventions, or None.
            forward: as in `forward`.

        Raises:
            InputError: an intervention does not fit.
            UnsupportedError: what vLLM cannot do.
        """
        common, own = _shared_and_own(interventions, 0)
        acting([*common, *(one for several in own for one in several)])
        return self.run_with_hooks(input, interventions=interventions, **forward)

    # --- experiments ---------------------------------------------------------------------------

    def run(self, experiment: Experiment) -> ExperimentResult:
        """Run an experiment in vLLM; see `LensModel.run`.

        Raises:
            UnsupportedError: it asks for gradients.
        """
        from lensbridge.engines.vllm.experiments import run

        return run(self, experiment)

    def sweep(self, base: Any, cells: Any, metric: Any, **options: Any) -> Any:
        """One run of the input for each cell, all cells of a batch in one dynamic batch.

        Args:
            base: the input.
            cells: interventions, or lists of them.
            metric: declared metrics or functions of logits, as in `LensModel.sweep`.
            options: `reduce`, `baseline` and `max_batch_tokens`.

        Raises:
            UnsupportedError: a cell that is no intervention.
        """
        from lensbridge.engines.vllm.experiments import sweep

        return sweep(self, base, cells, metric, **options)


_GREEDY = {"temperature": 0.0, "detokenize": False}


def _refuse(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise UnsupportedError(
                f"The vLLM engine takes no {name}: vLLM runs whole texts through all layers. Load "
                "the model with lensbridge.load(name)."
            )


def _into(values: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    return lambda value: values.update({name: value})


def _shared_and_own(
    each: Any, rows: int
) -> tuple[list[Intervention], list[Sequence[Intervention]]]:
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
