"""Dictionary: what is known of an SAE of any library. Only this module probes the object."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

from torch import Tensor, nn

from lensbridge.errors import HookError

Part: TypeAlias = Literal["input", "acts_pre", "acts_post", "recons"]
"""The values of an SAE that are points."""

Show: TypeAlias = Callable[[str, Tensor], Tensor]
"""Passes a value of the SAE through the hooks at its point, by name."""


@runtime_checkable
class SparseAutoencoder(Protocol):
    """What an SAE or a transcoder must have. `forward` is not called.

    Shapes: `encode` maps `[..., d_in]` to `[..., d_sae]`, `decode` maps that to `[..., d_out]`.
    """

    def encode(self, x: Tensor, /) -> Tensor:
        """The features of an activation."""
        ...

    def decode(self, features: Tensor, /) -> Tensor:
        """The activation that features reconstruct."""
        ...


@dataclass(frozen=True)
class Dictionary:
    """An SAE and what its config says of it.

    Args:
        sae: the object.
        reads: the point that it was trained on, if it says so (`cfg.metadata.hook_name`).
        writes: the point that it replaces (`cfg.metadata.hook_name_out`, else `reads`).
        head: the one head that it reads and replaces; None for all.
        use_error_term: its default for the error term.
        shows: its own modules that its values pass through (SAELens's hook points).
        skip: `[d_out, d_in]`, the weight of its skip connection, or None.
    """

    sae: SparseAutoencoder
    reads: str | None = None
    writes: str | None = None
    head: int | None = None
    use_error_term: bool = False
    shows: Mapping[Part, nn.Module] = field(default_factory=dict)
    skip: Tensor | None = None

    @classmethod
    def of(cls, sae: Any) -> "Dictionary":
        """What an object's attributes and config say of it.

        Raises:
            HookError: it has no encode and decode, or computes more than these.
        """
        if isinstance(sae, type) or not isinstance(sae, SparseAutoencoder):
            raise HookError(
                f"An SAE is an object with encode and decode, and {_kind(sae)} lacks one of them."
            )
        if _said(sae, "encode_with_predictions") is not None:  # SAELens's TemporalSAE
            raise HookError(
                f"{_kind(sae)} reconstructs partly from earlier positions rather than from its "
                "features, so decode(encode(x)) is not its reconstruction. It cannot be spliced "
                "in; call it on cached activations."
            )
        about = _metadata(sae)
        reads = _said(about, "hook_name")
        skip = _said(sae, "W_skip")
        return cls(
            sae,
            reads,
            _said(about, "hook_name_out") or reads,
            _said(about, "hook_head_index"),
            bool(_said(sae, "use_error_term")),
            _shows(sae),
            skip if isinstance(skip, Tensor) else None,
        )

    @property
    def kind(self) -> str:
        """Its name in messages."""
        return type(self.sae).__name__

    @property
    def is_transcoder(self) -> bool:
        """Whether it replaces another point than it reads."""
        return self.writes != self.reads

    @property
    def is_steered(self) -> bool:
        """Whether its own hook points have hooks of the user."""
        return any(module._forward_hooks for module in self.shows.values())

    def example(self) -> Tensor | None:
        """One of its weights, for its dtype and device; None if it has no weights."""
        if isinstance(self.sae, nn.Module):
            held: Any = self.sae.parameters()
        else:
            held = (vars(self.sae) if hasattr(self.sae, "__dict__") else {}).values()
        return next((t for t in held if isinstance(t, Tensor) and t.is_floating_point()), None)

    def direction(self, feature: int, features: Tensor) -> Tensor:
        """What one unit of a feature adds to the reconstruction.

        It is the feature's row of `W_dec`, or where the SAE has no such weight the difference that
        the feature makes to what `decode` returns for no features.

        Shapes: features `[d_sae]`, any of them, for size, dtype and device; result `[d_out]`
        """
        weight = _said(self.sae, "W_dec")
        if isinstance(weight, Tensor) and weight.ndim == 2 and len(weight) == len(features):
            return weight[feature].detach()
        rows = features.new_zeros(2, len(features))
        rows[1, feature] = 1.0
        none, one = self.sae.decode(rows)
        return (one - none).detach()

    @contextmanager
    def showing(self, show: Show) -> Iterator[None]:
        """Pass the values at its own hook points through `show`, whose result replaces them.

        This applies to runs in this thread, except those that `show` itself makes.
        """
        thread, busy = get_ident(), False

        def shown(part: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
            def pass_on(module: nn.Module, args: Any, value: Tensor) -> Tensor | None:
                nonlocal busy
                if busy or get_ident() != thread:
                    return None
                busy = True
                try:
                    return show(part, value)
                finally:
                    busy = False

            return pass_on

        with ExitStack() as stack:
            for part, module in self.shows.items():
                stack.callback(module.register_forward_hook(shown(part)).remove)
            yield

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Undo the edits of hooks on its own hook points, which are identities without hooks."""
        with ExitStack() as stack:
            for module in self.shows.values():
                handle = module.register_forward_hook(lambda module, args, value: args[0])
                stack.callback(handle.remove)
            yield


def _metadata(sae: Any) -> Any:
    """The part of the config with the point: in SAELens 6 its metadata, in 5 the config itself."""
    cfg = _said(sae, "cfg")
    about = _said(cfg, "metadata")
    return cfg if about is None else about


def _said(thing: Any, name: str) -> Any:
    return getattr(thing, name, None)


def _shows(sae: Any) -> dict[Part, nn.Module]:
    own = dict(sae.named_children()) if isinstance(sae, nn.Module) else {}
    parts: tuple[Part, ...] = get_args(Part)
    return {part: own[f"hook_sae_{part}"] for part in parts if f"hook_sae_{part}" in own}


def _kind(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
