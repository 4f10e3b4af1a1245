"""The fingerprint of a model, which tells whether a lens left the model as it was."""

from dataclasses import dataclass

from torch import nn

from lensbridge.native.resolve import config_dict
from lensbridge.native.settings import kernel_of
from lensbridge.native.wrappers import core_of


@dataclass(frozen=True)
class Fingerprint:
    """What a lens must not change about a model."""

    modules: tuple[tuple[str, int, type], ...]
    hooks: tuple[int, ...]
    shadows: tuple[str, ...]
    state: tuple[tuple[str, int, int], ...]
    config: str

    @classmethod
    def of(cls, model: nn.Module) -> "Fingerprint":
        """The fingerprint of a model as it is now."""
        named, core = list(model.named_modules()), core_of(model)
        return cls(
            modules=tuple((name, id(module), type(module)) for name, module in named),
            hooks=tuple(len(m._forward_hooks) + len(m._forward_pre_hooks) for _, m in named),
            shadows=tuple(name for name, module in named if "forward" in module.__dict__),
            state=tuple(
                (name, value.data_ptr(), value._version)
                for name, value in model.state_dict(keep_vars=True).items()
            ),
            config=repr(sorted(config_dict(core).items(), key=repr)) + kernel_of(core),
        )
