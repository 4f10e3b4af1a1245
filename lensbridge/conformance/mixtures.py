"""Mixtures of experts: what they read and add, and edits of the routing, which re-route."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.conformance.attention_edits import hold_only_within
from lensbridge.conformance.mlp import mlp_input
from lensbridge.conformance.passes import Block, kind_of
from lensbridge.conformance.subject import Subject
from lensbridge.hooks.callbacks import Hook
from lensbridge.native.linear import fetch
from lensbridge.native.parts import BlockPart, MoEPart


def check_mixtures_read_what_is_before(subject: Subject) -> None:
    """A mixture is given the output of the norm before it, so nothing stands between the two."""
    mixtures = {at: part for at, part in subject.parts.items() if isinstance(part.mlp, MoEPart)}
    given: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for at, part in mixtures.items():
            assert isinstance(part.mlp, MoEPart)

            def note(module: nn.Module, args: Any, kwargs: Any, at: str = at) -> None:
                given[at] = next(one for one in (*args, *kwargs.values()) if torch.is_tensor(one))

            handle = part.mlp.router.register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(handle.remove)
        subject.bare()
    for at in given:
        block = subject.clean.blocks[at]
        before = mlp_input(block, mixtures[at])
        wanted = block[before]
        read = given[at].view(wanted.shape) if given[at].numel() == wanted.numel() else given[at]
        subject.expect.close(block.name("mlp.hook_in"), read, wanted, before)


def check_editing_the_router_re_routes(subject: Subject) -> None:
    """A token whose router logits prefer another expert is sent to that expert.

    Where a table chooses the experts, the logits of a chosen one change what the mixture adds.
    """
    for block, mlp in _routed(subject):
        logits = block["mlp.hook_router_logits"][..., : mlp.n_experts]
        table = None if mlp.table is None else fetch(*mlp.table)[subject.tokens]
        wanted = _unchosen(block, logits) if table is None else table[0, 1, 0]

        def prefer(value: Tensor, hook: Hook, wanted: Tensor = wanted) -> None:
            value[0, 1, wanted] = value[0, 1].max() + 3.0

        names = [block.name(n) for n in ("hook_mlp_out", "mlp.hook_expert_indices") if n in block]
        after = subject.read(names, [(block.name("mlp.hook_router_logits"), prefer)])
        name = block.name("hook_mlp_out")
        region = torch.zeros_like(after[name], dtype=torch.bool)
        region[0, 1] = True
        hold_only_within(
            subject,
            name,
            after[name],
            block["hook_mlp_out"],
            region,
            "an edit of the router's logits at one token",
        )
        indices = block.name("mlp.hook_expert_indices")
        if table is not None and indices in after.values:
            found = after[indices].view(table.shape)
            subject.expect.same(indices, found, table.to(found), "the table's rows of the tokens")
        elif indices in after.values:
            chosen = bool((after[indices][0, 1] == wanted).any())
            subject.expect.holds(indices, chosen, f"expert {int(wanted)} was preferred, not chosen")


def _unchosen(block: Block, logits: Tensor) -> Tensor:
    """The expert with the least logit at one token, of those that are not chosen there."""
    left = logits[0, 1].clone()
    if "mlp.hook_expert_indices" in block:
        chosen = block["mlp.hook_expert_indices"][0, 1]
        left[chosen[chosen < len(left)]] = torch.inf
    return left.argmin()


def _routed(subject: Subject) -> Iterable[tuple[Block, MoEPart]]:
    """One mixture for each class of router in each stack."""
    found: dict[tuple[str, type], tuple[Block, MoEPart]] = {}
    for block in subject.clean.having("mlp.hook_router_logits"):
        mlp = subject.parts[block.at].mlp
        assert isinstance(mlp, MoEPart)
        found[kind_of(block.at), type(mlp.router)] = block, mlp
    return found.values()


def check_expert_choices_are_obeyed(subject: Subject) -> None:
    """Edits of weights scale what the routed experts add; edits of indices change the experts."""
    for block in subject.samples("mlp.hook_expert_indices", "mlp.hook_expert_weights"):
        name = block.name("hook_mlp_out")
        mlp = subject.parts[block.at].mlp
        assert isinstance(mlp, MoEPart)
        n, at = mlp.n_experts, int(block["mlp.hook_expert_weights"][0, :, 0].abs().argmax())

        def onwards(value: Tensor, hook: Hook, n: int = n, at: int = at) -> None:
            value[0, at] = (value[0, at] + 1) % n

        def double(value: Tensor, hook: Hook, at: int = at) -> None:
            value[0, at, 0] *= 2  # not all of them: a later norm would undo that

        for point, edit in (("expert_indices", onwards), ("expert_weights", double)):
            full = block.name(f"mlp.hook_{point}")
            after = subject.read([name], [(full, edit)])[name]
            region = torch.zeros_like(after, dtype=torch.bool)
            region[0, at] = True
            hold_only_within(
                subject,
                name,
                after,
                block["hook_mlp_out"],
                region,
                f"an edit of {full} at one token",
            )


def check_experts_sum_to_mlp_out(subject: Subject) -> None:
    """What the MLP adds is the weighted outputs of the experts, plus that of the shared MLP."""
    for block in subject.clean.having("mlp.hook_expert_weights", "hook_mlp_out"):
        mlp = subject.parts[block.at].mlp
        assert isinstance(mlp, MoEPart)
        assert mlp.experts is not None
        scale = mlp.writer.scale.value(block["hook_mlp_out"])
        added = block["hook_mlp_out"] / (scale.detach() if isinstance(scale, Tensor) else scale)
        if "ln2_post.hook_scale" in block:
            added = block["ln2_post.hook_normalized"] * block["ln2_post.hook_scale"]
        if mlp.out_bias is not None:
            added = added - fetch(*mlp.out_bias).detach().to(added)
        routed = _weighed(block, before=mlp.experts.given == "all")
        routed = (routed + _given_back(block, subject.parts[block.at], mlp)).view(added.shape)
        if "mlp.shared.hook_out" not in block:
            subject.expect.proportional(
                block.name("hook_mlp_out"), added, routed, "the experts' weighted outputs"
            )
            continue
        rest = _least_squares(added, routed, block["mlp.shared.hook_out"].view(added.shape))
        subject.expect.close(
            f"{block.name('hook_mlp_out')}, minus the outputs of the experts and the shared MLP,",
            rest,
            torch.zeros_like(rest),
            "zero",
        )


def _weighed(block: Block, before: bool) -> Tensor:
    """The sum of the experts' outputs, times their weights if these were not applied before.

    Shapes: `[token, m]`.
    """
    indices = block["mlp.hook_expert_indices"].flatten(0, -2)
    weights = block["mlp.hook_expert_weights"].flatten(0, -2)
    total = torch.zeros(len(indices), block["hook_mlp_out"].shape[-1], dtype=weights.dtype)
    total = total.to(weights.device)
    for e in range(int(indices.max()) + 1):
        if f"mlp.experts.{e}.hook_out" in block:
            rows, choices = torch.where(indices == e)
            out = block[f"mlp.experts.{e}.hook_out"]
            share = out if before else out * weights[rows, choices].unsqueeze(-1)
            total.index_add_(0, rows, share.to(total.dtype))
    return total


def _given_back(block: Block, part: BlockPart, mlp: MoEPart) -> Tensor:
    """What choices beyond the experts add: the token itself, times the weight (LongCat Flash).

    Shapes: `[token, m]`.
    """
    weights = block["mlp.hook_expert_weights"].flatten(0, -2)
    beyond = block["mlp.hook_expert_indices"].flatten(0, -2) >= mlp.n_experts
    tokens = block[mlp_input(block, part)].flatten(0, -2)
    return tokens * (weights * beyond).sum(-1, keepdim=True).to(tokens)


def _least_squares(added: Tensor, routed: Tensor, shared: Tensor) -> Tensor:
    """The rest of a sum of the two, with one factor for all tokens and one for each token."""
    pairs = torch.stack([routed, shared], dim=-1).double().flatten(0, -3)
    wanted = added.double().flatten(0, -2).unsqueeze(-1)
    factors = torch.linalg.lstsq(pairs, wanted).solution
    routed_factor = factors[:, 0].median()
    rest = wanted - pairs[..., :1] * routed_factor
    own = (pairs[..., 1:] * rest).sum(1, keepdim=True) / pairs[..., 1:].pow(2).sum(1, keepdim=True)
    return rest - pairs[..., 1:] * own
