"""What a description leaves out although the model has it.

The other checks test what a description says, so they would pass a description that says less.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from lensbridge.conformance.subject import Subject
from lensbridge.native.parts import BlockPart
from lensbridge.native.resolve.finder import Finder
from lensbridge.native.settings import raw_config, settings_of

CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""Config fields that hold the number of positions."""


class Claim(NamedTuple):
    """Something that a model has: whether it is described, and how one sees it in the model."""

    what: str
    said: bool
    shown: str


def check_nothing_is_left_out(subject: Subject) -> None:
    """Outputs, embeddings, towers, branches, experts and tables of positions are described."""
    for claim in _claims(subject):
        subject.expect.holds(claim.what, claim.said, claim.shown)


def _claims(subject: Subject) -> Iterator[Claim]:
    yield from _of_output(subject)
    yield from _of_inputs(subject)
    yield from _of_streams(subject)
    yield from _of_context(subject)
    yield from _of_vocabulary(subject)
    for at, part in subject.parts.items():
        yield from _of_block(subject, at, part)


def _of_output(subject: Subject) -> Iterator[Claim]:
    with torch.no_grad():
        native: Any = subject.call(subject.inputs)
    if not isinstance(native, Mapping):
        native = {"logits": subject.model.native.logits(native)}
    for key, point in (("logits", "hook_logits"), ("pooler_output", "hook_pooler_out")):
        shown = f"the model returns {key}, and the description has no point for it"
        value = native.get(key)
        pooled = value is not None and key == "logits" and value.ndim != 3  # of a classifier
        computed = value is not None and key == "pooler_output" and not _is_given(subject, value)
        said = value is None or pooled or computed or point in subject.names
        yield Claim(point, said, shown)


def _is_given(subject: Subject, value: torch.Tensor) -> bool:
    """Whether a module inside the model returns this value."""
    found: list[bool] = []

    def compare(module: nn.Module, args: Any, output: Any) -> None:
        same = isinstance(output, torch.Tensor) and output.shape == value.shape
        found.append(same and torch.equal(output, value))

    inner = [m for m in subject.hf_model.modules() if m is not subject.hf_model]
    handles = [module.register_forward_hook(compare) for module in inner]
    try:
        subject.bare()
    finally:
        for handle in handles:
            handle.remove()
    return any(found)


def _of_inputs(subject: Subject) -> Iterator[Claim]:
    for at in subject.stacks:
        if subject.ids_of(at) is not None:
            point = f"{at}hook_embed"
            yield Claim(
                point,
                point in subject.names,
                "the stack reads ids, and no point is their embedding",
            )
    if "decoder_input_ids" in subject.inputs:
        shown = "the model has an encoder, and no tower is described for it"
        yield Claim("towers", "encoder." in subject.stacks, shown)
    if {"pixel_values", "input_ids"} <= set(subject.inputs):
        shown = "the model reads images, and no tower is described for them"
        yield Claim("towers", "vision." in subject.stacks, shown)
    if subject.merges_pictures:
        shown = "images replace ids, and no projector is described that puts them there"
        yield Claim("projector.hook_out", "projector.hook_out" in subject.names, shown)


def _of_streams(subject: Subject) -> Iterator[Claim]:
    spec = subject.model.architecture
    for stack in (spec, *spec.towers):
        for block in stack.block if isinstance(stack.block, tuple) else (stack.block,):
            named = any((block.attn, block.mlp, block.cross, block.mixer))
            shown = "it is not described, although the layer's branches are"
            yield Claim(f"{stack.prefix}: residual", not named or block.residual is not None, shown)


def _of_context(subject: Subject) -> Iterator[Claim]:
    spec = subject.model.architecture
    said = spec.dims.context
    core = subject.model.native.core
    config = Finder(core, spec.name, "", settings_of(core)).at_config(spec.config)
    if said is None:
        found = [name for name in CONTEXTS if isinstance(config.optional(name), int)]
        shown = f"the config has {' and '.join(found)}, and the description has no context"
        yield Claim("dims.context", not found, shown)
    elif isinstance(said, str) and raw_config(core) is not None:
        shown = f"the config has no field {said!r}"
        unset = said in config.config.to_dict()
        yield Claim("dims.context", unset or config.optional(said) is not None, shown)


def _of_vocabulary(subject: Subject) -> Iterator[Claim]:
    spec, core = subject.model.architecture, subject.model.native.core
    said = spec.dims.vocab
    logits = subject.clean.values.get("hook_logits")
    if logits is None or logits.ndim != 3:
        return
    if isinstance(said, str) and raw_config(core) is not None:
        config = Finder(core, spec.name, "", settings_of(core)).at_config(spec.config)
        shown = f"the config has no field {said!r}"
        yield Claim("dims.vocab", config.optional(said) is not None, shown)


def _routes_to_stacked(subject: Subject, module: nn.Module) -> bool:
    """Whether a module inside has stacked experts and is called with a choice for each token."""
    holders = [m for m in module.modules() if "down_proj" in m._parameters]
    told: list[bool] = []

    def note(holder: nn.Module, args: Any, kwargs: Any) -> None:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
        told.append(any(not one.is_floating_point() for one in given))

    handles = [holder.register_forward_pre_hook(note, with_kwargs=True) for holder in holders]
    try:
        subject.bare()
    finally:
        for handle in handles:
            handle.remove()
    return any(told)


def _of_block(subject: Subject, at: str, part: BlockPart) -> Iterator[Claim]:
    attn, mlp = part.attn, part.mlp
    if attn is not None:
        point = f"{at}attn.hook_rel_pos_bias"
        table = any(isinstance(module, nn.Embedding) for module in attn.module.modules())
        shown = "attention has a table of relative positions, and their bias is not described"
        yield Claim(point, not table or point in subject.names, shown)
    if mlp is not None and f"{at}mlp.hook_router_logits" in subject.names:
        stacked = _routes_to_stacked(subject, mlp.module)
        point = f"{at}mlp.hook_expert_indices"
        shown = "it has stacked experts, and they are not described"
        yield Claim(f"{at}mlp.experts", not stacked or point in subject.names, shown)
