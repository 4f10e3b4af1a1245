"""Sites inside a mixture of experts: values of one expert, the choices, and the router's logits.

The native kernel runs all experts in one grouped product, so what one expert reads and computes is
derived: from the tokens, the chosen indices and the stacked weights. An edit of one expert's value
changes the module's output by what that expert's weighted output changes, and by nothing else.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lensbridge.native.experts import Experts
from lensbridge.sites.call import Call, Chain, Stage
from lensbridge.sites.derived import Change, change
from lensbridge.sites.router import RouterTap
from lensbridge.sites.routing import Routing
from lensbridge.sites.site import Site

ExpertRole = Literal["in", "pre", "pre_linear", "post", "out"]


@dataclass
class Visit:
    """One expert in one call: its tokens, and those of its values that were needed so far.

    Args:
        rows: where its outputs are added in the rows of the module's output.
        weights: what its outputs are multiplied by before that.
    """

    experts: Experts
    expert: int
    rows: Tensor
    weights: Tensor
    values: dict[ExpertRole, Tensor]

    @classmethod
    def of(cls, experts: Experts, routing: Routing, expert: int, call: Call) -> "Visit":
        """The visit of the tokens that a call sends to an expert."""
        given, rows, weights = routing.visit(call, expert)
        return cls(experts, expert, rows, weights, {"in": given})

    def value(self, role: ExpertRole) -> Tensor:
        """A value, computed at the first use."""
        if role not in self.values:
            self.values[role] = self._compute(role)
        return self.values[role]

    def _compute(self, role: ExpertRole) -> Tensor:
        experts, e = self.experts, self.expert
        if role == "pre":
            weight, bias = (
                (experts.w_gate(), experts.b_gate())
                if experts.gated
                else (experts.w_in(), experts.b_in())
            )
            return self._product("in", weight[e], bias[e])
        if role == "pre_linear":
            return self._product("in", experts.w_in()[e], experts.b_in()[e])
        if role == "post":
            linear = self.value("pre_linear") if experts.gated else None
            return experts.activate(self.value("pre"), linear)
        return self._product("post", experts.w_out()[e], experts.b_out()[e])

    def _product(self, role: ExpertRole, weight: Tensor, bias: Tensor) -> Tensor:
        x = self.value(role)
        return x @ weight.to(x.device) + bias.to(x.device)

    def replace(self, role: ExpertRole, value: Tensor) -> None:
        """Set an edited value; what depends on it will be computed again."""
        kept = {"in": (), "pre": ("in", "pre_linear"), "pre_linear": ("in", "pre")}
        before = kept.get(role, ("in", "pre", "pre_linear", "post"))
        self.values = {key: self.values[key] for key in before if key in self.values}
        self.values[role] = value


@dataclass(frozen=True)
class ExpertSite(Site):
    """A value inside one expert, for the tokens that are sent to it.

    Shapes: `[t, ·]`, the tokens in the order of batch and position.
    """

    experts: Experts
    routing: Routing
    expert: int
    role: ExpertRole

    def _stages(self) -> list[Stage]:
        key = f"expert {self.expert}"
        rank = ("in", "pre", "pre_linear", "post", "out").index(self.role)

        def act(call: Call, chain: Chain) -> None:
            visit = call.extras.setdefault(key, None) or Visit.of(
                self.experts, self.routing, self.expert, call
            )
            call.extras[key] = visit
            read = visit.value(self.role)
            new = chain.run(read)
            how = change(read, new)
            if how != "none":
                assert new is not None
                self._rewrite(call, visit, new, how)

        return [*self.routing.notes(), Stage(self.experts.module, "output", rank, act)]

    def _rewrite(self, call: Call, visit: Visit, new: Tensor, how: Change) -> None:
        before = visit.value("out")
        visit.replace(self.role, new)
        moved = (visit.value("out") - before) * visit.weights
        if how == "connected":
            moved = moved - moved.detach()
        whole = call.result
        flat = whole.reshape(-1, whole.shape[-1])
        summed = flat.index_add(0, visit.rows, moved.to(flat.dtype))
        call.replace_result(summed.reshape(whole.shape))


@dataclass(frozen=True)
class ChoiceSite(Site):
    """The experts chosen for each token, or their weights.

    Args:
        index: which one: 0 for the indices, 1 for the weights.
    """

    routing: Routing
    block: nn.Module
    index: Literal[0, 1]

    def _stages(self) -> list[Stage]:
        def note_shape(call: Call, chain: Chain) -> None:
            call.memory[self.block] = call.input.shape[:2]

        def act(call: Call, chain: Chain) -> None:
            choices = self.routing.choices(call)
            given = choices[self.index]
            read = given.view(*call.memory[self.block], -1)
            new = chain.run(read)
            if new is not None:
                new = new.view(given.shape)
                indices, weights = (new, choices[1]) if self.index == 0 else (choices[0], new)
                self.routing.choose(call, indices, weights)

        module, phase = self.routing.entry
        return [Stage(self.block, "input", -20, note_shape), Stage(module, phase, 20, act)]


@dataclass(frozen=True)
class RouterSite(Site):
    """A router's logits: the first product in it whose width is the number of experts.

    The router goes on with an edited value, so the choice and the weights follow from it.
    """

    module: nn.Module
    block: nn.Module
    n_experts: int

    def _stages(self) -> list[Stage]:
        def note_shape(call: Call, chain: Chain) -> None:
            call.memory[self.block] = call.input.shape[:2]

        def act(call: Call, chain: Chain) -> None:
            shape = call.memory.get(self.block, call.input.shape[:2])
            call.around["router"] = RouterTap(self.name, chain, shape, self.n_experts)

        return [
            Stage(self.block, "input", -20, note_shape),
            Stage(self.module, "input", 9, act, around=True),
        ]
