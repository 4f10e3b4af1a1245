"""Architecture + model -> parts. Every mismatch between the two is raised here, at load.

This is the one place that asks a module or a config what it has; after it, everybody knows.
"""

from typing import Any

from torch import nn

from lensbridge import layouts
from lensbridge.errors import ArchitectureMismatchError, suggest
from lensbridge.layouts import Layout
from lensbridge.norms import Norm
from lensbridge.parts import AttentionPart, BlockPart, MLPPart, Native, Role, Sizes
from lensbridge.plugins import Claim, registry
from lensbridge.spec import MLP, Architecture, Attention, FusedQKV, GatedMLP
from lensbridge.weights import Linear

_EPS_NAMES = ("eps", "variance_epsilon", "epsilon")


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    wrapper: Any = model
    return wrapper.get_base_model() if hasattr(model, "get_base_model") else model


def config_dict(core: nn.Module) -> dict[str, object]:
    """The HuggingFace config of a model as a dictionary."""
    config: Any = getattr(core, "config", None)
    return dict(config.to_dict()) if hasattr(config, "to_dict") else {}


def select(core: nn.Module, architecture: Architecture | None) -> Claim:
    """The architecture to read a model with: the given one, or the one that claims its class."""
    if architecture is not None:
        return Claim(architecture, "load(architecture=...)")
    classes = [cls.__name__ for cls in type(core).__mro__ if issubclass(cls, nn.Module)]
    return registry().select(classes, config_dict(core))


def resolve(model: nn.Module, architecture: Architecture | None = None) -> Native:
    """Find every part that an architecture names in a model.

    Raises:
        UnsupportedArchitectureError: no architecture describes the model's class.
        ArchitectureMismatchError: a module, config field or shape is not as described.
    """
    core = unwrap(model)
    claim = select(core, architecture)
    return _Resolver(model, core, claim).native()


class _Resolver:
    """The steps of one resolution, sharing the model and the description."""

    def __init__(self, root: nn.Module, core: nn.Module, claim: Claim) -> None:
        self.root = root
        self.core = core
        self.plugin = claim.plugin
        self.spec = claim.architecture
        self.config: Any = getattr(core, "config", None)

    def native(self) -> Native:
        layers = self._layers()
        attn = self._find(layers[0], self.spec.block.attn.path, "block 0")
        sizes = self._sizes(len(layers), self._find(attn, self.spec.block.attn.out, "attention"))
        blocks = tuple(self._block(i, layer, sizes) for i, layer in enumerate(layers))
        pos_embed = self.spec.pos_embed
        kind = self.spec.block.norms.kind
        return Native(
            root=self.root,
            core=self.core,
            architecture=self.spec,
            plugin=self.plugin,
            sizes=sizes,
            act_fn=str(self._field(self.spec.block.mlp.act)),
            embed=self._top(self.spec.embed),
            pos_embed=None if pos_embed is None else self._top(pos_embed),
            blocks=blocks,
            ln_final=self._norm(self._top(self.spec.final_norm), kind, self.spec.final_norm),
            unembed=self._head(),
            paths={module: path for path, module in self.core.named_modules()},
            checkpointers=tuple(
                module
                for module in self.core.modules()
                if hasattr(module, "gradient_checkpointing")
            ),
        )

    # --- modules -----------------------------------------------------------------------------

    def _find(self, parent: nn.Module, path: str, where: str) -> nn.Module:
        here = parent
        for name in path.split("."):
            children = dict(here.named_children())
            if name not in children:
                raise self._mismatch(
                    f"{where} has no module '{path}': {type(here).__name__} has "
                    f"{', '.join(children) or 'no modules'}.{suggest(name, children)}"
                )
            here = children[name]
        return here

    def _top(self, path: str) -> nn.Module:
        """A module from the top; a bare base model has no base prefix."""
        return self._find(self.core, self._unprefixed(path), type(self.core).__name__)

    def _unprefixed(self, path: str) -> str:
        first, _, rest = path.partition(".")
        prefix = getattr(self.core, "base_model_prefix", None)
        return rest if rest and first == prefix and first not in self.core._modules else path

    def _layers(self) -> list[nn.Module]:
        blocks = self._top(self.spec.blocks)
        layers = list(blocks.children()) if isinstance(blocks, nn.ModuleList) else []
        if not layers:
            raise self._mismatch(f"'{self.spec.blocks}' is not a list of layers.")
        return layers

    def _head(self) -> Linear | None:
        if self.spec.unembed in self.core._modules or self._has_prefix():
            return self._linear(self._top(self.spec.unembed), self.spec.unembed)
        return None  # a bare base model

    def _has_prefix(self) -> bool:
        prefix = getattr(self.core, "base_model_prefix", None)
        return prefix in self.core._modules and "." in self.spec.embed

    def _norm(self, module: nn.Module, kind: Any, where: str) -> Norm:
        for name in _EPS_NAMES:
            if hasattr(module, name):
                return Norm(module, kind, float(getattr(module, name)))
        raise self._mismatch(f"'{where}' ({type(module).__name__}) does not look like a norm.")

    def _linear(self, module: nn.Module, where: str) -> Linear:
        stored: Any = getattr(module, "base_layer", module)
        if hasattr(stored, "in_features") and hasattr(stored, "out_features"):
            return Linear(module, False, int(stored.in_features), int(stored.out_features))
        if hasattr(stored, "nf") and hasattr(stored, "nx"):  # transformers' Conv1D
            return Linear(module, True, int(stored.nx), int(stored.nf))
        raise self._mismatch(
            f"'{where}' ({type(module).__name__}) does not look like a projection."
        )

    # --- one block ---------------------------------------------------------------------------

    def _block(self, i: int, layer: nn.Module, sizes: Sizes) -> BlockPart:
        where = f"block {i}"
        norms = self.spec.block.norms

        def norm(path: str | None) -> Norm | None:
            return (
                None
                if path is None
                else self._norm(self._find(layer, path, where), norms.kind, path)
            )

        return BlockPart(
            module=layer,
            path=f"{self._unprefixed(self.spec.blocks)}.{i}",
            ln1=norm(norms.pre_attn),
            ln1_post=norm(norms.post_attn),
            ln2=norm(norms.pre_mlp),
            ln2_post=norm(norms.post_mlp),
            attn=self._attention(layer, self.spec.block.attn, sizes, where),
            mlp=self._mlp(layer, self.spec.block.mlp, where),
            residual=self.spec.block.residual,
        )

    def _attention(
        self, layer: nn.Module, spec: Attention, sizes: Sizes, where: str
    ) -> AttentionPart:
        module = self._find(layer, spec.path, where)
        out = self._linear(self._find(module, spec.out, f"{where} attention"), spec.out)
        self._expect(where, spec.out, "input", out.n_in, sizes.n_heads * sizes.d_head)
        roles = {role: self._role(module, spec, role, sizes, where) for role in "qkv"}
        writer = module if spec.written_by is None else self._find(layer, spec.written_by, where)
        return AttentionPart(module, spec.path, **roles, out=out, writer=writer, rotary=spec.rotary)

    def _role(
        self, module: nn.Module, spec: Attention, role: str, sizes: Sizes, where: str
    ) -> Role:
        n = sizes.n_heads if role == "q" else sizes.n_key_value_heads
        qkv = spec.qkv
        path = qkv.path if isinstance(qkv, FusedQKV) else {"q": qkv.q, "k": qkv.k, "v": qkv.v}[role]
        linear = self._linear(self._find(module, path, f"{where} attention"), path)
        all_heads = sizes.n_heads + 2 * sizes.n_key_value_heads
        heads = all_heads if isinstance(qkv, FusedQKV) else n
        self._expect(where, path, "output", linear.n_out, heads * sizes.d_head)
        self._expect(where, path, "input", linear.n_in, sizes.d_model)
        return Role(linear, _layout(qkv, role, sizes), n)

    def _mlp(self, layer: nn.Module, spec: MLP | GatedMLP, where: str) -> MLPPart:
        module = self._find(layer, spec.path, where)

        def linear(path: str) -> Linear:
            return self._linear(self._find(module, path, f"{where} MLP"), path)

        gate = linear(spec.gate) if isinstance(spec, GatedMLP) else None
        writer = module if spec.written_by is None else self._find(layer, spec.written_by, where)
        up, down = linear(spec.up), linear(spec.down)
        self._expect(where, spec.down, "input", down.n_in, up.n_out)
        return MLPPart(module, spec.path, up, gate, down, writer)

    # --- sizes -------------------------------------------------------------------------------

    def _sizes(self, n_layers: int, out: nn.Module) -> Sizes:
        dims = self.spec.dims
        self._expect("the config", dims.layers, "value", int(self._field(dims.layers)), n_layers)
        heads, d_model = int(self._field(dims.heads)), int(self._field(dims.d_model))
        mlp = self._mlp(self._layers()[0], self.spec.block.mlp, "block 0")
        return Sizes(
            n_layers=n_layers,
            d_model=d_model,
            n_heads=heads,
            n_key_value_heads=int(self._optional(dims.kv_heads) or heads),
            d_head=int(self._optional(dims.d_head) or d_model // heads),
            d_mlp=mlp.up.n_out,
            d_vocab=int(self._field(dims.vocab)),
            n_ctx=int(self._field(dims.context)),
        )

    def _field(self, name: str) -> Any:
        if not hasattr(self.config, name):
            raise self._mismatch(f"the config has no '{name}'.")
        return getattr(self.config, name)

    def _optional(self, name: str | None) -> Any:
        return None if name is None else getattr(self.config, name, None)

    def _expect(self, where: str, path: str, side: str, found: int, wanted: int) -> None:
        if found != wanted:
            raise self._mismatch(
                f"{where}: the {side} of '{path}' is {found}, and the description says {wanted}."
            )

    def _mismatch(self, what: str) -> ArchitectureMismatchError:
        return ArchitectureMismatchError(
            f"Architecture '{self.spec.name}' (from {self.plugin}) does not fit "
            f"{type(self.core).__name__}: {what}"
        )


def _layout(qkv: Any, role: str, sizes: Sizes) -> Layout:
    shape = (sizes.n_heads, sizes.n_key_value_heads, sizes.d_head)
    if not isinstance(qkv, FusedQKV):
        return layouts.heads(shape[0] if role == "q" else shape[1], shape[2])
    return (
        layouts.blocked(role, *shape) if qkv.layout == "blocked" else layouts.grouped(role, *shape)
    )
