"""Architecture + model -> parts. Every mismatch between the two raises here, at load.

Only this package looks up what a module or a config has; all other code reads the parts. It goes
from the outside in: `resolve` here, then `stack`, `blocks`, and `attention` or `feed_forward`. Each
asks the `Finder` for modules, and for fields of the config, by the names in the description.
"""

from inspect import signature
from typing import Any

from torch import nn

from lensbridge.errors import PluginError, UnsupportedArchitectureError
from lensbridge.native.calling import Calling, is_plain
from lensbridge.native.parts import MLPPart, MoEPart, Override, ResolvedModel, StackPart
from lensbridge.native.resolve.finder import Finder
from lensbridge.native.resolve.head import head_of, logits_axes, native_head
from lensbridge.native.resolve.overrides import overrides_in
from lensbridge.native.resolve.parallel_styles import styles_in
from lensbridge.native.resolve.stack import stack_of
from lensbridge.native.resolve.task import label_kind, predicts_next
from lensbridge.native.resolve.tensor_parallel import sharding_of
from lensbridge.native.resolve.vocabulary import require_vocabulary
from lensbridge.native.settings import settings_of
from lensbridge.native.wrappers import core_of, unwrapped
from lensbridge.plugins import Claim, registry
from lensbridge.spec import Architecture

GIVEN = "load(architecture=...)"


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
    require_vocabulary(claim.architecture, claim.plugin)
    overrides = tuple(overrides_in(core, claim)) if architecture is None else ()
    return _resolved(root, core, claim, overrides)


def _resolved(
    root: nn.Module, core: nn.Module, claim: Claim, overrides: tuple[Override, ...]
) -> ResolvedModel:
    """The parts of a model that a claim's description names."""
    spec, styles = claim.architecture, styles_in(core)
    finder = Finder(core, spec.name, claim.plugin, settings_of(core))
    inner = finder.at_config(spec.config)
    main, head = stack_of(finder, spec), head_of(finder, spec)
    towers = tuple(stack_of(finder, tower) for tower in spec.towers)
    return ResolvedModel(
        root=root,
        core=core,
        architecture=spec,
        plugin=claim.plugin,
        rivals=tuple(map(str, claim.rivals)),
        overrides=overrides,
        main=main,
        towers=towers,
        act_fn=_activation(main),
        unembed=head,
        returns_logits=head is not None or _returns_logits(core, spec),
        unembed_bias=finder.optional_tensor(spec.unembed_bias),
        head_scale=inner.scale(spec.head_scale),
        logit_scale=inner.scale(spec.logit_scale),
        logit_softcap=inner.optional_number(spec.logit_softcap),
        head_hidden=finder.optional_top(spec.head_hidden),
        pooler=finder.optional_top(spec.pooler),
        projector=finder.optional_top(spec.projector),
        main_input=str(getattr(core, "main_input_name", "input_ids")),
        calling=Calling.of(core),
        logits_axes=logits_axes(core),
        is_encoder_decoder="decoder_input_ids" in signature(core.forward).parameters,
        predicts_next=predicts_next(core, head, main.sizes.d_vocab),
        label_kind=label_kind(core, head, main.sizes.d_vocab),
        paths=_paths(finder),
        checkpointers=_checkpointers(finder),
        sharding=sharding_of(core, styles, (main, *towers)),
    )


def _returns_logits(core: Any, spec: Architecture) -> bool:
    """Whether a model of which no head is described returns logits."""
    known = is_plain(core) or native_head(core) is not None
    return known or ("unembed" in spec.undescribed and core.base_model is not core)


def _activation(main: StackPart) -> str:
    """The activation of the first MLP; "" where no layer has one."""
    mlps = (block.mlp for block in main.blocks)
    return next((mlp.act for mlp in mlps if isinstance(mlp, MLPPart | MoEPart)), "")


def _paths(finder: Finder) -> dict[nn.Module, str]:
    """Every module by what it is called in messages; a product is called after its parameter."""
    products: dict[nn.Module, str] = {
        product: f"{finder.path_of(holder)}.{name}"
        for (holder, name), product in finder.products.items()
    }
    return {**{module: path for path, module in finder.parts.items()}, **products}


def _checkpointers(finder: Finder) -> tuple[nn.Module, ...]:
    return tuple(m for m in finder.parts.values() if hasattr(m, "gradient_checkpointing"))
