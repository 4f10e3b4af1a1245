"""A model without its weights: what runs would keep, told from the config alone."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lensbridge.cli.opening import quiet_transformers
from lensbridge.cli.options import Loading
from lensbridge.errors import InputError, LoadError

if TYPE_CHECKING:
    from lensbridge.model import LensModel
    from lensbridge.plans.plan import Plan


@dataclass(frozen=True)
class Weightless:
    """A model whose tensors have shapes and dtypes and no values, so it takes no memory."""

    lens: "LensModel"

    @cached_property
    def parameters(self) -> int:
        """How many parameters the model has; shared ones count once."""
        return sum(one.numel() for one in self.lens.parameters())

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

    def plan(self, names: list[str] | None, batch: int, length: int, gradients: bool) -> "Plan":
        """What a run keeps.

        Args:
            names: which points; None: what a cache has by default.
            batch: examples.
            length: tokens of each.
            gradients: whether gradients of the loss are kept too.

        Raises:
            InputError: it cannot be told without values.
        """
        head = "logits" if self.lens.native.returns_logits else None
        with quiet_transformers():
            return self.lens.plan(
                (batch, length),
                names,
                incl_bwd=gradients,
                return_type="loss" if gradients else head,
            )


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
            return Weightless(load(model, derive=False))


def _no_init() -> AbstractContextManager[Any]:
    """A context in which weights are not initialised: some initialisers read values."""
    from transformers.initialization import no_init_weights

    return no_init_weights()


def _class_and_config(name: str, how: Loading) -> tuple[Any, Any]:
    from transformers import AutoConfig

    from lensbridge.loading.checkpoint import model_class
    from lensbridge.loading.gguf import gguf_config, named_by
    from lensbridge.loading.hub_errors import explained
    from lensbridge.loading.source import source_of

    folder, options = named_by(name, {})
    source = source_of(folder, options)
    if how.revision:
        options["revision"] = how.revision
    if how.trust_remote_code:
        options["trust_remote_code"] = True
    try:
        if "gguf_file" in options:
            return gguf_config(source, **options)
        return model_class(source, options), AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, LoadError):
            raise
        raise explained(source, error, options) from error
