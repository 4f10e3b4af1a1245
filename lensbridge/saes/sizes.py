"""How wide a point is, as far as that is known before a run, so that SAEs can be checked."""

from lensbridge.native.parts import AttentionPart, BlockPart, MLPPart, MoEPart, ResolvedModel
from lensbridge.points.names import layer_of, stack_of


def size_of(native: ResolvedModel, name: str, letters: list[str]) -> tuple[int, ...] | None:
    """The sizes of the last axes of a point, or None where they are known only in a run."""
    known = _block_sizes(native, name)
    found = [known.get(letter) for letter in letters]
    return None if None in found else tuple(size for size in found if size is not None)


def _block_sizes(native: ResolvedModel, name: str) -> dict[str, int]:
    layer = layer_of(name)
    if layer is None or ".mixer." in name or ".experts." in name:
        return {}
    stack = next(one for one in native.stacks if one.prefix == stack_of(name))
    sizes = {"m": stack.sizes.d_model, "1": 1}
    block = stack.blocks[layer]
    return {**sizes, **_attention_sizes(block, name), **_mlp_sizes(block, name)}


def _attention_sizes(block: BlockPart, name: str) -> dict[str, int]:
    part = block.cross if ".cross_attn." in name else block.attn
    if part is None:
        return {}
    sizes = {"h": part.n_heads, "g": part.n_kv}
    d_head = _d_head(part, name.rpartition("_")[2])
    return sizes if d_head is None else {**sizes, "d": d_head}


def _d_head(part: AttentionPart, last: str) -> int | None:
    if last == "z":
        return part.d_head
    role = {"q": part.q, "k": part.k, "v": part.v}.get(last)
    return None if role is None or part.latent is not None else role.d


def _mlp_sizes(block: BlockPart, name: str) -> dict[str, int]:
    mlp = block.mlp.shared if isinstance(block.mlp, MoEPart) else block.mlp
    return {"f": mlp.up.d} if isinstance(mlp, MLPPart) else {}
