"""Parts -> sites: where each canonical point of one model lives, and why some do not exist."""

from collections.abc import Iterator

from torch import nn

from lensbridge import layouts
from lensbridge.attention import KernelSite, Role
from lensbridge.derived import HeadInputSite, NormalizedSite, NormScaleSite, ResultSite
from lensbridge.names import BY_TEMPLATE, template
from lensbridge.norms import Norm
from lensbridge.parts import BlockPart, Native
from lensbridge.sites import InputSite, OutputSite, PositionSite, SharedInputSite, Site
from lensbridge.vocabulary import Vocabulary

_KERNEL_ROLES: dict[str, Role] = {
    "hook_rot_q": "rot_q",
    "hook_rot_k": "rot_k",
    "hook_attn_scores": "scores",
    "hook_pattern": "pattern",
}


def sites_of(native: Native) -> dict[str, Site]:
    """Every point of a model, in the order of the table."""
    found = {site.name: site for site in _Wiring(native).sites()}
    order = {row: i for i, row in enumerate(BY_TEMPLATE)}
    first_in_block = order["blocks.{i}.hook_resid_pre"]

    def key(name: str) -> tuple[int, int, int]:
        row = order[template(name)]
        in_block = name.startswith("blocks.")
        part = 0 if row < first_in_block else 1 if in_block else 2
        return part, int(name.split(".")[1]) if in_block else 0, row

    return {name: found[name] for name in sorted(found, key=key)}


def vocabulary_of(native: Native, sites: dict[str, Site]) -> Vocabulary:
    """The names of a model, with the reasons for those that it lacks."""
    there = {template(name) for name in sites}
    absent = {row: _reason(row, native) for row in BY_TEMPLATE if row not in there}
    gated = native.blocks[0].mlp.gate is not None
    return Vocabulary(tuple(sites), absent, native.sizes.n_layers, gated)


def _reason(row: str, native: Native) -> str:
    block = native.blocks[0]
    reasons = {
        "hook_pos_embed": "it has no learned absolute positions",
        "hook_logits": f"{type(native.core).__name__} has no language-model head",
        "blocks.{i}.mlp.hook_pre_linear": "its MLP is not gated",
    }
    if row == "blocks.{i}.hook_resid_mid" and block.residual == "parallel":
        return "attention and MLP run in parallel, so there is no residual between them"
    if "rot_" in row:
        return "its attention has no rotary embedding"
    if "_post.hook" in row:
        return f"{type(block.module).__name__} has no norm behind that branch"
    return reasons.get(row, f"{type(block.module).__name__} has no norm in that place")


class _Wiring:
    """The sites of one model."""

    def __init__(self, native: Native) -> None:
        self.native = native

    def sites(self) -> Iterator[Site]:
        native = self.native
        yield self._output("hook_embed", native.embed)
        if native.pos_embed is not None:
            fields = self._fields("hook_pos_embed", native.pos_embed, "output")
            yield PositionSite(*fields, module=native.pos_embed, tokens=native.embed)
        for i, block in enumerate(native.blocks):
            yield from self._block(f"blocks.{i}.", block)
        yield from self._norm("ln_final", native.ln_final)
        if native.unembed is not None:
            yield self._output("hook_logits", native.unembed.module)

    def _block(self, at: str, block: BlockPart) -> Iterator[Site]:
        yield self._input(f"{at}hook_resid_pre", block.module)
        yield self._output(f"{at}hook_resid_post", block.module)
        yield self._output(f"{at}hook_attn_out", block.attn.writer)
        yield self._output(f"{at}hook_mlp_out", block.mlp.writer)
        if block.ln1 is not None:
            yield self._input(f"{at}hook_attn_in", block.ln1.module, rank=1)
            yield from self._head_inputs(at, block, block.ln1.module)
        if block.ln2 is not None:
            yield self._input(f"{at}hook_mlp_in", block.ln2.module, rank=1)
            if block.residual == "sequential":
                fields = self._fields(f"{at}hook_resid_mid", block.ln2.module, "input")
                yield SharedInputSite(*fields, module=block.ln2.module)
        for slot in ("ln1", "ln1_post", "ln2", "ln2_post"):
            norm = {
                "ln1": block.ln1,
                "ln1_post": block.ln1_post,
                "ln2": block.ln2,
                "ln2_post": block.ln2_post,
            }[slot]
            if norm is not None:
                yield from self._norm(f"{at}{slot}", norm)
        yield from self._attention(f"{at}attn.", block)
        yield from self._mlp(f"{at}mlp.", block)

    def _attention(self, at: str, block: BlockPart) -> Iterator[Site]:
        attn, sizes = block.attn, self.native.sizes
        roles = {"q": attn.q, "k": attn.k, "v": attn.v}
        for letter, role in roles.items():
            shares = frozenset(
                f"{at}hook_{other}"
                for other in roles
                if roles[other].linear is role.linear
                or roles[other].linear.module is role.linear.module
            )
            fields = self._fields(
                f"{at}hook_{letter}", role.linear.module, "output", role.layout.pattern, shares
            )
            yield OutputSite(*fields, module=role.linear.module, layout=role.layout)
        for last, kernel_role in _KERNEL_ROLES.items():
            if attn.rotary or kernel_role in ("scores", "pattern"):
                fields = self._fields(f"{at}{last}", attn.module, "kernel")
                yield KernelSite(
                    *fields,
                    module=attn.module,
                    role=kernel_role,
                    n_heads=sizes.n_heads,
                    n_kv=sizes.n_key_value_heads,
                )
        heads = layouts.heads(sizes.n_heads, sizes.d_head)
        fields = self._fields(f"{at}hook_z", attn.out.module, "input", heads.pattern)
        yield InputSite(*fields, module=attn.out.module, layout=heads)
        fields = self._fields(f"{at}hook_result", attn.out.module, "output", "z @ W_O, per head")
        yield ResultSite(*fields, out=attn.out, layout=heads, n_heads=sizes.n_heads)

    def _head_inputs(self, at: str, block: BlockPart, norm: nn.Module) -> Iterator[Site]:
        for letter, role in (("q", block.attn.q), ("k", block.attn.k), ("v", block.attn.v)):
            fields = self._fields(
                f"{at}hook_{letter}_input", norm, "input", "b p m -> b p n m (repeated)"
            )
            yield HeadInputSite(
                *fields,
                norm=norm,
                projection=role.linear.module,
                layout=role.layout,
                n_heads=role.n,
            )

    def _mlp(self, at: str, block: BlockPart) -> Iterator[Site]:
        mlp = block.mlp
        yield self._output(f"{at}hook_pre", (mlp.gate or mlp.up).module)
        if mlp.gate is not None:
            yield self._output(f"{at}hook_pre_linear", mlp.up.module)
        yield self._input(f"{at}hook_post", mlp.down.module)

    def _norm(self, at: str, norm: Norm) -> Iterator[Site]:
        divisor = "sqrt(var(x) + eps)" if norm.kind == "LN" else "sqrt(mean(x^2) + eps)"
        centered = "x - mean(x)" if norm.kind == "LN" else "x"
        scale = self._fields(f"{at}.hook_scale", norm.module, "output", divisor)
        yield NormScaleSite(*scale, norm=norm)
        formula = f"({centered}) / {divisor}"
        normalized = self._fields(f"{at}.hook_normalized", norm.module, "output", formula)
        yield NormalizedSite(*normalized, norm=norm)
        yield self._output(f"{at}.hook_out", norm.module)

    def _input(self, name: str, module: nn.Module, rank: int = 0) -> Site:
        fields = self._fields(name, module, "input")
        return InputSite(*fields, module=module, layout=layouts.plain(), rank=rank)

    def _output(self, name: str, module: nn.Module) -> Site:
        return OutputSite(
            *self._fields(name, module, "output"), module=module, layout=layouts.plain()
        )

    def _fields(
        self,
        name: str,
        module: nn.Module,
        side: str,
        formula: str = "as it is",
        shares: frozenset[str] | None = None,
    ) -> tuple[str, str, str, str, frozenset[str]]:
        where = f"{side} of {self.native.paths[module]}"
        axes = BY_TEMPLATE[template(name)].axes
        return name, axes, where, formula, shares or frozenset({name})
