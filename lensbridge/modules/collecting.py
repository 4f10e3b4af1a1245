"""What is kept of a run of a plain module, where a module may run often and write in place."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from lensbridge.cache.capture import Collector, Keep, version_of
from lensbridge.hooks.callbacks import Hook
from lensbridge.modules.sites import ModuleSite, of_call


class ModuleCollector(Collector):
    """Callbacks that keep the activations of every call of every module."""

    def _reader(self, name: str) -> Callable[[Tensor], None]:
        site, seen = self.sites[name], 0
        assert isinstance(site, ModuleSite)

        def read(value: Tensor) -> None:
            nonlocal seen
            full = of_call(name, seen)
            seen += 1
            copied = value.clone() if self.keep.detach else value  # a later module may overwrite it
            self.tensors[full] = self._kept(copied, site)
            self.versions[full] = version_of(self.tensors[full])

        return read

    def _kept(self, value: Tensor, site: ModuleSite) -> Tensor:
        axes = " ".join(site.letters(value.ndim))
        has_positions = "p" in axes.split()
        keep = self.keep if has_positions else replace(self.keep, pos_slice=None)
        return keep.capture(value, axes, False)

    def _join_graph(self, name: str) -> Callable[[Tensor, Hook], Tensor]:
        seen = 0

        def join(value: Tensor, hook: Hook) -> Tensor:
            nonlocal seen
            full = of_call(name, seen)
            seen += 1
            if not value.is_floating_point():
                return value
            self.graph[full] = value if value.requires_grad else value.requires_grad_()
            return self.graph[full].clone()  # the model may write into what it goes on with

        return join


def of_run(sites: object, names: list[str], keep: Keep) -> ModuleCollector:
    """A collector for some points."""
    return ModuleCollector(sites, names, keep)  # type: ignore[arg-type]
