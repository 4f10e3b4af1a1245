"""StageModel: the part of a model that one stage of a pipeline has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lensbridge.cache.capture import Keep
from lensbridge.errors import HookError, LensbridgeError, LoadError, WeightError
from lensbridge.model import LensModel
from lensbridge.native.elsewhere import put_elsewhere
from lensbridge.native.partial import filled_up
from lensbridge.native.parts import ResolvedModel
from lensbridge.native.resolve import GIVEN, resolve, select
from lensbridge.native.resolve.finder import Finder
from lensbridge.native.settings import settings_of
from lensbridge.native.wrappers import core_of, named_parts, unwrapped
from lensbridge.pipelines.microbatches import Chunk, Gatherer, StepCache, watch
from lensbridge.pipelines.place import Part, Place, parts_of
from lensbridge.points.point_names import NamesFilter, PointNames, names_points
from lensbridge.sites.wiring.index import SiteIndex
from lensbridge.spec import Architecture
from lensbridge.tensors.dtypes import dtype_of

__all__ = ["StageModel", "open_stage"]


def open_stage(
    stage: Any, find_tokenizer: Callable[[], Any], architecture: Architecture | None
) -> "StageModel":
    """The part of a model that a stage has.

    Raises:
        LoadError: the stage was traced, or has no transformers model in it.
    """
    if any("GraphModule" in type(one).__name__ for one in stage.submod.modules()):
        raise LoadError(
            "This stage was traced (torch.distributed.pipelining.pipeline), so it is a torch.fx "
            "graph: its operations do not belong to the model's modules, where hooks would be. "
            "Make the stage by hand: take the layers of other ranks out of the model, and pass it "
            "to PipelineStage."
        )
    return StageModel(stage, find_tokenizer, architecture)


class StageModel(LensModel):
    """The layers of a model that one stage of a pipeline has, under their names in the whole model.

    The schedule runs it, not the lens: put hooks on it with `hooks()` or `add_hook`, and keep
    activations with `caching()`. In a hook, `hook.microbatch` is the number of the microbatch.
    Sizes (`cfg`) are those of the whole model.

    Attributes:
        place: where the stage is in its pipeline.
        parts: what it has of the model.
    """

    def __init__(
        self,
        stage: Any,
        find_tokenizer: Callable[[], Any],
        architecture: Architecture | None = None,
        source: str = GIVEN,
    ) -> None:
        self._chunk = Chunk()
        self.place = Place(stage, type(_model_in(stage.submod)).__name__)
        self.parts: list[str] = []
        self._lacks: dict[str, str] = {}
        super().__init__(stage.submod, find_tokenizer, architecture, source)
        self.engine.chunk = self._chunk
        watch(stage, self._chunk, self.engine.aside)
        self.place.publish(self.parts)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}; {self.place}, with {', '.join(self.parts)})"

    def _resolved(self) -> ResolvedModel:
        core = _model_in(self.hf_model)
        architecture, source = self._description
        claim = select(core, architecture, source)
        finder = Finder(core, claim.architecture.name, claim.plugin, settings_of(core))
        if claim.architecture.towers:
            raise LoadError(
                f"{type(core).__name__} has more than one stack of layers; stages of pipelines can "
                "be read of models with one."
            )
        blocks = claim.architecture.blocks
        if not isinstance(blocks, str):
            raise LoadError(
                f"The layers of {type(core).__name__} are no modules, but one module of each of "
                f"{', '.join(blocks)}; stages of pipelines can be read where they are."
            )
        whole = filled_up(core, finder.unprefixed(blocks))
        native = resolve(whole, architecture, source)
        here = {one for _, one in named_parts(self.hf_model)}
        self._split(parts_of(native), here)
        checkpointers = (one for one in here if hasattr(one, "gradient_checkpointing"))
        return replace(native, root=self.hf_model, core=core, checkpointers=tuple(checkpointers))

    def _split(self, parts: list[Part], here: set[nn.Module]) -> None:
        """Tell what is here from what is not; a weight that is not says so when it is read."""
        self.parts = [part.what for part in parts if part.module in here]
        others = [part for part in parts if part.module not in here]
        self._lacks = {start: part.what for part in others for start in part.names}
        for part in others:
            where = partial(_whereabouts, self.place, tuple(self.parts), part.what)
            put_elsewhere(part.module.modules(), where)  # which must not hold these modules

    def _points(self, native: ResolvedModel) -> tuple[SiteIndex, PointNames]:
        sites, names = super()._points(native)
        fixed = {name: site for name, site in sites.fixed.items() if self._lacking(name) is None}
        groups = {name: one for name, one in sites.groups.items() if self._lacking(name) is None}
        here = SiteIndex(fixed, groups)
        return here, replace(names, index=here, elsewhere=self._elsewhere, native=())

    def _lacking(self, name: str) -> str | None:
        """The part that has a point or weight, where that is not in this stage."""
        return next((what for at, what in self._lacks.items() if name.startswith(at)), None)

    def _elsewhere(self, name: str) -> str | None:
        what = self._lacking(name)
        return None if what is None else _whereabouts(self.place, tuple(self.parts), what)

    # --- weights -----------------------------------------------------------------------------

    @property
    def weight_names(self) -> list[str]:
        """The names of the weights that are here."""
        return [name for name in super().weight_names if self._lacking(name) is None]

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight that is here, with its name."""
        return ((name, self.weight(name)) for name in self.weight_names)

    def weight(self, name: str) -> Tensor:
        """A weight by its name in the whole model.

        Raises:
            WeightError: another stage has it, or no stage has.
        """
        where = self._elsewhere(name) if name in super().weight_names else None
        if where is not None:
            raise WeightError(f"{name} is not in this process: {where}.")
        return super().weight(name)

    # --- running -----------------------------------------------------------------------------

    @contextmanager
    def caching(
        self,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        detach: bool = True,
    ) -> Iterator[StepCache]:
        """Keep the activations of a step of the schedule, of all microbatches as one batch.

        Args:
            names_filter: what to keep, as in `run_with_cache`.
            device: where to keep it.
            dtype: as what to keep it: a dtype or its name.
            detach: False keeps the activations in the autograd graph.

        Returns:
            A cache, filled when the context ends. After several steps it has the last one.

        Raises:
            HookNeverFiredError: the schedule did not run the stage.
        """
        names = self.vocabulary.select(names_filter)
        axes = {name: self.engine.sites[name].axes for name in names}
        gatherer = Gatherer(self._chunk, axes, Keep(device, dtype_of(dtype), detach=detach))
        cache = StepCache({}, self.vocabulary, model=self)
        with self.listening(gatherer.callbacks(names_points(names_filter))):
            yield cache
        cache._fill(gatherer.whole())

    def prepare(self, input: Any, **options: Any) -> NoReturn:
        """Stages are run by their schedule.

        Raises:
            HookError: always.
        """
        raise HookError(
            f"This is {self.place}: its schedule runs it, together with the other stages. Put "
            "hooks on it with hooks() or add_hook(), keep activations with caching(), and call "
            "schedule.step(...)."
        )

    def generate(self, *args: Any, **options: Any) -> NoReturn:
        """Stages are run by their schedule.

        Raises:
            HookError: always.
        """
        self.prepare(None)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise LensbridgeError("A stage of a pipeline cannot be copied: its schedule has the one.")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise LensbridgeError("A stage of a pipeline cannot be pickled: it belongs to its process.")


def _whereabouts(place: Place, parts: tuple[str, ...], what: str) -> str:
    has = ", ".join(parts) or "no part of the model"
    return f"{place.holder(what)}, and this is {place} with {has}"


def _model_in(submod: nn.Module) -> Any:
    """The transformers model in a stage: the stage's module itself, or one inside it.

    Raises:
        LoadError: there is none.
    """
    for _, one in named_parts(unwrapped(submod)):
        core = core_of(one)
        if any(cls.__name__ == "PreTrainedModel" for cls in type(core).__mro__):
            return core
    raise LoadError(
        f"The module of this stage ({type(submod).__name__}) has no transformers model in it, so "
        "it is not known which parts of which model its modules are. Keep the model in the stage "
        "(self.model = model), with None or nn.Identity() in the places of what other ranks have."
    )
