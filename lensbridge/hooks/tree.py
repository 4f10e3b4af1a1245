"""A model's points as a tree for notebooks: layers that are alike once, with sizes where known."""

from collections.abc import Iterator, Mapping

from torch import nn

from lensbridge.native.config import LensConfig
from lensbridge.native.parts import AttentionPart, MLPPart, ResolvedModel, StackPart
from lensbridge.plugins import BUILT_IN
from lensbridge.points.axes import AXES
from lensbridge.sites.site import Site
from lensbridge.viz.numbers import count_as_text
from lensbridge.viz.tree import Tree


def tree_of(kind: str, native: ResolvedModel, cfg: LensConfig, sites: Mapping[str, Site]) -> Tree:
    """The tree of a model.

    Args:
        kind: the class of the lens.
        native: its parts.
        cfg: its sizes.
        sites: its points by name.
    """
    details = {name: _said(native, name, site) for name, site in sites.items()}
    return Tree(
        f"{kind}: {type(native.core).__name__} {cfg.model_name}",
        {"description": _description(native), **_facts(native.core, cfg)},
        details,
        opened=(native.main.prefix, f"{native.main.prefix}.0"),
        notes=[f"{len(sites)} points; axes and sizes of each:"],
    )


def _description(native: ResolvedModel) -> str:
    where = "built in" if native.plugin == BUILT_IN else f"from {native.plugin}"
    return f"{native.architecture.name}, {where}"


def _facts(core: nn.Module, cfg: LensConfig) -> dict[str, str]:
    parameters = list(core.parameters())
    dtypes = {str(p.dtype).removeprefix("torch.") for p in parameters}
    devices = {str(p.device) for p in parameters}
    sizes = {"layers": cfg.n_layers, "d_model": cfg.d_model, "heads": cfg.n_heads}
    return {
        "parameters": count_as_text(sum(p.numel() for p in parameters)),
        "dtype": ", ".join(sorted(dtypes)),
        "device": ", ".join(sorted(devices)),
        **{name: str(size) for name, size in sizes.items() if size},
        **({"context": f"{cfg.n_ctx:,}"} if cfg.n_ctx else {}),
    }


def _said(native: ResolvedModel, name: str, site: Site) -> str:
    sizes = dict(_sizes(native, name))
    words = [
        f"{AXES.get(letter, letter)} {sizes[letter]}" if sizes.get(letter) else AXES[letter]
        for letter in site.info.axes.split()
        if letter in AXES
    ]
    return ", ".join(words)


def _sizes(native: ResolvedModel, name: str) -> Iterator[tuple[str, int | None]]:
    """The sizes that are known of the axes of a point."""
    stack = _stack(native, name)
    yield "m", stack.sizes.d_model
    if stack is native.main:
        yield "v", native.head_width
    yield from _of_layer(stack, name)


def _stack(native: ResolvedModel, name: str) -> StackPart:
    """The stack that a point belongs to."""
    first = name.partition(".")[0]
    known = [s for s in native.stacks if name.startswith(f"{s.prefix}.")]
    towers = [s for s in native.towers if s.prefix.partition(".")[0] == first]
    return next(iter([*known, *towers]), native.main)


def _of_layer(stack: StackPart, name: str) -> Iterator[tuple[str, int | None]]:
    layer = name.removeprefix(f"{stack.prefix}.").partition(".")[0]
    if not name.startswith(f"{stack.prefix}.") or not layer.isdigit():
        return
    block = stack.blocks[int(layer)]
    attn = block.cross if ".cross_attn." in name else block.attn
    if isinstance(attn, AttentionPart):
        yield from (("h", attn.n_heads), ("g", attn.n_kv), ("d", attn.d_head))
    if isinstance(block.mlp, MLPPart):
        yield "f", block.mlp.down.n_in
