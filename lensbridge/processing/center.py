"""center_writing_weights and center_unembed: subtract means that LayerNorm or softmax ignores."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from lensbridge.native.holding import held
from lensbridge.native.linear import fetch
from lensbridge.native.parts import (
    AttentionPart,
    BlockPart,
    FeedForward,
    MLPPart,
    MoEPart,
    NormSlot,
    ResolvedModel,
    StackPart,
    Writer,
)
from lensbridge.native.table import table_held
from lensbridge.processing import matrix
from lensbridge.processing.accounting import outsiders, strangers
from lensbridge.processing.matrix import Matrix, untie, wide
from lensbridge.processing.plan import Plan
from lensbridge.processing.readers import processed_stacks
from lensbridge.processing.undo_log import UndoLog

_RMS = (
    "an RMSNorm reads the stream, and it does not subtract the mean, so the mean of what is "
    "written matters"
)
_READING: tuple[NormSlot, ...] = ("ln1", "ln_cross", "ln2")


def plan_center_writing(native: ResolvedModel) -> Plan:
    """Subtract the mean over the channels from everything that is added to the stream.

    It needs LayerNorms, which subtract that mean themselves, wherever the stream is read. It is
    done completely or not at all: centring some of the writers would be of no use, and an encoder
    and a decoder share their embedding.
    """
    plan = Plan("center_writing_weights")
    stacks = {stack.prefix: stack for stack in processed_stacks(native)}
    reasons = {prefix: next(_obstacles(native, one), None) for prefix, one in stacks.items()}
    for prefix, stack in stacks.items():
        why = next((one for one in (reasons[prefix], *reasons.values()) if one is not None), None)
        if why is None:
            plan.do(f"the stream of {prefix}", partial(_center_stack, native, stack))
        else:
            plan.leave(f"the stream of {prefix}", why)
    return plan


def _obstacles(native: ResolvedModel, stack: StackPart) -> Iterator[str]:
    """The reasons why something that is added to a stream cannot be centred."""
    if stack.residual_axes != "b p m":
        yield "there is more than one residual stream"
    norms = [stack.ln_final]
    norms += [block.norms.get(slot) for block in stack.blocks for slot in _READING]
    if any(norm is not None and norm.kind != "LN" for norm in norms):
        yield _RMS
    for i, block in enumerate(stack.blocks):
        yield from (f"in layer {i}, {why}" for why in _of_block(block))
    if stack.ln_final is None:
        yield "the stream has no final norm"
    yield from _of_embeddings(native, stack)


def _of_block(block: BlockPart) -> Iterator[str]:
    if block.residual is None or block.mixer is not None or block.per_layer is not None:
        yield "something that is not described as a matrix writes to the stream"
    elif block.residual == "post_norm":
        yield "the stream is a norm's output, whose gain and bias give it a mean (post-norm)"
    elif block.skip_norm:
        yield "the stream goes through a norm, whose gain and bias give it a mean"
    if not block.keeps_stream:
        yield "the whole stream is multiplied by a parameter, or one is added to it"
    for path in strangers(block):
        yield f"{path} is not described, so whether it writes to the stream is not known"
    for slot, part in zip(_READING, (block.attn, block.cross, block.mlp), strict=True):
        if part is not None:
            if slot not in block.norms:
                yield "a branch reads the stream without a norm"
            yield from _of_branch(part)


def _of_branch(part: AttentionPart | FeedForward) -> Iterator[str]:
    if not isinstance(part, AttentionPart | MLPPart | MoEPart):
        yield f"the inside of {type(part.module).__name__} is not described"
        return
    if part.post_norm is not None:
        yield "a norm follows a branch, and its gain gives what is added a mean"
    if part.writer.scale.held or (isinstance(part, MLPPart) and not part.writes_neurons):
        yield "the output of a branch is multiplied channel by channel"
    if isinstance(part, MoEPart) and part.experts is None:
        yield "experts cannot be read one by one"
    if part.writer.bias is not None and (why := matrix.obstacle(held(*part.writer.bias))):
        yield f"the bias of a branch {why}"
    yield from (found for found in _outputs(part) if isinstance(found, str))


def _outputs(part: AttentionPart | FeedForward) -> "Iterator[Matrix | str]":
    """The matrices whose outputs a branch adds."""
    if isinstance(part, AttentionPart):
        yield matrix.of_linear(part.out)
    elif isinstance(part, MLPPart):
        yield matrix.of_linear(part.down)
    elif isinstance(part, MoEPart):
        if part.experts is not None:
            yield matrix.of_experts(part.experts, part.experts.down)
        if part.shared is not None:
            yield from _outputs(part.shared)


def _of_embeddings(native: ResolvedModel, stack: StackPart) -> Iterator[str]:
    for module in _tables(stack):
        weight = module._parameters.get("weight")
        if weight is None or weight.ndim != 2 or weight.shape[1] != stack.sizes.d_model:
            yield f"the embeddings of a {type(module).__name__} are not the rows of a table"
        elif (why := matrix.obstacle(table_held(module))) is not None:
            yield f"the embedding {why}"
    if stack.embed is None:
        yield "no token embedding is described"
    if stack.ln_embed is not None:
        return  # the norm subtracts the mean of everything that is added before it
    if native.architecture.embed_mixed:
        yield "the embeddings are not only added"
    for path, module in outsiders(native).items():
        if isinstance(module, nn.Embedding) and module.embedding_dim == stack.sizes.d_model:
            yield f"{path} is not described, so whether it writes to the stream is not known"


def _tables(stack: StackPart) -> list[nn.Module]:
    return [module for module in (stack.embed, stack.pos_embed) if module is not None]


def _center_stack(native: ResolvedModel, stack: StackPart, undo_log: UndoLog) -> None:
    untie(native, undo_log)
    for module in _tables(stack):
        weight = module._parameters["weight"]
        assert weight is not None
        _center(weight, undo_log)
    for block in stack.blocks:
        for part in (block.attn, block.cross, block.mlp):
            if part is not None:
                _center_branch(part, part.writer, undo_log)


def _center_branch(part: AttentionPart | FeedForward, writer: Writer, undo_log: UndoLog) -> None:
    for found in _outputs(part):
        assert isinstance(found, Matrix)
        weight = found.read()
        found.write(undo_log, weight - weight.mean(-1, keepdim=True))
        if found.bias_parameter is not None:
            _center(found.bias_parameter, undo_log)
    if writer.bias is not None:
        _center(fetch(*writer.bias), undo_log)


def _center(tensor: Tensor, undo_log: UndoLog) -> None:
    value = wide(tensor.detach())
    undo_log.write(tensor, value - value.mean(-1, keepdim=True))


def plan_center_unembed(native: ResolvedModel) -> Plan:
    """Subtract the mean over the vocabulary from W_U and b_U. Log-probabilities do not change."""
    plan = Plan("center_unembed")
    why = next(_obstacles_of_the_head(native), None)
    if why is None:
        plan.do("unembed", partial(_center_unembed, native))
    else:
        plan.leave("unembed", why)
    return plan


def _obstacles_of_the_head(native: ResolvedModel) -> Iterator[str]:
    head = native.unembed
    if head is None:
        yield "there is no language-model head"
        return
    if native.logit_softcap is not None:
        yield "the logits are soft-capped, so adding a constant to them changes probabilities"
    if native.logits_axes != "b p v" or head.n_out < native.sizes.d_vocab:
        yield "the head does not give logits over the vocabulary"
    found = matrix.of_linear(head)
    if isinstance(found, str):
        yield found
    added = native.unembed_bias
    if added is not None and (why := matrix.obstacle(held(*added))):
        yield f"the bias of the head {why}"


def _center_unembed(native: ResolvedModel, undo_log: UndoLog) -> None:
    assert native.unembed is not None
    untie(native, undo_log)
    head = matrix.of_linear(native.unembed)
    assert isinstance(head, Matrix)
    weight = head.read()
    head.write(undo_log, weight - weight.mean(-1, keepdim=True))
    if head.bias_parameter is not None:
        _center(head.bias_parameter, undo_log)
    if native.unembed_bias is not None:
        _center(fetch(*native.unembed_bias), undo_log)
