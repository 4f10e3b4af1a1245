"""Why a model lacks a point that other models have."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from lensbridge.native.parts import BlockPart, ResolvedModel


def reason(row: str, native: ResolvedModel) -> str:
    """Why a model has no point of a row of the table."""
    model = _Model(native)
    why = next(one for one in ABSENCES if re.search(one.rows, row) and one.when(model))
    return why.sentence.format(model=model) + model.because(why.undescribed)


class _Model:
    """What the reasons ask a model, and the names that they give."""

    def __init__(self, native: ResolvedModel) -> None:
        self.native = native
        self.undescribed = native.architecture.undescribed

    @property
    def spec(self) -> str:
        """The name of the description."""
        return self.native.architecture.name

    @property
    def core(self) -> str:
        """The class of the model."""
        return type(self.native.core).__name__

    @property
    def block(self) -> BlockPart:
        """The first layer, which stands for all."""
        return self.native.blocks[0]

    @property
    def kind(self) -> str:
        """The class of a layer."""
        apart = self.block.members is not None
        return type(self.block.runner if apart else self.block.module).__name__

    @property
    def mixer(self) -> str:
        """The class of the first mixer."""
        return next(type(b.mixer.module).__name__ for b in self.native.blocks if b.mixer)

    @property
    def attention(self) -> str:
        """The class of the first attention."""
        return next(type(b.attention.module).__name__ for b in self.native.blocks if b.attention)

    def because(self, part: str | None) -> str:
        """The reason that the description gives for leaving a part out, if it gives one."""
        told = None if part is None else self.undescribed.get(part)
        return "" if told is None else f": {told}"

    def is_any(self) -> bool:
        """True of every model."""
        return True

    def is_parallel(self) -> bool:
        """Whether attention and MLP read the same stream."""
        return self.block.residual == "parallel"

    def is_closed(self) -> bool:
        """Whether the inside of a layer is not described."""
        return self.block.residual is None and not self.block.has_branches

    def is_unwritten(self) -> bool:
        """Whether the branches are described, but not how they are added to the stream."""
        return self.block.residual is None and self.block.has_branches

    def has_one_branch(self) -> bool:
        """Whether no layer has both an MLP and something before it."""
        return not any(map(_has_two_branches, self.native.blocks))

    def has_no_projections(self) -> bool:
        """Whether no projections to the queries and keys of its attention are described."""
        found = [b.attention for b in self.native.blocks if b.attention is not None]
        return bool(found) and found[0].q is None

    def has_feeder(self) -> bool:
        """Whether a mixer reads what attention gives."""
        return any(b.mixer is not None and b.mixer.feeder for b in self.native.blocks)

    def has_mixer(self) -> bool:
        """Whether mixers are in the place of attention, as far as the description says."""
        said = not {"attn", "mixer"} & self.undescribed.keys()
        return said and any(b.mixer is not None for b in self.native.blocks)

    def has_no_attention(self) -> bool:
        """Whether no attention is described."""
        return not any(b.attn for b in self.native.blocks)

    def has_no_mlp(self) -> bool:
        """Whether no MLP is described."""
        return not any(b.mlp for b in self.native.blocks)

    def leaves_pooler_out(self) -> bool:
        """Whether it has a pooler that is not described."""
        return "pooler" in self.undescribed

    def leaves_experts_out(self) -> bool:
        """Whether it has experts that are not described."""
        return "experts" in self.undescribed


def _has_two_branches(block: BlockPart) -> bool:
    before = (block.attn, block.cross, block.mixer)
    return block.mlp is not None and any(one is not None for one in before)


@dataclass(frozen=True)
class Absence:
    """One reason for which models lack points.

    Args:
        rows: which rows of the table of points it is about: those in whose names this regular
            expression is found.
        sentence: the reason; `model` is the `_Model`.
        when: which models it is true of.
        undescribed: the part of a description whose own reason comes after the sentence.
    """

    rows: str
    sentence: str
    when: Callable[[_Model], bool] = _Model.is_any
    undescribed: str | None = None


ABSENCES = (
    Absence(r"^\{point\}\.", "no SAE with this value is spliced in there"),
    Absence(
        "hook_resid_mid$",
        "attention and MLP run in parallel, so there is no residual between them",
        _Model.is_parallel,
    ),
    Absence("^hook_embed", "'{model.spec}' does not describe the embedding of {model.core}"),
    Absence("^ln_final", "'{model.spec}' describes no norm after the last layer of {model.core}"),
    Absence("^hook_pos_embed", "it has no learned absolute positions"),
    Absence("^hook_logits", "{model.core} has no head"),
    Absence(
        "^hook_pooler_out",
        "the pooler of {model.core} is not described ('{model.spec}')",
        _Model.leaves_pooler_out,
        undescribed="pooler",
    ),
    Absence("^hook_pooler_out", "{model.core} has no pooler"),
    Absence("^projector", "it has no vision tower"),
    Absence("^head", "its head reads the stream or the final norm directly"),
    Absence(r"\.mlp\.hook_pre_linear", "its MLP is not gated"),
    Absence("hook_per_layer_out", "its layers have no per-layer input"),
    Absence("hook_rel_pos_bias", "it has no relative-position bias"),
    Absence(
        "^blocks",
        "the inside of {model.kind} is not described ('{model.spec}')",
        _Model.is_closed,
        undescribed="residual",
    ),
    Absence(
        r"resid_mid|_post\.hook|hook_head_out",
        "how the branches of {model.kind} write to the stream is not described ('{model.spec}')",
        _Model.is_unwritten,
        undescribed="residual",
    ),
    Absence(
        "hook_resid_mid$",
        "'{model.spec}' describes one branch of {model.kind}, so there is no residual between two",
        _Model.has_one_branch,
    ),
    Absence(r"\.ln2\.", "attention and MLP read the same norm, which is ln1", _Model.is_parallel),
    Absence(
        r"\.attn\.hook_[qk]$|hook_[qkv]_input",
        "no projections to the queries and keys of {model.attention} are described; hook_rot_q and "
        "hook_rot_k are what its kernel gets",
        _Model.has_no_projections,
    ),
    Absence(
        r"\.experts\.|hook_expert_",
        "the experts of {model.kind} are not described ('{model.spec}')",
        _Model.leaves_experts_out,
        undescribed="experts",
    ),
    Absence("cross", "{model.kind} has no cross-attention"),
    Absence("mixer", "{model.kind} has no mixer, beside attention or in its place"),
    Absence(r"\.experts\.", "{model.kind} has no experts that can be read one by one"),
    Absence(r"\.shared\.", "{model.kind} has no MLP that all tokens share"),
    Absence("router", "{model.kind} has no router"),
    Absence("hook_expert_", "{model.kind} has no experts"),
    Absence("_latent", "{model.kind} has no latent attention"),
    Absence("rot_", "its attention has no rotary embedding"),
    Absence(r"_post\.hook|hook_head_out", "{model.kind} has no norm after that branch"),
    Absence(
        "attn",
        "its attention feeds the mixer, and neither reads nor writes the stream alone",
        _Model.has_feeder,
    ),
    Absence("attn", "{model.kind} has {model.mixer} in the place of attention", _Model.has_mixer),
    Absence(
        "attn",
        "{model.kind} has no attention that '{model.spec}' describes",
        _Model.has_no_attention,
        undescribed="attn",
    ),
    Absence(
        "mlp",
        "{model.kind} has no MLP that '{model.spec}' describes",
        _Model.has_no_mlp,
        undescribed="mlp",
    ),
    Absence(r"\.mlp\.", "{model.kind} has no MLP of that form", undescribed="mlp"),
    Absence("ln", "{model.kind} has no norm in that place"),
    Absence("", "{model.kind} has no such point"),
)
"""The reasons, of which the first that is about the row and true of the model is given."""
