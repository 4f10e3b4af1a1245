"""A model without its weights: what runs would keep, told from the config alone."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lensbridge.cli.opening import quiet_transformers
from lensbridge.cli.options import Loading
from lensbridge.errors import InputError, LensbridgeError, LoadError

if TYPE_CHECKING:
    from torch import Tensor

    from lensbridge.model import LensModel

_EMBEDDINGS = "hook_embed"


@dataclass(frozen=True)
class Weightless:
    """A model whose tensors have shapes and dtypes and no values, so it takes no memory.

    Args:
        lens: the model.
        mode: in which tensors are made that have no values either.
    """

    lens: "LensModel"
    mode: AbstractContextManager[Any]

    @cached_property
    def parameters(self) -> int:
        """How many parameters the model has; shared ones count once."""
        return sum(one.numel() for one in self.lens.parameters())

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers."""
        model = self.lens.hf_model
        return sum(one.nbytes for one in (*model.parameters(), *model.buffers()))

    def names(self, asked: list[str] | None) -> list[str]:
        """Canonical names of points; all except the insides of experts if none are asked for.

        Raises:
            UnknownPointError: there is no such point.
        """
        if asked:
            return self.lens.vocabulary.select(asked)
        return [name for name in self.lens.hook_names if ".experts." not in name]

    def check_length(self, length: int) -> None:
        """Refuse examples that are longer than the context.

        Raises:
            InputError: with the context.
        """
        most = self.lens.cfg.n_ctx
        if most and length > most:
            raise InputError(f"--length {length} is longer than the context, {most} tokens.")

    def cache(self, names: list[str] | None, batch: int, length: int) -> "dict[str, Tensor]":
        """What a run keeps.

        Args:
            names: which points; None: what a cache has by default.
            batch: examples.
            length: tokens of each.

        Raises:
            InputError: it cannot be told without values.
        """
        wanted = self.lens.vocabulary.select(names)
        try:
            with self.mode, quiet_transformers():
                return self._run(wanted, batch, length)
        except LensbridgeError:
            raise
        except Exception as error:
            raise InputError(
                f"What a run of a {self.lens.cfg.original_architecture} keeps cannot be told "
                f"without its weights and an input ({type(error).__name__})."
            ) from error

    def _run(self, wanted: list[str], batch: int, length: int) -> "dict[str, Tensor]":
        """Embeddings are run, since ids without values cannot be checked; so they are kept here."""
        import torch

        embedded = torch.zeros(batch, length, self.lens.W_E.shape[-1], dtype=self.lens.dtype)
        passed = [name for name in wanted if name != _EMBEDDINGS]
        _, cache = self.lens.run_with_cache(embedded, names_filter=passed)
        found = {**dict(cache), _EMBEDDINGS: embedded.clone()}
        return {name: self._of_all(batch, name, found[name]) for name in wanted if name in found}

    def _of_all(self, batch: int, name: str, value: "Tensor") -> "Tensor":
        """A value that examples share, once for each of them, as in a run of ids."""
        shared = self.lens.explain(name).axes.startswith("b ") and len(value) == 1
        return value.expand(batch, *value.shape[1:]) if shared else value


def weightless(name: str, how: Loading) -> Weightless:
    """A model made from its config; nothing but the config is read.

    Raises:
        LoadError: there is no config, or no class for it.
        UnsupportedArchitectureError: no description is registered for its class.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with quiet_transformers():
        cls, config = _class_and_config(name, how)
        wanted = getattr(torch, how.dtype) if how.dtype else config.dtype or torch.float32
        make = getattr(cls, "from_config", None) or cls._from_config
        more = {"trust_remote_code": True} if how.trust_remote_code else {}
        from lensbridge import load

        with mode, _no_init():
            model = make(config, dtype=wanted, **more).eval()
            model.tie_weights()  # which comes with drawing weights
            return Weightless(load(model, derive=False), mode)


def _no_init() -> AbstractContextManager[Any]:
    """A context in which weights are not initialised: some initialisers read values."""
    from transformers.initialization import no_init_weights

    return no_init_weights()


def stored_bytes(tensors: "list[Tensor]") -> int:
    """The memory that tensors take together; what they share counts once."""
    storages = {id_of(one): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


def id_of(tensor: "Tensor") -> int:
    """The storage of a tensor, as a number."""
    return tensor.untyped_storage()._cdata


def _class_and_config(name: str, how: Loading) -> tuple[Any, Any]:
    from transformers import AutoConfig

    from lensbridge.loading import _model_class, _source
    from lensbridge.loading.hub_errors import explained

    source = _source(name, "")
    options: dict[str, Any] = {}
    if how.revision:
        options["revision"] = how.revision
    if how.trust_remote_code:
        options["trust_remote_code"] = True
    try:
        return _model_class(source, options), AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, LoadError):
            raise
        raise explained(source, error, options) from error
