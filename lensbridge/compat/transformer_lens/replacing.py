"""Modules and points that somebody else's stand in the place of, for the runs of one model.

The native model keeps its own modules: what stands in their place is called only in runs of the
model that it was given to.
"""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from inspect import Parameter, signature
from typing import Any, Protocol

from torch import Tensor, nn

from lensbridge.compat.transformer_lens.lens_point import LensPoint
from lensbridge.compat.transformer_lens.places import Frame, Place, place_at
from lensbridge.compat.transformer_lens.tree import Part
from lensbridge.errors import HookError, InputError
from lensbridge.hooks.callbacks import Callback
from lensbridge.hooks.scope import NOBODY, entered, is_own_run
from lensbridge.hooks.standing import Replaced, StandIn, twin_of
from lensbridge.model import LensModel
from lensbridge.native.kv_cache import is_cache

_frames: ContextVar[Mapping[int, Frame]] = ContextVar("lensbridge_frames", default={})  # noqa: B039
_natively: ContextVar[frozenset[int]] = ContextVar("lensbridge_natively", default=frozenset())


class Model(Protocol):
    """The model whose parts and points are replaced."""

    lens: LensModel
    points: Mapping[str, LensPoint]

    @property
    def weights(self) -> Any:
        """Its weights, by name."""

    @property
    def branches(self) -> Container[str]:
        """The paths of its parts."""

    @property
    def lens_blocks(self) -> Container[str]:
        """The paths of its layers."""

    def part(self, path: str) -> Part:
        """Its own part at a path."""

    def run_native_part(self, path: str, *args: Any) -> Tensor:
        """Run a native module outside a run of the model."""


class Replacements:
    """What stands in the places of one model.

    Attributes:
        modules: path of a part -> the module that stands there.
        points: name of a point -> the module that stands there.
        added: path -> a module that was set where the model has nothing.
    """

    def __init__(self, root: Model) -> None:
        self._root = root
        self.modules: dict[str, nn.Module] = {}
        self.points: dict[str, nn.Module] = {}
        self.added: dict[str, nn.Module] = {}
        self._replaced: dict[str, Replaced] = {}
        self._callbacks: dict[str, Callback] = {}

    def __contains__(self, path: str) -> bool:
        return path in self.modules or path in self.points or path in self.added

    def __getitem__(self, path: str) -> nn.Module:
        for held in (self.modules, self.points, self.added):
            if path in held:
                return held[path]
        raise KeyError(path)

    @property
    def hidden(self) -> dict[str, nn.Module]:
        """Paths whose own points and parts are not in the tree -> what is there instead."""
        parts = {path: one for path, one in self.modules.items() if not self._is_itself(path, one)}
        return {**parts, **self.points}

    @property
    def foreign(self) -> dict[str, nn.Module]:
        """Every module that is not the model's own, by path."""
        return {**self.hidden, **self.added}

    def _is_itself(self, path: str, module: nn.Module) -> bool:
        return module is self._root.part(path)

    # --- putting on and taking off ------------------------------------------------------------

    def put(self, full: str, value: Any) -> None:
        """Let a module stand at a path.

        Raises:
            HookError: not a module, or nothing can stand there.
        """
        if full in self._root.weights:
            raise HookError(f"{full} is a weight: set it to a tensor, not {type(value).__name__}.")
        if not isinstance(value, nn.Module):
            raise HookError(
                f"{full} cannot be set to {type(value).__name__}: what stands in a model is a "
                "torch module, and a weight is a tensor. The sizes and choices of the model are "
                "those of the HuggingFace model."
            )
        if full in self._root.points:
            self._put_at_point(self._root.points[full], value)
        elif full in self._root.branches:
            self._put_at_part(full, value)
        else:
            self.added[full] = value

    def _put_at_part(self, path: str, module: nn.Module) -> None:
        if self._is_itself(path, module) and not self._root.part(path).has_own_call:
            self.take_off(path)
            return
        if path not in self._replaced:
            place = place_at(self._root.lens.native, path)
            self._replaced[path] = self._replacing(place)
        self.modules[path] = module
        self._stand()

    def _put_at_point(self, point: LensPoint, module: nn.Module) -> None:
        path = point.own_name
        if module is point:
            self.take_off(path)
            return
        point.leave()

        adapted = point.adapted(lambda value, hook: module(value.clone()), "fwd")
        engine = self._root.lens.engine

        def stand_in(value: Tensor, hook: Any) -> Any:
            returned = adapted(value, hook) if is_own_run(engine) else None
            return value if returned is None else returned

        here = Callback(point.canonical, "splice", stand_in, path, required=False, permanent=True)
        self._callbacks[path], self.points[path] = here, module
        self._stand()

    def take_off(self, full: str) -> None:
        """Let the model's own stand at a path again.

        Raises:
            HookError: nothing else stands there.
        """
        if full in self._root.points and self._root.points[full].own_name in self.points:
            point = self._root.points[full]
            del self.points[point.own_name], self._callbacks[point.own_name]
            self._stand()
            point.come_back()
        elif full in self.modules:
            self._root.part(full).__dict__.pop("forward", None)
            del self.modules[full], self._replaced[full]
            self._stand()
        elif full in self.added:
            del self.added[full]
        elif full not in self._root.points and full not in self._root.branches:
            raise HookError(f"There is no {full} to take off.")

    def _stand(self) -> None:
        self._root.lens.engine.replace(self._replaced.values(), self._callbacks.values())

    def move(self) -> None:
        """Stand in the places of the model's new lens."""
        modules, points = dict(self.modules), dict(self.points)
        for held in (self.modules, self.points, self._replaced, self._callbacks):
            held.clear()
        for path, module in {**modules, **points}.items():
            self.put(path, module)

    def copy_to(self, other: "Replacements", memo: dict[int, Any]) -> None:
        """Let copies of what stands here stand in a copy of the model."""
        for path, module in {**self.added, **self.modules, **self.points}.items():
            other.put(path, deepcopy(module, memo))

    # --- runs ---------------------------------------------------------------------------------

    def _replacing(self, place: Place) -> Replaced:
        twin = twin_of(place.module)
        return Replaced(place.path, place.module, twin, self._stand_in(place, twin), place.outside)

    def _stand_in(self, place: Place, twin: nn.Module) -> StandIn:
        def stand_in(native: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if id(place.module) in _natively.get():
                return twin(*args, **kwargs)
            frame = Frame(place, twin, args, kwargs)
            token = _frames.set({**_frames.get(), id(place.module): frame})
            try:
                value = self._call(self.modules[place.path], frame)
            finally:
                _frames.reset(token)
            if place.kind != "module" and frame.output is None:
                self._refuse_cached(frame)
            with entered(self._root.lens.engine, NOBODY):  # the form may take a run to find
                return frame.answer(value, native)

        return stand_in

    def _call(self, module: nn.Module, frame: Frame) -> Any:
        """Call what stands at a place as TransformerLens calls it."""
        value = frame.given
        if frame.place.kind == "module":
            return module(value)
        more = {"past_kv_cache_entry": None, "attention_mask": self._mask()}
        taken = _accepted(module, ("query_input", "shortformer_pos_embed", *more))
        more = {name: one for name, one in more.items() if name in taken}
        if frame.place.kind == "block":
            more.update({"shortformer_pos_embed": None} if "shortformer_pos_embed" in taken else {})
            return module(value, **more)
        if "query_input" not in taken:
            return module(value, **more)
        return module(query_input=value, key_input=value, value_input=value, **more)

    def _mask(self) -> Tensor | None:
        """Shapes: `[batch, pos]`, of the pass that is going on."""
        engine = self._root.lens.engine
        here = engine.current or engine.base
        given = None if here is None else here.state.progress.named.get("attention_mask")
        return given if isinstance(given, Tensor) and given.ndim == 2 else None

    def _refuse_cached(self, frame: Frame) -> None:
        """Keys and values of earlier positions are lost where the old module is not run."""
        caches = [one for one in (*frame.args, *frame.kwargs.values()) if is_cache(one)]
        engine, mask = self._root.lens.engine, self._mask()
        here = engine.current or engine.base
        later = here is not None and (here.state.progress.past or here.state.progress.step > 0)
        longer = mask is not None and mask.shape[1] > frame.given.shape[1]
        if caches and (later or longer):
            raise HookError(
                f"What stands at {frame.place.path} did not call the module that was there before, "
                "which keeps the keys and values of earlier positions. Generate with "
                "use_past_kv_cache=False."
            )

    def call_native(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """What the native module at a path gives; None where nothing stands in its place."""
        here = self._replaced.get(path)
        if here is None:
            return None
        frame = _frames.get().get(id(here.module))
        if frame is not None:
            return frame.run_native(one_value(path, *args, **kwargs))
        if path.endswith("attn") or args == ():
            return None
        if path in self._root.lens_blocks:
            with _run_natively(here.module):
                return self._root.run_native_part(path, *args)
        output = here.twin(*args, **kwargs)
        return output if isinstance(output, Tensor) else output[0]


def _accepted(module: nn.Module, names: tuple[str, ...]) -> set[str]:
    """Which of these keywords a module takes."""
    if isinstance(module, Part):
        return set(names)
    given = signature(module.forward).parameters
    anything = any(one.kind is Parameter.VAR_KEYWORD for one in given.values())
    return {name for name in names if anything or name in given}


def one_value(
    path: str,
    value: Any = None,
    key_input: Tensor | None = None,
    value_input: Tensor | None = None,
    query_input: Tensor | None = None,
    **_: Any,
) -> Any:
    """The input of a module that was called as TransformerLens calls it.

    Raises:
        InputError: queries, keys and values are to read different inputs.
    """
    query = value if query_input is None else query_input
    others = [one for one in (key_input, value_input) if one is not None and one is not query]
    if any(one.shape != query.shape or not bool((one == query).all()) for one in others):
        raise InputError(
            f"{path} reads one input for queries, keys and values. To give them different ones, "
            "hook hook_q_input, hook_k_input and hook_v_input of the layer."
        )
    return query


@contextmanager
def _run_natively(module: nn.Module) -> Iterator[None]:
    token = _natively.set(_natively.get() | {id(module)})
    try:
        yield
    finally:
        _natively.reset(token)
