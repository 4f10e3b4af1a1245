"""What the biases of some layers add to the residual stream."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from lensbridge.cache.residual.terms import Mark, Step, Term, Through, Times
from lensbridge.errors import WeightError
from lensbridge.native.linear import fetch
from lensbridge.native.norm import Norm
from lensbridge.native.parts import AttentionPart, BlockPart, MLPPart, Writer


def steps_before(steps: Iterable[Step], at: str, part: BlockPart, mlp: bool) -> Iterator[Step]:
    """The steps up to what a layer reads, or up to what its MLP reads.

    Args:
        steps: of the whole stack.
        at: the beginning of the names of the layer's points.
        part: the layer.
        mlp: whether to go on to its MLP. An MLP parallel to attention reads what the layer reads.
    """
    inside = False
    for step in steps:
        inside = inside or step == Mark(f"{at}hook_resid_pre")
        at_mlp = isinstance(step, Term) and step.kind == "mlp"
        if inside and (at_mlp or not mlp or part.residual == "parallel"):
            return
        yield step


def accumulated(steps: Iterable[Step], zero: Tensor, with_mlps: bool) -> Tensor:
    """The output biases of the branches among some steps, summed as the stream sums them.

    Args:
        steps: in the order of the stream.
        zero: `[d_model]` zeros, in the dtype and on the device of the result.
        with_mlps: whether the biases of MLPs count.

    Shapes: `[d_model]`.

    Raises:
        WeightError: what a bias adds depends on the input.
    """
    total = zero
    for step in steps:
        if isinstance(step, Times):
            total = total * step.scale.value(total)
        elif isinstance(step, Through) and bool(total.any()):
            raise _depends(step.scale.removesuffix(".hook_scale"), "the stream goes through a norm")
        elif isinstance(step, Term) and (with_mlps or step.kind != "mlp"):
            total = total + _of_term(step, zero)
    return total


def _of_term(term: Term, zero: Tensor) -> Tensor:
    """What the bias of one branch adds."""
    block = term.part
    if block is None or term.kind == "bias":  # a norm's bias is neither a b_O nor a b_out
        return zero
    part = {"attn": block.attn, "cross": block.cross, "mlp": block.mlp}.get(term.kind)
    if isinstance(part, AttentionPart):
        return _of_projection(term, part.out.bias(), part.writer, part.post_norm, zero)
    if isinstance(part, MLPPart):
        if not part.writes_neurons and bool(part.down.bias().any()):
            raise _depends(term.point, "a gate multiplies its output before it is added")
        return _of_projection(term, part.down.bias(), part.writer, part.post_norm, zero)
    for module in _undescribed(term, block):
        if _has_output_bias(module, len(zero)):
            raise _depends(term.point, "its biases belong to experts, or to undescribed modules")
    return zero


def _of_projection(
    term: Term, own: Tensor, writer: Writer, post_norm: Norm | None, zero: Tensor
) -> Tensor:
    own = own.to(zero)
    if post_norm is not None and bool(own.any()):
        raise _depends(term.point, "its output goes through a norm before it is added")
    scaled = own * writer.scale.value(own)
    return scaled if writer.bias is None else scaled + fetch(*writer.bias).to(zero)


def _undescribed(term: Term, block: BlockPart) -> list[nn.Module]:
    """The modules of a branch whose biases are not described."""
    if term.kind == "per_layer" and block.per_layer is not None:
        return [block.per_layer]
    part = block.mixer if term.kind == "mixer" else block.mlp if term.kind == "mlp" else None
    return [block.module] if part is None else [part.module, *part.writer.modules]


def _has_output_bias(module: nn.Module, width: int) -> bool:
    return any(
        name.endswith("bias") and held.shape[-1:] == (width,) and bool(fetch(one, name).any())
        for one in module.modules()
        for name, held in one._parameters.items()
        if held is not None
    )


def _depends(where: str, why: str) -> WeightError:
    return WeightError(
        f"{where}: {why}, so what the biases add depends on the input. Decompose a run instead: "
        "cache.get_full_resid_decomposition()."
    )
