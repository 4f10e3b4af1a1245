"""Makes an `Architecture` from the trace of a model, and gives reasons for what it leaves out.

A trace (`trace`) is one run: the inputs and outputs of every module and attention kernel. What
explains these values is found from the outside in: the layers (`chain`), each `stack` with what is
before (`embeddings`) and behind it (`head`), each `block` with its sums (`residual`) and what they
add (`branches`), and in a branch its `attention`, `mlp`, `moe` or `mixer`.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lensbridge.derive.chain import find_chains, main_chain
from lensbridge.derive.fields import Fields
from lensbridge.derive.head import find_back, head_of
from lensbridge.derive.phrases import words_for
from lensbridge.derive.pooler import find_pooler
from lensbridge.derive.probe import token_table
from lensbridge.derive.stack import Side, config_of, find_stack
from lensbridge.derive.trace import Trace
from lensbridge.native.settings import settings_of
from lensbridge.spec import Architecture, Stack

_MOST = 3
"""The number of reasons that a message lists."""


@dataclass
class Description:
    """The description of a traced model.

    Args:
        architecture: None if not even a chain of layers was found.
        established: the parts that were found, in words.
        missing: which part could not be established, and why.
        alternatives: for a formula, the others that have its value.
    """

    architecture: Architecture | None = None
    established: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    alternatives: dict[str, tuple[str, ...]] = field(default_factory=dict)


def describe(trace: Trace, model: nn.Module, written: bool = True) -> Description:
    """Describe a model from a trace of it (or of a copy with other weights).

    Args:
        trace: the trace.
        model: the model.
        written: whether to find how the branches of layers are added to the stream.
    """
    found = Description()
    search = find_chains(trace)
    if not search.chains:
        reasons = list(search.refused.values())[:_MOST]
        why = "; ".join(reasons) or "it has no nn.ModuleList, nn.Sequential or nn.ModuleDict"
        found.missing["layers"] = f"no list of layers carries a stream: {why}"
        return found
    core: Any = trace.model
    config, embed = settings_of(core), token_table(core)
    head = head_of(trace, embed)
    main = main_chain(trace, search.chains, head)
    encoder = next((chain for chain in search.chains if chain.end < main.start), None)
    two = encoder is not None and "decoder_input_ids" in trace.inputs
    side: Side = "decoder" if two else ""
    stack = find_stack(trace, main, embed, side, written)
    found.missing.update(stack.missing)
    found.alternatives.update(stack.alternatives)
    towers: tuple[Stack, ...] = ()
    if two and encoder is not None:
        other = find_stack(trace, encoder, embed, "encoder", written)
        found.missing.update({f"encoder {part}": why for part, why in other.missing.items()})
        found.alternatives.update(other.alternatives)
        towers = (other.stack,)
    fields = Fields(config_of(config, side)[0], side)
    back = find_back(trace, main, head, embed, fields)
    found.missing.update(back.missing)
    found.alternatives.update(fields.alternatives)
    found.architecture = Architecture(
        **{one: getattr(stack.stack, one) for one in Stack.__dataclass_fields__},
        name=str(getattr(config, "model_type", None) or type(model).__name__.lower()),
        classes=(type(model).__name__,),
        unembed=back.unembed,
        unembed_bias=back.unembed_bias,
        head_scale=back.head_scale,
        logit_scale=back.logit_scale,
        logit_softcap=back.logit_softcap,
        head_hidden=back.head_hidden,
        pooler=find_pooler(trace, main),
        towers=towers,
    )
    found.established += words_for(found.architecture)
    return found
