"""`HookedRootModule`: a module that finds the hook points inside it and runs with hooks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lensbridge.compat.transformer_lens.point import (
    Dir,
    Dirs,
    FwdHooks,
    HookFunction,
    HookPoint,
    LensHandle,
    NamesFilter,
)
from lensbridge.compat.transformer_lens.slices import Slice, position_axis
from lensbridge.errors import UnknownPointError, suggest


class HookedRootModule(nn.Module):
    """A module with `HookPoint`s inside. Call `setup()` at the end of `__init__`.

    Example:
        >>> import torch
        >>> class Twice(HookedRootModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.hook_in = HookPoint()
        ...         self.setup()
        ...
        ...     def forward(self, x):
        ...         return 2 * self.hook_in(x)
        >>> Twice().run_with_hooks(
        ...     torch.ones(1), fwd_hooks=[("hook_in", lambda value, hook: value + 1)]
        ... )
        tensor([4.])
    """

    mod_dict: Mapping[str, Any]
    hook_dict: Mapping[str, HookPoint]

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.is_caching = False
        self.context_level = 0

    def setup(self) -> None:
        """Name every module inside, and find the points."""
        modules = {name: module for name, module in self.named_modules() if name}
        points = {name: one for name, one in modules.items() if isinstance(one, HookPoint)}
        for name, point in points.items():
            point.name = name
        self.mod_dict = modules
        self.hook_dict = points

    def hook_points(self) -> Iterable[HookPoint]:
        """Every point."""
        return self.hook_dict.values()

    def clear_contexts(self) -> None:
        """Empty the `ctx` of every point."""
        for point in self.hook_points():
            point.clear_context()

    def remove_all_hook_fns(
        self,
        direction: Dirs = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove functions from every point."""
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent, level)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Dirs = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove functions that were added, and empty the contexts."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)
        self.is_caching = False

    def check_hooks_to_add(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: HookFunction,
        dir: Dir = "fwd",
        is_permanent: bool = False,
        prepend: bool = False,
    ) -> None:
        """Called before a function is added; a subclass may raise."""

    def check_and_add_hook(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: HookFunction,
        dir: Dir = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a function at a point, if `check_hooks_to_add` does not raise."""
        self.check_hooks_to_add(hook_point, hook_point_name, hook, dir, is_permanent, prepend)
        hook_point.add_hook(hook, dir, is_permanent, level, prepend)

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: HookFunction,
        dir: Dir = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a function at a point, or at all points that a filter matches.

        Raises:
            UnknownPointError: there is no such point.
        """
        for one in self.point_names(name):
            self.check_and_add_hook(
                self.hook_dict[one], one, hook, dir, is_permanent, level, prepend
            )

    def list_hooks(
        self,
        name_filter: NamesFilter = None,
        dir: Dirs = "both",
        including_permanent: bool = True,
    ) -> dict[str, list[LensHandle]]:
        """The functions that are on now, by point."""
        points = {name: self.hook_dict[name] for name in self.point_names(name_filter)}
        found = {name: one.listeners(dir, including_permanent) for name, one in points.items()}
        return {name: handles for name, handles in found.items() if handles}

    def add_perma_hook(
        self, name: str | Callable[[str], bool], hook: HookFunction, dir: Dir = "fwd"
    ) -> None:
        """`add_hook` that `reset_hooks` leaves on."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def point_names(self, asked: NamesFilter) -> list[str]:
        """The names of the points that a filter matches: None for all.

        Raises:
            UnknownPointError: an unknown name.
        """
        if asked is None:
            return list(self.hook_dict)
        if callable(asked):
            return [name for name in self.hook_dict if asked(name)]
        names = [asked] if isinstance(asked, str) else list(asked)
        for name in names:
            if name not in self.hook_dict:
                raise UnknownPointError(
                    f"There is no hook point {name!r}.{suggest(name, self.hook_dict)} "
                    "hook_dict lists them all."
                )
        return names

    @contextmanager
    def hooks(
        self,
        fwd_hooks: FwdHooks = (),
        bwd_hooks: FwdHooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["HookedRootModule"]:
        """A context with functions on points; contexts nest.

        Args:
            fwd_hooks: pairs of a name or filter and a function on activations.
            bwd_hooks: the same on gradients; they are removed when the context ends.
            reset_hooks_end: remove them at the end.
            clear_contexts: empty every `ctx` at the end.
        """
        self.context_level += 1
        try:
            for name, hook in fwd_hooks:
                self.add_hook(name, hook, "fwd", level=self.context_level)
            for name, hook in bwd_hooks:
                self.add_hook(name, hook, "bwd", level=self.context_level)
            yield self
        finally:
            if reset_hooks_end:
                self.reset_hooks(clear_contexts, level=self.context_level)
            self.context_level -= 1

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: FwdHooks = (),
        bwd_hooks: FwdHooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run the module with functions on its points."""
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
        """A dictionary and the functions that fill it: `(cache, fwd_hooks, bwd_hooks)`.

        Gradients are kept under `<name>_grad`.
        """
        kept: dict[str, Tensor] = {} if cache is None else cache
        cut = Slice.unwrap(pos_slice)

        def saver(end: str) -> HookFunction:
            def save(value: Tensor, hook: HookPoint) -> None:
                given = value.detach().clone()  # a later function may edit it in place
                given = given if device is None else given.to(device)
                given = given[0] if remove_batch_dim else given
                axis = position_axis(str(hook.name), given.ndim)
                kept[f"{hook.name}{end}"] = cut.apply(given, axis) if pos_slice else given

            return save

        names = self.point_names(names_filter)
        fwd = [(name, saver("")) for name in names]
        return kept, fwd, [(name, saver("_grad")) for name in names] if incl_bwd else []

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Keep activations from now on in the dictionary that is returned."""
        kept, fwd, bwd = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, cache
        )
        for name, hook in fwd:
            self.add_hook(name, hook, "fwd")
        for name, hook in bwd:
            self.add_hook(name, hook, "bwd")
        self.is_caching = True
        return kept

    def cache_all(
        self, cache: dict[str, Tensor] | None, incl_bwd: bool = False, **options: Any
    ) -> dict[str, Tensor]:
        """`add_caching_hooks` at every point."""
        return self.add_caching_hooks(None, incl_bwd, cache=cache, **options)

    def cache_some(
        self,
        cache: dict[str, Tensor] | None,
        names: Callable[[str], bool],
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
    ) -> dict[str, Tensor]:
        """`add_caching_hooks` at the points that a filter matches."""
        return self.add_caching_hooks(names, incl_bwd, device, remove_batch_dim, cache)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: Any = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run the module and keep the values at its points.

        With `incl_bwd` the (scalar) result is also run backward.
        """
        cache, fwd, bwd = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, pos_slice=pos_slice
        )
        with self.hooks(fwd, bwd, reset_hooks_end, clear_contexts):
            result = self(*model_args, **model_kwargs)
            if incl_bwd:
                result.backward()
        return result, cache
