"""An SAE of anybody's, asked once what it is. Nothing else in the room asks what an object has."""

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
    """What is asked of an SAE or a transcoder. `forward` is not called.

    Shapes: `encode` maps `[..., d_in]` to `[..., d_sae]`, `decode` maps that to `[..., d_out]`.
    """

    def encode(self, x: Tensor, /) -> Tensor:
        """Features of what it reads."""
        ...

    def decode(self, features: Tensor, /) -> Tensor:
        """What the features stand for."""
        ...


@dataclass(frozen=True)
class Dictionary:
    """An SAE and what it says of itself.

    Args:
        sae: the object.
        reads: the point that it was made for, if it says so (`cfg.metadata.hook_name`).
        writes: the point that it replaces (`cfg.metadata.hook_name_out`, else `reads`).
        head: the one head that it reads and replaces, None for all.
        use_error_term: its own choice, for whoever makes none.
        shows: modules of its own through which it passes its values (SAELens's hook points).
        skip: `[d_out, d_in]`, what it adds of its input to what it decodes, or None.
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
        """What an object says of itself.

        Raises:
            HookError: it cannot encode and decode, or that is not all that it does.
        """
        if isinstance(sae, type) or not isinstance(sae, SparseAutoencoder):
            raise HookError(
                f"An SAE is an object with encode and decode; {_kind(sae)} has not both."
            )
        if _said(sae, "encode_with_predictions") is not None:  # SAELens's TemporalSAE
            raise HookError(
                f"{_kind(sae)} makes a part of what it reconstructs from earlier positions, past "
                "its features, so decode(encode(x)) is not its reconstruction. It cannot stand at "
                "a point; call it on cached activations."
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
        """What it is called in messages."""
        return type(self.sae).__name__

    @property
    def is_transcoder(self) -> bool:
        """Whether it says that it replaces another point than it reads."""
        return self.writes != self.reads

    @property
    def is_steered(self) -> bool:
        """Whether somebody put hooks on its own hook points."""
        return any(module._forward_hooks for module in self.shows.values())

    def example(self) -> Tensor | None:
        """One of its weights, for the dtype and device that it works in; None without weights."""
        if isinstance(self.sae, nn.Module):
            held: Any = self.sae.parameters()
        else:
            held = (vars(self.sae) if hasattr(self.sae, "__dict__") else {}).values()
        return next((t for t in held if isinstance(t, Tensor) and t.is_floating_point()), None)

    @contextmanager
    def showing(self, show: Show) -> Iterator[None]:
        """Pass what goes through its own hook points to `show`, which says how it goes on.

        Only what this thread runs, and nothing that `show` itself runs.
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
        """Undo what hooks on its own hook points change, which are identities without."""
        with ExitStack() as stack:
            for module in self.shows.values():
                handle = module.register_forward_hook(lambda module, args, value: args[0])
                stack.callback(handle.remove)
            yield


def _metadata(sae: Any) -> Any:
    """Where an SAE says its place: SAELens 6 in the metadata of its config, 5 in the config."""
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
