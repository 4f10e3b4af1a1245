"""MLPs and mixtures of experts: neurons are independent, and edits of the routing re-route."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import count, islice
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.conformance.attention_edits import hold_only_within
from lensbridge.conformance.expect import NotApplicable
from lensbridge.conformance.subject import Block, Subject, kind_of
from lensbridge.hooks.callbacks import Hook
from lensbridge.native.linear import fetch
from lensbridge.native.parts import BlockPart, MLPPart, MoEPart


def dense(subject: Subject, *needs: str, every: bool = False) -> Iterator[tuple[Block, str]]:
    """The MLPs of one block of each kind, or of every block, that have all of these points.

    These are its MLP, the shared one, and one expert that has tokens, or every such expert.
    """
    for block in subject.clean.blocks.values() if every else subject.samples():
        for sub in ("mlp", "mlp.shared", *islice(_busy(block), None if every else 1)):
            if all(f"{sub}.hook_{need}" in block for need in needs):
                yield block, sub


def _busy(block: Block) -> Iterator[str]:
    for e in count():
        given = f"mlp.experts.{e}.hook_in"
        if given not in block:
            return
        if len(block[given]):
            yield f"mlp.experts.{e}"


def check_neurons_are_elementwise(subject: Subject) -> None:
    """If all pre-activations are shifted by one neuron, the neurons are shifted by one."""
    for block, sub in dense(subject, "pre", "post"):
        names = [n for n in (f"{sub}.hook_pre", f"{sub}.hook_pre_linear") if n in block]
        post = block.name(f"{sub}.hook_post")

        def roll(value: Tensor, hook: Hook) -> Tensor:
            return value.roll(1, -1)

        after = subject.read([post], [(block.name(n), roll) for n in names])[post]
        subject.expect.close(
            f"{post}, when pre-activations are shifted by one,",
            after,
            block[f"{sub}.hook_post"].roll(1, -1),
            "shifted too",
        )


def check_activation_is_as_named(subject: Subject) -> None:
    """The neurons are the named activation function of pre, times the linear branch."""
    unknown = set()
    for block, sub in dense(subject, "pre", "post", every=True):
        name = _named(subject.parts[block.at], sub)
        activation = activation_of(name)
        if activation is None:
            unknown.add(name)
            continue
        neurons = activation(_cut(block[f"{sub}.hook_pre"], _sparsity(subject, block, sub)))
        if f"{sub}.hook_pre_linear" in block:
            neurons = neurons * block[f"{sub}.hook_pre_linear"]
        point, words = f"{sub}.hook_post", f"{name} of {sub}.hook_pre"
        subject.expect.close(block.name(point), block[point], neurons, words)
    if unknown:
        raise NotApplicable(f"transformers has no activation {', '.join(sorted(unknown))}")


def _sparsity(subject: Subject, block: Block, sub: str) -> float:
    """The share of an MLP's gate that is cut off before the activation."""
    mlp = subject.parts[block.at].mlp
    return mlp.sparsity if isinstance(mlp, MLPPart) and sub == "mlp" else 0.0


def _cut(gate: Tensor, share: float) -> Tensor:
    """Values without their mean and that quantile of a normal distribution; no negative ones."""
    if not share:
        return gate
    quantile = NormalDist().inv_cdf(share)
    spread = gate.std(-1, keepdim=True, unbiased=False)
    return torch.relu(gate - gate.mean(-1, keepdim=True) - quantile * spread)


def _named(part: BlockPart, sub: str) -> str:
    mlp = part.mlp
    if isinstance(mlp, MoEPart) and mlp.shared is not None and sub == "mlp.shared":
        return mlp.shared.act
    assert isinstance(mlp, MLPPart | MoEPart)
    return mlp.act


def activation_of(name: str) -> Callable[[Tensor], Tensor] | None:
    """The activation of a name in configs; None if there is none, or if it has parameters."""
    from transformers.activations import ACT2FN

    found = ACT2FN[name] if name in ACT2FN else None  # noqa: SIM401 - it makes what it has
    return None if found is None or list(found.parameters()) else found


def check_editing_a_neuron_moves_it(subject: Subject) -> None:
    """An edit of one neuron's pre-activation at one position changes that neuron there."""
    for block, sub in dense(subject, "pre", "post"):
        for last in ("pre", "pre_linear"):
            cuts = last == "pre" and _sparsity(subject, block, sub)  # by what all of them are
            if f"{sub}.hook_{last}" in block and not cuts:
                _nudge_neuron(subject, block, sub, last)


def _nudge_neuron(subject: Subject, block: Block, sub: str, last: str) -> None:
    post, before = block.name(f"{sub}.hook_post"), block[f"{sub}.hook_post"]
    row = (0,) * (before.ndim - 1)
    where = (*row, int(before[row].abs().argmax()))  # a neuron that is not zero

    def nudge(value: Tensor, hook: Hook) -> None:
        value[where] = 2.5

    name = block.name(f"{sub}.hook_{last}")
    after = subject.read([post], [(name, nudge)])[post]
    region = torch.zeros_like(after, dtype=torch.bool)
    region[where] = True
    hold_only_within(subject, post, after, before, region, f"an edit of {name}{list(where)}")


def check_linear_branch_is_linear(subject: Subject) -> None:
    """The neurons are linear in `pre_linear` and not in `pre`."""
    for block, sub in dense(subject, "pre_linear", "post"):
        bent = {last: _bend(subject, block, sub, last) for last in ("pre_linear", "pre")}
        words = f"the second difference of {block.name(sub)}.hook_post along"
        flat = torch.zeros_like(bent["pre"])
        subject.expect.close(f"{words} hook_pre_linear", bent["pre_linear"], flat, "zero")
        subject.expect.differ(f"{words} hook_pre", bent["pre"], flat, "the activation")


def _bend(subject: Subject, block: Block, sub: str, last: str) -> Tensor:
    post, name = block.name(f"{sub}.hook_post"), block.name(f"{sub}.hook_{last}")
    value = block[f"{sub}.hook_{last}"]
    step = torch.linspace(-1.0, 1.0, value.shape[-1]).to(value)
    runs = []
    for times in (-1.0, 0.0, 1.0):

        def move(value: Tensor, hook: Hook, times: float = times) -> Tensor:
            return value + times * step

        runs.append(subject.read([post], [(name, move)])[post])
    return runs[0] - 2 * runs[1] + runs[2]


def mlp_input(block: Block, part: BlockPart) -> str:
    """The point that the MLP's projections read."""
    if part.residual != "post_norm" and "ln2.hook_out" in block:
        return "ln2.hook_out"
    if part.residual is None:
        return "hook_mlp_in"
    if part.residual == "parallel":
        return "ln1.hook_out" if "ln1.hook_out" in block else "hook_resid_pre"
    for point in ("hook_resid_mid_cross", "hook_resid_mid"):
        if point in block:
            return point
    return "hook_resid_pre"


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
