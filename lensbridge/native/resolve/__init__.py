"""Architecture + model -> parts. Every mismatch between the two raises here, at load.

Only this package looks up what a module or a config has; all other code reads the parts.
"""

from dataclasses import replace
from inspect import signature
from typing import Any

from torch import nn

from lensbridge.errors import PluginError, UnsupportedArchitectureError
from lensbridge.native.calling import Calling, is_plain
from lensbridge.native.linear import Linear
from lensbridge.native.norm import Norm
from lensbridge.native.parts import BlockPart, MLPPart, MoEPart, ResolvedModel, Sizes, StackPart
from lensbridge.native.resolve.blocks import BlockResolver
from lensbridge.native.resolve.context import context_of
from lensbridge.native.resolve.finder import Finder
from lensbridge.native.resolve.layers import layers_of
from lensbridge.native.resolve.overrides import overrides_in
from lensbridge.native.resolve.parallel_styles import styles_in
from lensbridge.native.resolve.task import label_kind, predicts_next
from lensbridge.native.resolve.tensor_parallel import sharding_of
from lensbridge.native.resolve.vocabulary import require_vocabulary
from lensbridge.native.settings import settings_of
from lensbridge.native.wrappers import core_of, unwrapped
from lensbridge.plugins import Claim, registry
from lensbridge.points.names import LAYER
from lensbridge.spec import Architecture, Block, Stack

GIVEN = "load(architecture=...)"
_TASK_HEADS = ("classifier", "score", "qa_outputs", "out_proj")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside its wrappers (PEFT, `torch.compile`, `DataParallel`), or the model itself.

    Raises:
        LoadError: a wrapper that hooks do not reach into.
    """
    return core_of(model)


def config_dict(core: nn.Module) -> dict[str, object]:
    """The config of a model as a dictionary."""
    return dict(settings_of(core).to_dict())


def class_names(core: nn.Module) -> list[str]:
    """The class of a model and its bases, nearest first; then those of its base model."""
    base = getattr(core, "base_model", None)
    inner = base if isinstance(base, nn.Module) else core
    types = [*type(core).__mro__, *type(inner).__mro__]
    found = [cls.__name__ for cls in types if issubclass(cls, nn.Module)]
    return list(dict.fromkeys(found))


def select(core: nn.Module, architecture: Architecture | None, source: str = GIVEN) -> Claim:
    """The architecture for a model: the given one, or the one that names the model's class."""
    if architecture is not None:
        return Claim(architecture, source)
    return registry().select(class_names(core), config_dict(core))


def chosen_again(
    model: nn.Module, asked: tuple[Architecture | None, str], read_as: tuple[Architecture, str]
) -> tuple[Architecture | None, str]:
    """What to read a model with that comes from another process.

    Args:
        model: the model.
        asked: the description that was given there, and where it was from; None: none was.
        read_as: the description that the model was read with there, and its plugin. It is used
            where the plugins of this process describe the model in another way, or not at all.
    """
    if asked[0] is not None:
        return asked
    try:
        here = select(unwrap(unwrapped(model)), None)
    except (UnsupportedArchitectureError, PluginError):
        return read_as
    return asked if here.architecture == read_as[0] else read_as


def resolve(
    model: nn.Module, architecture: Architecture | None = None, source: str = GIVEN
) -> ResolvedModel:
    """Find every part that an architecture names in a model.

    Args:
        model: the model, or a wrapper around it.
        architecture: a description to use instead of the registered ones.
        source: where it comes from, for messages.

    Raises:
        UnsupportedArchitectureError: no architecture describes the model's class.
        ArchitectureMismatchError: a module, config field or shape is not as described.
        LoadError: the model is spread over ranks in a way that cannot be read.
    """
    root = unwrapped(model)
    core = unwrap(root)
    claim = select(core, architecture, source)
    spec = claim.architecture
    require_vocabulary(spec, claim.plugin)
    styles = styles_in(core)
    finder = Finder(core, spec.name, claim.plugin, settings_of(core))
    inner = finder.at_config(spec.config)
    main, head = _stack(finder, spec), _head(finder, spec)
    towers = tuple(_stack(finder, tower) for tower in spec.towers)
    return ResolvedModel(
        root=root,
        core=core,
        architecture=spec,
        plugin=claim.plugin,
        rivals=tuple(map(str, claim.rivals)),
        overrides=() if architecture is not None else tuple(overrides_in(core, claim)),
        main=main,
        towers=towers,
        act_fn=_activation(main),
        unembed=head,
        returns_logits=head is not None or is_plain(core) or _native_head(core) is not None,
        unembed_bias=finder.optional_tensor(spec.unembed_bias),
        head_scale=inner.scale(spec.head_scale),
        logit_scale=inner.scale(spec.logit_scale),
        logit_softcap=inner.optional_number(spec.logit_softcap),
        head_hidden=finder.optional_top(spec.head_hidden),
        pooler=finder.optional_top(spec.pooler),
        projector=finder.optional_top(spec.projector),
        main_input=str(getattr(core, "main_input_name", "input_ids")),
        calling=Calling.of(core),
        logits_axes=_logits_axes(core),
        is_encoder_decoder="decoder_input_ids" in signature(core.forward).parameters,
        predicts_next=predicts_next(core, head, main.sizes.d_vocab)
        or (head is None and is_plain(core)),
        label_kind=None if is_plain(core) else label_kind(core, head, main.sizes.d_vocab),
        paths={
            **{module: path for path, module in finder.parts.items()},
            **{
                product: f"{finder.path_of(holder)}.{name}"
                for (holder, name), product in finder.products.items()
            },
        },
        checkpointers=tuple(
            one for one in finder.parts.values() if hasattr(one, "gradient_checkpointing")
        ),
        sharding=sharding_of(core, styles, (main, *towers)),
    )


def _logits_axes(core: nn.Module) -> str:
    """Only the name of a class says that its head reads one vector; `score` reads all positions."""
    name = type(core).__name__
    pooled = name.endswith("Classification") and "Token" not in name and not hasattr(core, "score")
    return "b v" if pooled else "b p v"


def _variants(spec: Stack) -> tuple[Block, ...]:
    return spec.block if isinstance(spec.block, tuple) else (spec.block,)


def _activation(main: StackPart) -> str:
    """The activation of the first MLP; "" where no layer has one."""
    mlps = (block.mlp for block in main.blocks)
    return next((mlp.act for mlp in mlps if isinstance(mlp, MLPPart | MoEPart)), "")


def _head(finder: Finder, spec: Architecture) -> Linear | None:
    named = spec.unembed if isinstance(spec.unembed, tuple) else (spec.unembed,)
    for path in [one for one in named if one is not None]:
        module = finder.optional_top(path)
        if module is not None:
            return finder.linear(module, path)
    core = finder.core
    output = _native_head(core)
    if output is not None and spec.unembed is not None:
        raise finder.mismatch(
            f"{type(core).__name__} has no module '{named[0]}', and its head is "
            f"'{finder.path_of(output)}'."
        )
    for path in () if is_plain(core) else _TASK_HEADS:
        module = finder.optional_top(path)
        if isinstance(module, nn.Linear):
            return finder.linear(module, path)
    return None  # a bare base model


def _native_head(core: Any) -> nn.Module | None:
    """What transformers says is the head."""
    return core.get_output_embeddings() if hasattr(core, "get_output_embeddings") else None


def _stack(outer: Finder, spec: Stack) -> StackPart:
    finder = outer.at_config(spec.config)
    if not LAYER.match(f"{spec.prefix}.0."):
        raise finder.mismatch(
            f"names cannot begin with prefix={spec.prefix!r}: it is 'blocks', 'encoder', 'decoder' "
            "or one word before '.blocks', as in 'vision.blocks'."
        )
    layers = layers_of(finder, spec.blocks)
    cycles = int(finder.scale(spec.cycles))
    count = finder.size(spec.dims.layers) * cycles
    if count % len(layers):
        raise finder.mismatch(
            f"{spec.blocks!r} has {len(layers)} layers and dims.layers ({spec.dims.layers!r}) is "
            f"{count}."
        )
    resolver = BlockResolver(finder, spec)
    repeats = count // len(layers)
    blocks = tuple(
        resolver.block(layers[i % len(layers)], i, i // len(layers), repeats) for i in range(count)
    )
    length = _unbroken(finder, spec.interrupted, count // cycles)
    blocks = tuple(
        replace(one, begins_anew=i > 0 and i % length == 0) for i, one in enumerate(blocks)
    )
    kinds = replace(_variants(spec)[0].norms, inner=None, gate=None)

    def norm(at: str | None) -> Any:
        return None if at is None else finder.norm(finder.top(at), kinds, resolver.d_model, at)

    embed_norm = spec.embed_norm if spec.embed_norm is None or finder.has(spec.embed_norm) else None
    ln_embed = norm(embed_norm)
    blocks = _entered_after(ln_embed, blocks)
    pos_embed = None if spec.pos_embed is None else finder.top(spec.pos_embed)
    return StackPart(
        prefix=spec.prefix,
        path=layers[0].path.rpartition(".")[0],
        sizes=_sizes(finder, spec, blocks),
        config=finder.config,
        embed=None if spec.embed is None else finder.top(spec.embed),
        embed_scale=finder.embed_scale(spec.embed_scale),
        embed_overwritten=spec.embed_overwritten,
        pos_embed=pos_embed,
        takes_positions=spec.positions == "absolute" or _takes_positions(pos_embed, blocks),
        residual_axes="r b p m" if blocks[0].pair else _RESIDUAL_AXES[spec.streams],
        positions_first=spec.streams == "positions_first",
        ln_embed=ln_embed,
        blocks=blocks,
        ln_final=norm(spec.final_norm),
        cycles=cycles,
    )


def _unbroken(finder: Finder, interrupted: bool | str, count: int) -> int:
    """How many layers run after each other before something else changes the stream."""
    every = finder.size(interrupted) if isinstance(interrupted, str) else int(interrupted)
    return every if every > 0 else count


def _entered_after(norm: Norm | None, blocks: tuple[BlockPart, ...]) -> tuple[BlockPart, ...]:
    """The layers, where the norm of the embeddings may be a module of the first one."""
    first = blocks[0]
    if norm is None or first.ln1 is None or norm.module not in set(first.module.modules()):
        return blocks
    return (replace(first, begins=first.ln1.module), *blocks[1:])


_RESIDUAL_AXES = {
    None: "b p m",
    "positions_first": "b p m",
    "streams_first": "r b p m",
    "streams_last": "b p r m",
    "side_by_side": "b p c",
    "end_to_end": "b s m",
    "flat": "p m",
}


def _takes_positions(pos_embed: nn.Module | None, blocks: tuple[BlockPart, ...]) -> bool:
    """Whether positions are absolute, and not counted by the model from the padding token."""
    attention = [block.attn for block in blocks if block.attn is not None]
    if any(attn.rotary or attn.position_bias for attn in attention):
        return False
    if pos_embed is None:
        return bool(attention)
    is_table = pos_embed._parameters.get("weight") is not None
    return not is_table or getattr(pos_embed, "padding_idx", None) is None


def _sizes(finder: Finder, spec: Stack, blocks: tuple[BlockPart, ...]) -> Sizes:
    dims = spec.dims
    attn = next((block.attention for block in blocks if block.attention is not None), None)
    mlp = next((block.mlp for block in blocks if isinstance(block.mlp, MLPPart)), None)
    return Sizes(
        n_layers=len(blocks),
        d_model=finder.size(dims.d_model),
        n_heads=attn.n_heads if attn else finder.optional_size(dims.heads) or 0,
        n_key_value_heads=attn.n_kv if attn else 0,
        d_head=attn.d_head if attn else 0,
        d_mlp=mlp.up.d if mlp else _expert_width(blocks),
        d_vocab=finder.optional_size(dims.vocab) or _rows(finder, spec.embed),
        n_ctx=context_of(finder, dims, spec.pos_embed),
    )


def _rows(finder: Finder, path: str | None) -> int:
    """Of an embedding, where no config field says how many tokens there are."""
    return 0 if path is None else int(getattr(finder.top(path), "num_embeddings", 0))


def _expert_width(blocks: tuple[BlockPart, ...]) -> int:
    for block in blocks:
        if isinstance(block.mlp, MoEPart) and block.mlp.experts:
            return int(block.mlp.experts.w_out().shape[1])
    return 0
