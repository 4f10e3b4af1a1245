"""ModuleLens: any PyTorch module, with its own modules as points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import Any

import torch
from torch import Tensor

from lensbridge.cache import ActivationCache
from lensbridge.cache.capture import GRAD, Collector, Keep
from lensbridge.errors import HookNeverFiredError, InputError, suggest
from lensbridge.gradients.backward import Backward
from lensbridge.gradients.points import Gradients, GradientsAndActivations
from lensbridge.hooks.callbacks import Callback
from lensbridge.hooks.forward import run_forward
from lensbridge.inputs.prepare import Prepared
from lensbridge.interventions.running import Interventions
from lensbridge.model import LensModel
from lensbridge.modules.acting import lazy_callbacks
from lensbridge.modules.cache import ModuleCache
from lensbridge.modules.calling import ModuleParts, ModulePreparer, WholeRun
from lensbridge.modules.missing import Refuses, Without
from lensbridge.modules.names import ModuleNames
from lensbridge.native.fsdp import name_modules
from lensbridge.native.structure import Structure
from lensbridge.points.point_names import NamesFilter
from lensbridge.sites.modules import ModuleSites
from lensbridge.sweeps.result import PatchingResult
from lensbridge.tensors.dtypes import dtype_of

HERE = (
    *("activation_x_gradient", "add_hook", "add_perma_hook", "cache_of", "collector", "device"),
    *("eval", "explain", "follow", "forward", "gradients", "hook_dict", "hook_names"),
    *("hook_points", "hooks", "interchange", "intervene", "listening", "named_parameters"),
    *("parameters", "prepare", "processed_by", "remove_hook", "reset_hooks", "run_callbacks"),
    *("run_with_cache", "run_with_hooks", "run_with_interventions", "state_dict", "sweep", "to"),
    *("to_single_str_token", "to_single_token", "to_str_tokens", "to_string", "to_tokens"),
    *("tokenizer", "train", "vocabulary", "zero_grad"),
)
_MANY = 2**40


def _message(lens: Any, name: str) -> str:
    kind = type(lens.hf_model).__name__
    return (
        f"There is no {name} here: {kind} is opened as a plain module, and {name} needs a "
        "description of a transformer. Points are the inputs and outputs of its modules "
        "(model.hook_names), and parameters are in model.hf_model."
    )


@Without(HERE, _message)
class ModuleLens(Refuses, LensModel):
    """A PyTorch module of any kind, not modified, whose points are its own modules.

    `lensbridge.load(module)` gives one for a module that no description fits: a convolutional or
    recurrent network, a diffusion model, a toy model. `conv1.hook_in` and `conv1.hook_out` are the
    input and the output of the module at `conv1`. Methods and attributes of `LensModel` that speak
    of layers, heads or tokens raise `NoDescriptionError`.

    Attributes:
        hf_model: the module itself.
        why: why no description is used.
    """

    why = ""
    _first_only = False

    def _look(self) -> None:
        native = ModuleParts.of(self.hf_model)
        sites = ModuleSites(native.core)
        self.engine.move_to(sites, tuple({self.hf_model, native.core}))
        self.native = native
        name_modules(native.paths)
        self.vocabulary = ModuleNames(sites, absent={}, depths={}, kind=type(native.core).__name__)
        self.preparer: Any = ModulePreparer.of(native, self.tokens)
        self._structure = Structure.of(self.hf_model)

    def __repr__(self) -> str:
        kind, count = type(self.native.core).__name__, len(self.native.paths)
        return f"ModuleLens({kind}, {count} modules, {len(self.hook_names)} points)"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"

    def __dir__(self) -> list[str]:
        own = {name for name in vars(type(self)) if name in HERE or name.startswith("_")}
        return sorted({*self.__dict__, *own, *HERE, "why"})

    def _without(self, name: str) -> str:
        there = hasattr(self.hf_model, name) and not name.startswith("_")
        own = f" The module has one: model.hf_model.{name}." if there else suggest(name, HERE)
        return f"A ModuleLens has no attribute {name!r}.{own}"

    @property
    def dtype(self) -> torch.dtype:
        """Of the first parameter; PyTorch's default where there is none."""
        first = next(self.hf_model.parameters(), None)
        return torch.get_default_dtype() if first is None else first.dtype

    # --- running -----------------------------------------------------------------------------

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Run the module.

        Args:
            args: its positional arguments.
            keywords: its keywords; `return_type=None` gives nothing.

        Returns:
            What the module returns.
        """
        kind = keywords.pop("return_type", "logits")
        return self.run_callbacks([], args if len(args) != 1 else args[0], kind, **keywords)[0]

    __call__ = forward

    def run_callbacks(
        self, callbacks: list[Callback], input: Any, return_type: Any, **keywords: Any
    ) -> tuple[Any, Prepared]:
        """One pass with callbacks of the engine.

        Args:
            callbacks: what reads or edits activations in this run.
            input: the positional arguments in a tuple, the keywords in a mapping, or the first
                argument.
            return_type: None gives nothing.
            keywords: of the module's forward.

        Raises:
            InputError: a return type that needs a description.
            HookNeverFiredError: a named point that the run did not pass, with the reason.
        """
        if return_type not in ("logits", "output", None):
            raise InputError(
                f"return_type={return_type!r}: a plain module gives its own output, or nothing "
                "with return_type=None. Compute a loss from the output."
            )
        prepared = self.prepare(input, **keywords)
        self.engine.check(prepared, callbacks)
        self._sites.seen.lacking.clear()
        try:
            outcome = run_forward(self.engine, self.native, prepared, WholeRun(), callbacks)
        except HookNeverFiredError as error:
            raise HookNeverFiredError(f"{error}{self._lacking(callbacks)}") from None
        if return_type is None:
            return None, prepared
        output = outcome.native
        return (self.native.logits(output) if self._first_only else output), prepared

    @property
    def _sites(self) -> ModuleSites:
        sites: Any = self.engine.native_sites
        return sites

    def _lacking(self, callbacks: Iterable[Callback]) -> str:
        """What was there in the place of tensors at the points that a run did not pass."""
        known = self._sites.seen.lacking
        names = dict.fromkeys(one.name for one in callbacks if not one.fired)
        told = [f"{name}: {known[name]}" for name in names if name in known]
        return f" {'; '.join(told)}." if told else ""

    def cache_of(self, collector: Collector, prepared: Prepared) -> ActivationCache:
        """What a collector kept of a run, as a cache."""
        return ModuleCache(
            collector.tensors, self.vocabulary, model=self, versions=collector.versions
        )

    # --- tools -------------------------------------------------------------------------------

    @contextmanager
    def intervene(self, interventions: Interventions) -> Iterator[Any]:
        """Interventions in every run inside the context; see `LensModel.intervene`."""
        with self.listening(lazy_callbacks(self, interventions)):
            yield self

    def run_with_interventions(
        self, input: Any, interventions: Interventions, **keywords: Any
    ) -> Any:
        """Run the module with interventions; see `LensModel.run_with_interventions`."""
        with self.intervene(interventions):
            return self.run_with_hooks(input, **keywords)

    def interchange(  # type: ignore[override]
        self,
        base: Any,
        sources: Any,
        site: NamesFilter,
        base_positions: Any = None,
        source_positions: Any = None,
        subspace: Any = None,
        **options: Any,
    ) -> Any:
        """Run on `base` with activations of `sources`; see `LensModel.interchange`.

        Positions may be left out: then whole activations are interchanged, or some `neurons`.
        """
        from lensbridge.interventions import Swap

        chosen = {name: options.pop(name) for name in ("heads", "neurons") if name in options}
        _, cache = self.run_with_cache(sources, site, return_type=None, **options)
        positions = {"positions": base_positions, "source_positions": source_positions}
        swap = Swap(site, cache, subspace=subspace, **positions, **chosen)
        return self.run_with_interventions(base, swap, **options)

    def sweep(self, base: Any, cells: Any, metric: Any, **options: Any) -> PatchingResult:
        """Run an input once for each cell; see `LensModel.sweep`.

        Args:
            base: the input.
            cells: cells or interventions.
            metric: a function of the output, or of the first tensor in it where there are several.
            options: `reduce`, `baseline` and `verbose` of `lensbridge.patching.sweep`.
        """
        self._learn(base)
        options = {"exact": True, "max_batch_tokens": _MANY, **options}
        return super(ModuleLens, self._with_first_tensor()).sweep(base, cells, metric, **options)

    def _learn(self, input: Any) -> None:
        """Run once, to see how many axes the activations have."""
        looks = [
            Callback(name, "read", lambda value: None, required=False) for name in self.hook_names
        ]
        with torch.no_grad():
            self.run_callbacks(looks, input, None)

    def _with_first_tensor(self) -> ModuleLens:
        """The same lens, whose runs give the first tensor of the output."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _first_only=True)
        return other

    def gradients(
        self,
        input: Any,
        names_filter: NamesFilter = None,
        of: Any = None,
        *,
        at: NamesFilter = None,
        return_activations: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        **keywords: Any,
    ) -> Any:
        """Run the module forward and back, and keep gradients at some points.

        Args:
            input: as in `run_with_cache`.
            names_filter: at which points; None: everywhere.
            of: what is differentiated: a function that maps the output to one number. Several in a
                list or by name share the run forward; the result is then a list, or a mapping.
            at: points; `of` is then called with a cache of their activations instead.
            return_activations: also keep the activations.
            device: where to keep them.
            dtype: in which dtype to keep them.
            keywords: of the module's forward.

        Raises:
            InputError: the objective is missing, does not give one number, or has no gradient.
            HookNeverFiredError: a named point that the run did not pass.
        """
        several = isinstance(of, Mapping | list | tuple)
        named = dict(of) if isinstance(of, Mapping) else dict(enumerate(of if several else [of]))
        if not named or not all(map(callable, named.values())):
            raise InputError(
                "of is a function that maps the module's output to one number, such as "
                f"lambda output: output[:, 3].sum(), or several of these; not {of!r}."
            )
        objectives = list(named.values())
        keep = Keep(device, dtype_of(dtype))
        backward = Backward.of_points(self, objectives[0], at, keep, names_filter)
        runs = backward.runs(input, self.vocabulary.select(names_filter), keywords, objectives)
        found = [_split(value, cache, return_activations) for value, cache in runs]
        if isinstance(of, Mapping):
            return dict(zip(of, found, strict=True))
        return found if several else found[0]

    # --- copies ------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {"hf_model": self.hf_model, "tokenizer": self.tokens.tokenizer, "why": self.why}

    def __setstate__(self, state: dict[str, Any]) -> None:
        type(self).__init__(self, state["hf_model"], lambda: state["tokenizer"])
        self.why = state["why"]


def _split(
    value: Tensor, cache: ActivationCache, return_activations: bool
) -> Gradients | GradientsAndActivations:
    """A number with its gradients, and the activations if they were asked for."""
    names = [name.removesuffix(GRAD) for name in cache if name.endswith(GRAD)]
    found = cache.with_tensors({name: cache[name + GRAD] for name in names})
    if not return_activations:
        return Gradients(value, found)
    kept = cache.with_tensors({name: cache[name] for name in names})
    return GradientsAndActivations(value, found, kept)
