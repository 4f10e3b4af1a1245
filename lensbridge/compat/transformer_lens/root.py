"""`LensRoot`: a model of lensbridge as a `HookedRootModule`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from lensbridge.compat.transformer_lens.activation_cache import ActivationCache
from lensbridge.compat.transformer_lens.as_module import INSTEAD, ModuleMethods
from lensbridge.compat.transformer_lens.config import HookedTransformerConfig
from lensbridge.compat.transformer_lens.lens_point import RENAMED, SPELLED, LensPoint, TokensPoint
from lensbridge.compat.transformer_lens.parameters import with_grad
from lensbridge.compat.transformer_lens.point import Dir, Dirs, FwdHooks, HookFunction, NamesFilter
from lensbridge.compat.transformer_lens.root_module import HookedRootModule
from lensbridge.compat.transformer_lens.selection import Selection
from lensbridge.compat.transformer_lens.slices import Slice
from lensbridge.compat.transformer_lens.tree import Branches, branches_of, part_at
from lensbridge.errors import InputError
from lensbridge.model import LensModel


class Points(Mapping[str, LensPoint]):
    """Every point of a model by name; any accepted spelling finds it."""

    def __init__(self, lens: LensModel, tokens: TokensPoint | None) -> None:
        self._lens = lens
        self.tokens = tokens
        self.made: dict[str, LensPoint] = {} if tokens is None else {tokens.name: tokens}

    def __getitem__(self, name: str) -> LensPoint:
        if self.tokens is not None and name == self.tokens.name:
            return self.tokens
        canonical = self._lens.vocabulary.canonical(RENAMED.get(name, name))
        spelled = SPELLED.get(canonical, canonical)
        if spelled not in self.made:
            self.made[spelled] = LensPoint(self._lens, spelled)
        return self.made[spelled]

    def __contains__(self, name: object) -> bool:
        if self.tokens is not None and name == self.tokens.name:
            return True
        return isinstance(name, str) and RENAMED.get(name, name) in self._lens.vocabulary.index

    def __iter__(self) -> Iterator[str]:
        yield from () if self.tokens is None else (self.tokens.name,)
        yield from (SPELLED.get(name, name) for name in self._lens.vocabulary.index)

    def __len__(self) -> int:
        return len(self._lens.vocabulary.index) + (self.tokens is not None)


class LensRoot(ModuleMethods):
    """What the classes of models share.

    Attributes:
        lens: the `LensModel`, with everything that is not here.
        hf_model: the HuggingFace model.
        cfg: its sizes and choices; `use_attn_result` and the like are read when a run begins.
    """

    cfg: HookedTransformerConfig

    def __init__(self, lens: LensModel, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.open_lens(lens)

    def open_lens(self, lens: LensModel) -> None:
        """Use another `LensModel` from now on."""
        self.lens = lens
        self.hf_model = lens.hf_model
        self.setup()

    def setup(self) -> None:
        """Find the points again."""
        tokens = TokensPoint(self.lens) if self.cfg.use_hook_tokens else None
        self.points = Points(self.lens, tokens)
        self.hook_dict = self.points
        for cached in ("weights", "branches"):
            self.__dict__.pop(cached, None)

    @property
    def mod_dict(self) -> Mapping[str, Any]:  # type: ignore[override]
        """Every point and every part by name."""
        parts = {path: part_at(self, path) for path in self.branches if path}
        return {**parts, **self.points}

    # --- parts -------------------------------------------------------------------------------

    @cached_property
    def branches(self) -> Branches:
        """The names below each path."""
        return branches_of([*self.points, *self.weights.names])

    def lookup(self, full: str) -> Any:
        """The weight, point or part at a path, or None."""
        if full in self.weights:
            return with_grad(self.weights[full](), self.parameters())
        if full in self.points:
            return self.points[full]
        return part_at(self, full)

    def __getattr__(self, name: str) -> Any:
        own = getattr(type(self), name, None)
        if isinstance(own, property) and own.fget is not None:
            return own.fget(self)  # it raised; again, for its own message
        if not name.startswith("_") and name not in ("lens", "points", "hf_model"):
            found = self.lookup(name)
            if found is not None:
                return found
        if name in INSTEAD:
            raise AttributeError(f"There is no {name} here. {INSTEAD[name]}")
        lens = self.__dict__.get("lens")
        if lens is not None and not name.startswith("_") and hasattr(lens.native.core, name):
            raise AttributeError(f"There is no {name} here. It is model.lens.hf_model.{name}.")
        return super().__getattr__(name)

    def call_part(self, path: str, *args: Any, **kwargs: Any) -> Tensor:
        """Run the native module of a part.

        Raises:
            InputError: it cannot be run alone.
        """
        parts: Any = self.lens
        for step in path.split("."):
            parts = parts[int(step)] if step.isdigit() else getattr(parts, step)
        if path == "pos_embed":
            count = args[0].shape[-1]
            return self.lens.W_pos[:count].expand(*args[0].shape, -1)
        if path.endswith(("attn", "cross_attn")):
            raise InputError(
                f"{path} cannot be run alone: its masks and rotations come from the model. Run the "
                f"layer: model.{path.rpartition('.')[0]}(resid)."
            )
        return parts(*args, **kwargs)

    # --- hooks -------------------------------------------------------------------------------

    @property
    def selection(self) -> Selection:
        """Selects the points that filters match, with the flags of `cfg` as they are now."""
        return Selection(self.lens.vocabulary, self.cfg)

    def point_names(self, asked: NamesFilter) -> list[str]:
        """The names of the points that a filter matches."""
        if self.points.tokens is not None and asked == self.points.tokens.name:
            return [self.points.tokens.name]
        return [SPELLED.get(name, name) for name in self.selection.names(asked)]

    def clear_contexts(self) -> None:
        """Empty the `ctx` of every point."""
        for point in list(self.points.made.values()):
            point.clear_context()

    def remove_all_hook_fns(
        self,
        direction: Dirs = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove functions from every point."""
        for point in list(self.points.made.values()):
            point.remove_hooks(direction, including_permanent, level)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: FwdHooks = (),
        bwd_hooks: FwdHooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Any]:
        """A context with functions on points for every run inside, in this thread; contexts nest.

        Args:
            fwd_hooks: pairs of a name or filter and a function on activations.
            bwd_hooks: the same on gradients, whenever `backward` is run.
            reset_hooks_end: remove them at the end; otherwise they stay until `reset_hooks`.
            clear_contexts: empty every `ctx` at the end.

        Raises:
            UnknownPointError: an unknown name.
            HookNeverFiredError: at the end, if a named point was never passed.
        """
        self.context_level += 1
        fwd_hooks = list(fwd_hooks)
        try:
            if reset_hooks_end:
                of_tokens = [hook for name, hook in fwd_hooks if name == TokensPoint.called]
                others = [pair for pair in fwd_hooks if pair[0] != TokensPoint.called]
                fwd, bwd = self._pairs(others, "fwd"), self._pairs(bwd_hooks, "bwd")
                with self._on_tokens(of_tokens), self.lens.hooks(fwd, bwd):
                    yield self
            else:
                for name, hook in fwd_hooks:
                    HookedRootModule.add_hook(self, name, hook, "fwd", level=self.context_level)
                for name, hook in bwd_hooks:
                    HookedRootModule.add_hook(self, name, hook, "bwd", level=self.context_level)
                yield self
        finally:
            self.context_level -= 1
            if clear_contexts:
                self.clear_contexts()

    @contextmanager
    def _on_tokens(self, hooks: list[HookFunction]) -> Iterator[None]:
        for hook in hooks:
            self.add_hook(TokensPoint.called, hook, level=self.context_level)
        try:
            yield
        finally:
            if hooks:
                self.points[TokensPoint.called].remove_hooks("fwd", level=self.context_level)

    def _pairs(self, hooks: FwdHooks, dir: Dir) -> list[Any]:
        return [
            (point.canonical if isinstance(asked, str) else _only(point.canonical), fn)
            for asked, hook in hooks
            for point in [self.points[name] for name in self.point_names(asked)]
            for fn in [point.adapted(hook, dir)]
        ]

    # --- running -----------------------------------------------------------------------------

    def arguments(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arguments for `lens.forward`, from those of `forward`."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self.lens.forward(**self.arguments(*args, **kwargs))

    def run_with_cache(
        self,
        *model_args: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        names_filter: NamesFilter = None,
        device: Any = None,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run the model and keep activations; the other arguments are those of `forward`.

        Without a filter the cache has every point except large ones, which it has if their flag is
        on (`set_use_attn_result` and the like) or if they are named.

        Returns:
            What `forward` returns, and the cache: an `ActivationCache`, or a dictionary.
        """
        result, cache = self.lens.run_with_cache(
            **self.arguments(*model_args, **model_kwargs),
            names_filter=self._asked(names_filter),
            device=device,
            incl_bwd=incl_bwd,
            pos_slice=None if pos_slice is None else Slice.unwrap(pos_slice).slice,
            count="columns",
        )
        if clear_contexts:
            self.clear_contexts()
        found = ActivationCache.of(cache)
        found.spread(self.cfg.n_heads)
        found = found.remove_batch_dim() if remove_batch_dim else found
        return result, found if return_cache_object else dict(found)

    def _asked(self, names_filter: NamesFilter) -> Any:
        """If points were named, their names, which a run must pass; otherwise a filter."""
        names = self.selection.names(names_filter)
        if names_filter is None or callable(names_filter):
            wanted = frozenset(names)
            return lambda name: name in wanted
        return names

    def __deepcopy__(self, memo: dict[int, Any]) -> "LensRoot":
        from lensbridge.compat.transformer_lens.opening import reopened

        other = object.__new__(type(self))
        nn.Module.__init__(other)
        plain = {"is_caching": False, "context_level": 0, "cfg": deepcopy(self.cfg, memo)}
        other.__dict__.update(plain)
        other.open_lens(reopened(self.lens, deepcopy(self.hf_model, memo)))
        return other


def _only(name: str) -> Callable[[str], bool]:
    """A filter that matches one point, which a run need not pass (it has to if it is named)."""
    return partial(str.__eq__, name)
