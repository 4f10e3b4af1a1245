"""MLPs, and mixtures of them."""

from dataclasses import dataclass

from lensbridge.spec.words import ExpertInput, ExpertLayout, Halves, Scale


@dataclass(frozen=True)
class MLP:
    """Up, activation, down. `path` and `written_by` are relative to the block, the rest to `path`.

    Args:
        act: the config field with the name of the activation, or that name if no field has it.
        overwritten: whether the model adds into the MLP's output tensor afterwards, so that its
            value has to be copied when it is read.
        token_shift: the parameter with the share of each channel that `up` reads at this position;
            it reads the rest at the position before (RWKV).
        out_gate: the projection whose sigmoid multiplies the output of `down` (RWKV).
        skip_scale: as in `Attention`; likewise `sum_bias`.
    """

    path: str
    up: str
    down: str
    act: str = "hidden_act"
    written_by: str | None = None
    scale: Scale | None = None
    overwritten: bool = False
    skip_scale: Scale | None = None
    sum_bias: str | None = None
    token_shift: str | None = None
    out_gate: str | None = None


@dataclass(frozen=True)
class GatedMLP:
    """act(gate) * up, then down. Paths, `act` and `overwritten` as in `MLP`.

    Args:
        gate_scale: the multiplier of the gate before its activation.
        inner_norm: a norm between the gated product and the down projection (BitNet).
        sparsity: the share of the gate's values that are cut off before the activation (Gemma 3n):
            each loses the mean and that quantile of a normal distribution with their deviation, and
            what is negative then is zero.
    """

    path: str
    gate: str
    up: str
    down: str
    act: str = "hidden_act"
    written_by: str | None = None
    scale: Scale | None = None
    gate_scale: Scale | None = None
    inner_norm: str | None = None
    overwritten: bool = False
    sparsity: Scale | None = None
    skip_scale: Scale | None = None
    sum_bias: str | None = None


@dataclass(frozen=True)
class FusedGatedMLP:
    """As `GatedMLP`, with gate and up in one projection. Paths as in `MLP`."""

    path: str
    gate_up: str
    down: str
    halves: Halves = "gate_first"
    act: str = "hidden_act"
    written_by: str | None = None
    scale: Scale | None = None
    skip_scale: Scale | None = None
    sum_bias: str | None = None


@dataclass(frozen=True)
class StackedExperts:
    """Experts whose weights are stacked in other parameters than transformers' usual ones.

    The experts are gated. They have either `gate_up`, or `gate` and `up`. Paths of parameters and
    of the activation are relative to `path`, which is relative to the mixture.

    Args:
        path: the module that is called with tokens; "" is the mixture itself.
        down: the parameter with the down projections.
        gate_up: the parameter with the gates, and after them the up projections.
        gate: the parameter with the gates only; `up` that with the up projections.
        layout: how each parameter holds the weights.
        activation: the module of the activation.
        given: how tokens get to the experts.
    """

    path: str
    down: str = "down_proj"
    gate_up: str | None = None
    gate: str | None = None
    up: str | None = None
    layout: ExpertLayout = "out_in"
    activation: str = "act_fn"
    given: ExpertInput = "chosen"


@dataclass(frozen=True)
class MoE:
    """Experts that a router chooses for each token. Paths as in `MLP`.

    Args:
        router: the module whose first product is the router's logits.
        experts: the module that is called with tokens, chosen indices and their weights, and has
            the experts stacked in three-dimensional parameters named `gate_up_proj` (or `up_proj`)
            and `down_proj`; or `StackedExperts`, where they are stacked in another form. None if
            they cannot be read one by one.
        shared: an MLP that all tokens share, with paths relative to `path`.
        written_by: the module or modules whose outputs add up to what is added to the stream.
        out_bias: a parameter that the mixture adds to the sum of the experts' outputs (JetMoE),
            relative to `path`.
        table: the buffer or parameter with the experts of each token id, where it chooses them and
            the router's logits only weigh them (the first layers of DeepSeek V4); relative to
            `path`.
    """

    path: str
    router: str = "gate"
    experts: str | StackedExperts | None = "experts"
    shared: MLP | GatedMLP | FusedGatedMLP | None = None
    act: str = "hidden_act"
    written_by: str | tuple[str, ...] | None = None
    scale: Scale | None = None
    skip_scale: Scale | None = None
    sum_bias: str | None = None
    out_bias: str | None = None
    table: str | None = None


@dataclass(frozen=True)
class Opaque:
    """A branch in the place of the MLP of which only the input and output are described (RWKV)."""

    path: str
    written_by: str | None = None
    scale: Scale | None = None
    skip_scale: Scale | None = None
    sum_bias: str | None = None
