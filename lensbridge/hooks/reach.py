"""How far a run has to go for what listens in it: the last layer that anybody looks into.

A run that gives neither logits nor a loss is over when everybody who listens has been called. It is
cut short only where that is certain: not if a point lies behind the layers, in a stack that may run
at any time, or in layers that share their modules, and not if somebody else's PyTorch hook would be
left out.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from lensbridge.hooks.callbacks import Callback
from lensbridge.hooks.engine import Engine
from lensbridge.hooks.native_hook import NativeHook
from lensbridge.inputs.prepare import Prepared
from lensbridge.native.fsdp import is_fully_sharded
from lensbridge.native.parts import BlockPart, ResolvedModel


def last_layer(
    engine: Engine,
    native: ResolvedModel,
    prepared: Prepared,
    callbacks: Iterable[Callback],
    muted: Callable[[str], bool],
) -> BlockPart | None:
    """The layer after which a run has nothing left to do; None: it has to go on to the end.

    Args:
        engine: who listens beside the callbacks.
        native: the model.
        prepared: the input; a key/value cache in it is to be filled in every layer.
        callbacks: what listens in this run.
        muted: whether a point is outside what this run computes.
    """
    listening, blocks = [*engine.listening, *callbacks], _in_order(native)
    if not listening or prepared.cache is not None or not _can_be_cut(engine, native, blocks):
        return None
    places = _Places(native, blocks)
    found: list[int] = []
    for name in {one.name for one in listening if not muted(one.name)}:
        layers = [places.layer(module) for module in _modules_of(engine, name)]
        if not layers or None in layers:
            return None
        found += [layer for layer in layers if layer is not None]
    last = max(found, default=None)
    return None if last is None or places.others_look_after(last) else blocks[last]


def _in_order(native: ResolvedModel) -> list[BlockPart]:
    """The layers that run one after another: those of an encoder, if there is one, come first."""
    encoder = native.towers[0].blocks if native.is_encoder_decoder and native.towers else ()
    return [*encoder, *native.blocks]


def _can_be_cut(engine: Engine, native: ResolvedModel, blocks: list[BlockPart]) -> bool:
    """Whether the form of a model lets a run end after any of its layers."""
    repeats = any(block.repeat is not None for block in blocks)
    modules = (native.core, *(block.module for block in blocks))
    apart = native.sharding is not None or any(map(is_fully_sharded, modules))
    return bool(blocks) and not repeats and not apart and not engine.replaced


def _modules_of(engine: Engine, name: str) -> list[nn.Module]:
    """The modules at which a point is read; a point of a splice is read at its host."""
    host = name.partition(".hook_sae_")[0]
    site = engine.sites.get(host)
    return [] if site is None else [stage.module for stage in site.stages_now]


class _Places:
    """In which layer each module is.

    Modules that run before the layers count as the first one's; those of an encoder-decoder are
    in none, because both stacks may share an embedding.
    """

    def __init__(self, native: ResolvedModel, blocks: list[BlockPart]) -> None:
        self.native = native
        self._layers = {path: i for i, block in enumerate(blocks) for path in block.paths}
        main = native.main
        norm = None if main.ln_embed is None else main.ln_embed.module
        after = [one.module for one in (native.unembed, native.ln_final) if one is not None]
        before = () if native.is_encoder_decoder else (main.embed, main.pos_embed, norm)
        self._before = {*before} - {None, *after}

    def layer(self, module: nn.Module) -> int | None:
        """The layer of a module; None for one behind the layers, or around them."""
        if module in self._before:
            return 0
        path = self.native.paths.get(module)
        return None if path is None else self._layer_at(path)

    def _layer_at(self, path: str) -> int | None:
        return next((self._layers[one] for one in _upwards(path) if one in self._layers), None)

    def others_look_after(self, last: int) -> bool:
        """Whether a PyTorch hook that is not lensbridge's would be left out after a layer."""
        return _is_hooked(self.native.root, False) or any(
            self._is_left_out(path, module, last) for module, path in self.native.paths.items()
        )

    def _is_left_out(self, path: str, module: nn.Module, last: int) -> bool:
        if not (module._forward_hooks or module._forward_pre_hooks) or module in self._before:
            return False
        layer = self._layer_at(path)
        if layer is None:
            entered = any(one.startswith(f"{path}." if path else "") for one in self._layers)
            return _is_hooked(module, not entered)
        if layer == last and path in self._layers:
            return _is_hooked(module, False)
        return layer > last and _is_hooked(module, True)


def _upwards(path: str) -> Iterator[str]:
    """A path, and those of what it is in.

    Example:
        >>> list(_upwards("h.1.mlp"))
        ['h.1.mlp', 'h.1', 'h']
    """
    while path:
        yield path
        path = path.rpartition(".")[0]


def _is_hooked(module: nn.Module, before: bool) -> bool:
    """Whether somebody else hooked a module's output, or (`before`) its input."""
    hooks = [*module._forward_hooks.values()]
    hooks += module._forward_pre_hooks.values() if before else []
    return not all(_is_known(one) for one in hooks)


def _is_known(hook: Any) -> bool:
    """Whether a PyTorch hook is lensbridge's, or one of transformers that collects outputs."""
    module = getattr(hook, "__module__", None) or ""
    return isinstance(hook, NativeHook) or module.startswith("transformers.")
