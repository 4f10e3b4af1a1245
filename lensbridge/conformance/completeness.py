"""What a description leaves out although the model has it.

The other checks test what a description says, so they would pass a description that says less.
"""

from collections.abc import Iterator

import torch
from torch import nn

from lensbridge.conformance.absent import claims_of_absent
from lensbridge.conformance.claim import Claim
from lensbridge.conformance.contexts import claims_of_context
from lensbridge.conformance.ends import claims_of_ends, is_given
from lensbridge.conformance.native_calls import (
    NativeCall,
    inner_modules,
    kernels_in,
    watch_calls,
)
from lensbridge.conformance.routers import beside_router, claims_of_router
from lensbridge.conformance.subject import Subject, config_of
from lensbridge.conformance.twins import twins_of
from lensbridge.conformance.unsaid import lacks_of
from lensbridge.conformance.vocabulary_size import claims_of_vocabulary
from lensbridge.native.parts import AttentionPart, BlockPart, MoEPart, StackPart
from lensbridge.native.resolve import config_dict
from lensbridge.native.settings import raw_config
from lensbridge.processing.accounting import strangers
from lensbridge.spec import Dims


def check_nothing_is_left_out(subject: Subject) -> None:
    """Outputs, embeddings, towers, branches, experts and tables of positions are described."""
    for claim in _claims(subject):
        subject.expect.holds(claim.what, claim.said, claim.shown)


def _claims(subject: Subject) -> Iterator[Claim]:
    yield from claims_of_ends(subject)
    yield from _of_inputs(subject)
    yield from _of_streams(subject)
    yield from claims_of_context(subject)
    yield from claims_of_absent(subject)
    yield from claims_of_vocabulary(subject)
    yield from _of_requirements(subject)
    yield from _of_widths(subject)
    yield from (Claim(what, False, shown) for what, shown in twins_of(subject))
    for at, part in subject.parts.items():
        yield from _of_block(subject, at, part)


def _of_inputs(subject: Subject) -> Iterator[Claim]:
    for at in subject.stacks:
        if subject.ids_of(at) is not None:
            point = f"{at}hook_embed"
            yield Claim(
                point,
                point in subject.names,
                "the stack reads ids, and no point is their embedding",
            )
    for at, stack in subject.stacks.items():
        sees = stack.prefix.startswith("vision") or "input_ids" not in subject.inputs
        if sees and "pixel_values" in subject.inputs:
            point = f"{at}hook_embed"
            shown = "the stack reads images, and no point is their embedding"
            # Mllama's first layer reads what no module gives
            first = subject.clean.values.get(f"{stack.prefix}.0.hook_resid_pre")
            made = first is not None and not _comes_of_module(subject, first)
            said = point in subject.names or made or _joins_patches(subject, stack)
            yield Claim(point, said, shown)
    if "decoder_input_ids" in subject.inputs:
        shown = "the model has an encoder, and no tower is described for it"
        yield Claim("towers", "encoder." in subject.stacks, shown)
    if {"pixel_values", "input_ids"} <= set(subject.inputs):
        shown = "the model reads images, and no tower is described for them"
        yield Claim("towers", "vision." in subject.stacks, shown)
    if subject.merges_pictures:
        shown = "images replace ids, and no projector is described that puts them there"
        yield Claim("projector.hook_out", "projector.hook_out" in subject.names, shown)


def _comes_of_module(subject: Subject, first: torch.Tensor) -> bool:
    """Whether a module gives the stream, or is given the images and gives a vector for each of its
    positions, to which something else is added.
    """
    images, found = subject.inputs["pixel_values"], list[bool]()

    def note(call: NativeCall) -> None:
        out, seen = call.output, any(one.numel() == images.numel() for one in call.tensors)
        if seen and isinstance(out, torch.Tensor) and out.numel() == first.numel():
            found.append(out.shape[-1] == first.shape[-1])

    watch_calls(subject, inner_modules(subject), note)
    return any(found) or is_given(subject, first)


def _joins_patches(subject: Subject, stack: StackPart) -> bool:
    """Whether the embedding's norm reads no module's output, but the patches of several images."""
    if stack.ln_embed is None:
        return False
    norm, outputs, given = stack.ln_embed.module, list[torch.Tensor](), list[bool]()

    def note(call: NativeCall) -> None:
        if call.module is norm:
            read = call.tensors[0]
            alike = [one for one in outputs if one.shape == read.shape]
            given.append(any(subject.expect.are_close(one, read) for one in alike))
        elif isinstance(call.output, torch.Tensor):
            outputs.append(call.output)

    watch_calls(subject, inner_modules(subject), note)
    return not any(given)


def _of_streams(subject: Subject) -> Iterator[Claim]:
    for lack in lacks_of(subject):
        yield Claim(lack.what, False, lack.shown)


def _of_widths(subject: Subject) -> Iterator[Claim]:
    """The sizes of the stream are as said, and the field that is named for the heads is there."""
    for at, stack in subject.stacks.items():
        stream = subject.clean.values.get(f"{stack.prefix}.0.hook_resid_pre")
        if stream is None:
            continue
        if stack.residual_axes.endswith(" m"):
            shown = f"it is {stack.sizes.d_model}, and the stream has {stream.shape[-1]}"
            yield Claim("dims.d_model", stream.shape[-1] == stack.sizes.d_model, shown)
        elif stack.residual_axes.endswith(" c"):
            several = stream.shape[-1] > stack.sizes.d_model
            shown = "the stream is as wide as dims.d_model, so that it is one stream"
            yield Claim("streams", several, shown)
        ids = subject.ids_of(at)
        if stack.end_to_end and ids is not None:
            more = stream.shape[1] > ids.shape[1]
            yield Claim("streams", more, "there is one position for each token")
    spec, core = subject.model.architecture, subject.model.native.core
    said = spec.dims.heads
    if isinstance(said, str) and said != Dims.heads and raw_config(core) is not None:
        config = config_of(subject, spec)
        known = config.optional(said) is not None
        yield Claim("dims.heads", known, f"the config has no field {said!r}")
        blocks = subject.model.native.main.blocks
        held = "attention_head" in said or any(part.attn is not None for part in blocks)
        usual = not held and config.optional(str(Dims.heads)) is not None
        yield Claim("dims.heads", not usual, f"the config has the field {Dims.heads!r}")


def _of_requirements(subject: Subject) -> Iterator[Claim]:
    """The config has the values without which the description does not apply."""
    config = config_dict(subject.model.native.core)
    for field, wanted in subject.model.architecture.requires.items():
        there = f"{field}={config[field]!r}" if field in config else f"no field {field!r}"
        shown = f"the config has {there}, and the description requires {field}={wanted!r}"
        yield Claim("requires", config.get(field) == wanted, shown)


def _routes_to_stacked(subject: Subject, mlp: MoEPart, tokens: int) -> bool:
    """Whether a mixture has stacked experts, and gives tokens to them in a way that can be said.

    That is: some module is given or returns the chosen indices, or each expert is given all tokens.
    """
    stacked = [one for one in beside_router(mlp) if _are_stacked(one, mlp.n_experts)]
    found: list[bool] = []

    def note(call: NativeCall) -> None:
        returned = call.output if isinstance(call.output, tuple) else ()
        told = [*call.tensors, *(one for one in returned if isinstance(one, torch.Tensor))]
        found.append(any(not one.is_floating_point() for one in told))
        if call.module in stacked:
            found.append(any(len(one) == mlp.n_experts * tokens for one in call.tensors))

    watch_calls(subject, mlp.module.modules() if stacked else (), note)
    return any(found)


def _are_stacked(module: nn.Module, n: int) -> bool:
    """Whether a module has the weights of all experts, by expert or in rows.

    There can be fewer experts than choices (`n`), of which some compute nothing.
    """
    if isinstance(module, nn.Linear):
        return False
    own = [one for one in module._parameters.values() if one is not None]
    by_expert = any(one.ndim == 3 and 1 < one.shape[0] <= n for one in own)
    return by_expert or any(
        one.ndim == 2 and one.shape[0] > n and one.shape[0] % n == 0 for one in own
    )


def _biases_beside(part: BlockPart, attn: AttentionPart) -> Iterator[str]:
    """Parameters beside one projection to q, k and v that are as wide as one of these."""
    linears = {role.linear.module for role in attn.roles.values()}
    widths = {role.n * role.d for role in attn.roles.values()}
    for path in strangers(part) if len(attn.roles) == 3 and len(linears) == 1 else ():
        owner, _, name = path.rpartition(".")
        module = part.module.get_submodule(owner)
        own = module._parameters[name]
        beside = linears <= set(module.children())
        if beside and own is not None and own.ndim == 1 and len(own) in widths:
            yield path


def _of_block(subject: Subject, at: str, part: BlockPart) -> Iterator[Claim]:
    attn, mlp = part.attn, part.mlp
    alone = mlp is None or (attn is None and part.mixer is None)
    shown = "it is parallel, and the layer has one branch"
    yield Claim(f"{at}residual", not (alone and part.residual == "parallel"), shown)
    if attn is not None:
        point = f"{at}attn.hook_rel_pos_bias"
        table = any(isinstance(module, nn.Embedding) for module in attn.module.modules())
        shown = "attention has a table of relative positions, and their bias is not described"
        yield Claim(point, not table or point in subject.names, shown)
    if attn is not None:
        for path in _biases_beside(part, attn):
            shown = f"{path} is held beside the projection to q, k and v, and is not described"
            yield Claim(f"{at}attn.q_bias or v_bias", False, shown)
    if part.mixer is not None and part.mixer.fed_more and part.mixer.feeder is None:
        shown = "attention runs in the layer, feeds the mixer, and is not described"
        yield Claim(f"{at}mixer.feeder", kernels_in(subject, part.module) == 0, shown)
    excused = "experts" in subject.model.architecture.undescribed
    if isinstance(mlp, MoEPart):
        yield from claims_of_router(at, mlp, excused)
    if isinstance(mlp, MoEPart) and f"{at}mlp.hook_router_logits" in subject.names:
        tokens = subject.clean[f"{at}mlp.hook_router_logits"][..., 0].numel()
        stacked = not excused and _routes_to_stacked(subject, mlp, tokens)
        point = f"{at}mlp.hook_expert_indices"
        shown = "it has stacked experts, and they are not described"
        yield Claim(f"{at}mlp.experts", not stacked or point in subject.names, shown)
