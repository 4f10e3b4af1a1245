"""Which parameters of a model its description names, and which it does not."""

from collections.abc import Iterator

from torch import nn

from lensbridge.native.norm import Norm
from lensbridge.native.parts import (
    AttentionPart,
    BlockPart,
    MLPPart,
    MoEPart,
    ResolvedModel,
    Writer,
)


def strangers(block: BlockPart, axes: int = 1) -> dict[str, str]:
    """The parameters of a layer that its description does not name, with `axes` axes or more.

    Returns:
        Their paths in the layer, each with the branch that has it: "attn", "mixer", "cross",
        "mlp", or "" for the layer itself. What such a parameter reads or writes is not known.
    """
    known = {id(one) for one in _described(block)}
    return {
        path: _branch(block, path)
        for path, one in block.module.named_parameters()
        if id(one) not in known and one.ndim >= axes
    }


def _branch(block: BlockPart, path: str) -> str:
    branches = (
        ("attn", block.attn),
        ("mixer", block.mixer),
        ("cross", block.cross),
        ("mlp", block.mlp),
    )
    for name, part in branches:
        if part is not None and part.path and path.startswith(f"{part.path}."):
            return name
    return ""


def _described(block: BlockPart) -> Iterator[nn.Parameter]:
    for norm in block.norms.values():
        yield from norm.module.parameters()
    for attn in (block.attn, block.cross):
        if attn is not None:
            yield from _of_attention(attn)
            yield from _of_writer(attn.writer)
    if isinstance(block.mlp, MLPPart):
        yield from _of_mlp(block.mlp)
    elif isinstance(block.mlp, MoEPart):
        yield from _of_moe(block.mlp)
    beside = [one for constant in block.sum_biases for one in constant.products]
    scales = [one for scale in (*block.skip_scales, *beside) for one in scale.held]
    for held in (*scales, *filter(None, (block.out_scale,))):
        yield from _of_held(held)


def _of_attention(attn: AttentionPart) -> Iterator[nn.Parameter]:
    linears = [role.linear for role in attn.roles.values()]
    modules = [linear.module for linear in (*linears, attn.out)]
    modules += [one for one in (attn.q_norm, attn.k_norm, attn.v_norm, attn.position_bias) if one]
    if attn.latent is not None:
        latent = attn.latent
        narrow = [one.module for one in (latent.kv_down, latent.kv_up, latent.q_down) if one]
        norms = [one.module for one in (latent.kv_norm, latent.q_norm) if one]
        modules += [*narrow, *norms]
    for module in modules:
        yield from module.parameters()
    apart = [attn.sinks, *(role.bias for role in attn.roles.values())]
    for held in filter(None, apart):
        yield from _of_held(held)


def _of_mlp(mlp: MLPPart) -> Iterator[nn.Parameter]:
    for role in (mlp.up, mlp.gate):
        if role is not None:
            yield from role.linear.module.parameters()
    yield from mlp.down.module.parameters()
    for module in filter(None, (mlp.inner_norm, mlp.out_gate)):
        yield from module.parameters()
    if mlp.token_shift is not None:
        yield from _of_held(mlp.token_shift)
    yield from _of_writer(mlp.writer)


def _of_moe(moe: MoEPart) -> Iterator[nn.Parameter]:
    yield from moe.router.parameters()
    if moe.experts is not None:
        yield from moe.experts.module.parameters()
    if moe.shared is not None:
        yield from _of_mlp(moe.shared)
    if moe.out_bias is not None:
        yield from _of_held(moe.out_bias)
    yield from _of_writer(moe.writer)


def _of_writer(writer: Writer) -> Iterator[nn.Parameter]:
    for held in (*writer.scale.held, *filter(None, (writer.bias,))):
        yield from _of_held(held)


def _of_held(held: tuple[nn.Module, str]) -> Iterator[nn.Parameter]:
    found = held[0]._parameters.get(held[1])
    if found is not None:
        yield found


def outsiders(native: ResolvedModel) -> dict[str, nn.Module]:
    """The modules outside the layers that have parameters and are not named."""
    named = [native.main.embed, native.main.pos_embed, native.pooler, native.head_hidden]
    named += [native.projector, None if native.unembed is None else native.unembed.module]
    for stack in native.stacks:
        norms: tuple[Norm | None, ...] = (stack.ln_embed, stack.ln_final)
        named += [stack.embed, stack.pos_embed, *(norm.module for norm in norms if norm)]
        named += [block.module for block in stack.blocks]
    known = {id(own) for one in named if one is not None for own in one.parameters()}
    return {
        path: module
        for path, module in native.core.named_modules()
        if any(id(own) not in known for own in module.parameters(recurse=False))
    }
