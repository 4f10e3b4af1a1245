"""ModuleCache: the activations of one run of a plain module."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lensbridge.cache import ActivationCache, files
from lensbridge.cache.capture import GRAD
from lensbridge.modules.missing import Refuses, Without
from lensbridge.modules.names import ModuleNames
from lensbridge.points.names import Name
from lensbridge.sites.modules import ModuleSite, Parts

HERE = (
    *(
        "apply_slice_to_batch_dim",
        "axes",
        "decoder_attention_mask",
        "canonical",
        "dtype",
        "get",
        "items",
        "keys",
        "load",
    ),
    *("nbytes", "nbytes_by_name", "remove_batch_dim", "require", "save", "to", "toggle_autodiff"),
    *("values", "with_tensors", "to_xarray"),
)


def _message(cache: Any, name: str) -> str:
    return (
        f"A cache of a plain module has no {name}, which is about the layers, heads or tokens of a "
        "transformer. Its activations are tensors under the names of modules: list(cache)."
    )


@Without(HERE, _message)
class ModuleCache(Refuses, ActivationCache):
    """Activations of a plain module by name: `cache["layer1.0.conv1.hook_out"]`.

    A module that was called several times has an activation for each call: the first under the
    point's name, the others as `relu@1.hook_out`, `relu@2.hook_out`. Tensors are copies, because
    many modules write into what they are given.
    """

    def __repr__(self) -> str:
        return super().__repr__().replace("ActivationCache", "ModuleCache", 1)

    def axes(self, name: Name) -> str:
        """One letter for each axis of an activation (`docs/how-to/any-module.md`)."""
        full = self.canonical(name)
        site = self._site(full.removesuffix(GRAD))
        rank = self[full].ndim
        letters = ("i",) * rank if site is None else site.letters(rank)
        batch = "b" in letters and not self.has_batch_dim
        return " ".join(letters if not batch else (one for one in letters if one != "b"))

    def _site(self, name: str) -> ModuleSite | None:
        index: Any = self.vocabulary.index
        found = None if isinstance(index, tuple) else index.get(name)
        return found if isinstance(found, ModuleSite) else None

    def with_tensors(self, tensors: dict[str, Tensor], **changes: Any) -> "ModuleCache":
        """A cache of the same run with other tensors; `changes` are other arguments."""
        about = {"model": self.model, "has_batch_dim": self.has_batch_dim, **changes}
        about = {name: about[name] for name in ("model", "has_batch_dim")}
        return ModuleCache(tensors, self.vocabulary, **about)

    def save(self, path: str | Path) -> None:
        """Write the cache to a file; see `lensbridge.cache.files`."""
        files.save(self.with_tensors(dict(self), model=None), path)

    @classmethod
    def load(cls, path: str | Path, model: Any = None) -> "ModuleCache":
        """Read a cache from a file.

        Args:
            path: the file.
            model: the lens whose run it is of.
        """
        given = files.load(path, None)
        plain = given["names"]
        names = ModuleNames(plain.index, {}, {}) if model is None else model.vocabulary
        return cls(**{**given, "names": names, "model": model})

    def __getstate__(self) -> dict[str, Any]:
        names = replace(self.vocabulary, index=(*self.vocabulary.index,))
        return {**super().__getstate__(), "vocabulary": names}

    def calls(self, name: Name) -> list[Tensor]:
        """The activations of every call of a module at one point, in their order."""
        full = self.canonical(name)
        parts = Parts.of(full)
        assert parts is not None
        rest = full[len(parts.path) :]
        later = (f"{parts.path}@{i}{rest}" for i in range(1, len(self) + 1))
        found = [full]
        for one in later:
            if one not in self._tensors:
                break
            found.append(one)
        return [self[one] for one in found]
