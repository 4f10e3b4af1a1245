"""`LensRoot`: a model of lensbridge as a `HookedRootModule`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from weakref import ref

from torch import nn

from lensbridge.compat.transformer_lens.activation_cache import ActivationCache
from lensbridge.compat.transformer_lens.config import HookedTransformerConfig, require_unchanged
from lensbridge.compat.transformer_lens.hooking import Hooking, in_context
from lensbridge.compat.transformer_lens.lens_point import (
    LensPoint,
    TokensPoint,
)
from lensbridge.compat.transformer_lens.part_methods import PartMethods
from lensbridge.compat.transformer_lens.point import Dir, Dirs, FwdHooks, HookPoint, NamesFilter
from lensbridge.compat.transformer_lens.replacing import Replacements
from lensbridge.compat.transformer_lens.root_module import HookedRootModule
from lensbridge.compat.transformer_lens.selection import Selection
from lensbridge.compat.transformer_lens.slices import Slice
from lensbridge.compat.transformer_lens.soft_cap import uncapped
from lensbridge.compat.transformer_lens.spellings import is_listed, spelled, unspelled
from lensbridge.compat.transformer_lens.ungrouping import regroup
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
        vocabulary = self._lens.vocabulary
        full = spelled(vocabulary.canonical(unspelled(name, vocabulary.index)))
        if full not in self.made:
            self.made[full] = LensPoint(self._lens, full)
        return self.made[full]

    def __contains__(self, name: object) -> bool:
        if self.tokens is not None and name == self.tokens.name:
            return True
        index = self._lens.vocabulary.index
        return isinstance(name, str) and unspelled(name, index) in index

    def __iter__(self) -> Iterator[str]:
        yield from () if self.tokens is None else (self.tokens.name,)
        index = self._lens.vocabulary.index
        yield from (spelled(name) for name in index if is_listed(name, index))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class LensRoot(PartMethods):
    """What the classes of models share.

    Attributes:
        lens: the `LensModel`, with everything that is not here.
        hf_model: the HuggingFace model.
        grouped_lens: the model with shared keys, while `lens` has one for each query head.
        cfg: its sizes and choices; `use_attn_result` and the like are read when a run begins.
    """

    cfg: HookedTransformerConfig
    grouped_lens: LensModel | None = None

    def __init__(self, lens: LensModel, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.replacements = Replacements(self)
        self.open_lens(lens)
        self._follow_cfg()

    def _follow_cfg(self) -> None:
        """Do what the config asks for, now and when it is set later."""
        regroup(self)
        here, opened = ref(self), dict(vars(self.cfg))

        def follow(name: str) -> None:
            model = here()
            if model is not None and name in opened:
                require_unchanged(name, vars(model.cfg)[name], opened[name])
            if model is not None and name == "ungroup_grouped_query_attention":
                regroup(model)

        self.cfg.followed_by(follow)

    def open_lens(self, lens: LensModel) -> None:
        """Use another `LensModel` from now on."""
        self.lens = lens
        self.hf_model = lens.hf_model
        self.__dict__.pop("points", None)
        self.setup()
        self.replacements.move()

    def setup(self) -> None:
        """Find the points again, those of modules that stand in the model among them."""
        known = self.__dict__.get("points")
        if known is None or (known.tokens is not None) != self.cfg.use_hook_tokens:
            tokens = TokensPoint(self.lens) if self.cfg.use_hook_tokens else None
            self.points = Points(self.lens, tokens)
        self.known_names = None
        for cached in ("weights", "branches", "shown"):
            self.__dict__.pop(cached, None)

    # --- hooks -------------------------------------------------------------------------------

    @property
    def selection(self) -> Selection:
        """Selects the points that filters match, with the flags of `cfg` as they are now."""
        return Selection(self.lens.vocabulary, self.cfg)

    def point_names(self, asked: NamesFilter) -> list[str]:
        """The names of the points that a filter matches."""
        if self.points.tokens is not None and asked == self.points.tokens.name:
            return [self.points.tokens.name]
        if self.shown is None:
            return [spelled(name) for name in self.selection.names(asked)]
        return self.shown.select(asked, self.selection)

    def every_point(self) -> list[HookPoint]:
        """The points of the model, and those of what stands in it."""
        own = list(self.points.made.values())
        return own if self.shown is None else list({*own, *self.shown.points.values()})

    def clear_contexts(self) -> None:
        """Empty the `ctx` of every point."""
        for point in self.every_point():
            point.clear_context()

    def remove_all_hook_fns(
        self,
        direction: Dirs = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove functions from every point."""
        for point in self.every_point():
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
        try:
            if reset_hooks_end:
                fwd, bwd = self._hookings(fwd_hooks, "fwd"), self._hookings(bwd_hooks, "bwd")
                with in_context(self.lens, fwd, bwd, self.context_level):
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

    def _hookings(self, hooks: FwdHooks, dir: Dir) -> list[Hooking]:
        return [
            Hooking(self.hook_dict[name], hook, dir, isinstance(asked, str))
            for asked, hook in hooks
            for name in self.point_names(asked)
        ]

    # --- running -----------------------------------------------------------------------------

    def arguments(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arguments for `lens.forward`, from those of `forward`."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        asked = self.arguments(*args, **kwargs)
        with uncapped(self.lens, self.cfg, asked.get("return_type")) as head:
            return head.of(self.lens.forward(**asked))

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
        beside = self._names_beside_lens(names_filter)
        kept, fwd, bwd = self.get_caching_hooks(beside, incl_bwd, device, pos_slice=pos_slice)
        asked = self.arguments(*model_args, **model_kwargs)
        with self.hooks(fwd, bwd), uncapped(self.lens, self.cfg, asked.get("return_type")) as head:
            result, cache = self.lens.run_with_cache(
                **asked,
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
        if self.shown is not None:
            found.show(self.shown.names, kept)
        found = found.remove_batch_dim() if remove_batch_dim else found
        return head.of(result), found if return_cache_object else dict(found)

    def _asked(self, names_filter: NamesFilter) -> Any:
        """If points were named, their names, which a run must pass; otherwise a filter."""
        if self.shown is None:
            names = self.selection.names(names_filter)
        else:
            found = self.point_names(names_filter)
            index = self.lens.vocabulary.index
            shown = self.shown.names.items()
            names = [unspelled(own, index) for own, name in shown if name in found]
        if names and (names_filter is None or callable(names_filter)):
            wanted = frozenset(names)
            return lambda name: name in wanted
        return names

    def _names_beside_lens(self, names_filter: NamesFilter) -> list[str]:
        """The points that a filter matches and that the lens does not know."""
        if self.shown is None:
            return []
        return [name for name in self.point_names(names_filter) if not self.shown.is_own(name)]

    def __deepcopy__(self, memo: dict[int, Any]) -> "LensRoot":
        from lensbridge.compat.transformer_lens.opening import reopened

        other = object.__new__(type(self))
        nn.Module.__init__(other)
        plain = {"is_caching": False, "context_level": 0, "cfg": deepcopy(self.cfg, memo)}
        other.__dict__.update(plain)
        other.replacements = Replacements(other)
        stored = self.grouped_lens or self.lens
        other.open_lens(reopened(stored, deepcopy(stored.hf_model, memo)))
        other._follow_cfg()
        memo.update({id(self): other, id(self.lens): other.lens})
        self.replacements.copy_to(other.replacements, memo)
        other.setup()
        return other
