"""Where a module can stand in a model, and how it is called there and how it answers."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from lensbridge.errors import EditError, HookError
from lensbridge.hooks.skip import form_of, in_form
from lensbridge.native.parts import AttentionPart, BlockPart, ResolvedModel, StackPart
from lensbridge.sites.call import Call

Kind = Literal["module", "attention", "block"]


@dataclass(frozen=True)
class Place:
    """A part of a model in whose place something can stand.

    Args:
        path: its path in the model, by TransformerLens's names.
        module: the native module that is there.
        kind: how it is called.
        outside: points that are its result.
    """

    path: str
    module: nn.Module
    kind: Kind = "module"
    outside: frozenset[str] = frozenset()


def place_at(native: ResolvedModel, path: str) -> Place:
    """The place at a path.

    Raises:
        HookError: nothing else can stand there, with the reason.
    """
    for stack in native.stacks:
        found = _beside_layers(native, stack, path) or _in_layers(stack, path)
        if found is not None:
            return found
    raise HookError(
        f"Nothing can be put in the place of {path}. What can be replaced: embed, unembed, "
        "ln_final, and in each layer attn, mlp, its norms (ln1, ln2, ...), every hook point, and "
        "the layer itself."
    )


def _refused(path: str, why: str) -> HookError:
    return HookError(f"{path} cannot be replaced: {why}.")


def _beside_layers(native: ResolvedModel, stack: StackPart, path: str) -> Place | None:
    front = native.front_of(stack)
    name = path.removeprefix(front)
    if name == "pos_embed":
        raise _refused(
            path, "the model looks positions up by position, not by token. Hook hook_pos_embed"
        )
    if name == "embed" and stack.embed is not None:
        if not stack.embed_scale.is_one:
            raise _refused(
                path,
                "the model multiplies its embeddings after they are looked up. Hook hook_embed",
            )
        return Place(path, stack.embed)
    if name in ("ln_final", "ln_embed"):
        norm = stack.ln_final if name == "ln_final" else stack.ln_embed
        return None if norm is None else Place(path, norm.module)
    if path == "unembed" and native.unembed is not None:
        if native.unembed_bias is not None or native.head_scale != 1.0:
            raise _refused(
                path, "the model adds to the head, or scales it, outside it. Hook hook_logits"
            )
        return Place(path, native.unembed.module)
    return None


def _in_layers(stack: StackPart, path: str) -> Place | None:
    rest = path.removeprefix(f"{stack.prefix}.")
    number, _, name = rest.partition(".")
    if rest == path or not number.isdigit() or int(number) >= len(stack.blocks):
        return None
    block = stack.blocks[int(number)]
    if block.repeat is not None:
        raise _refused(path, "the layers of this model share one module")
    if not name:
        if block.members is not None:
            raise _refused(path, "a layer of this model is several modules")
        return Place(path, block.module, "block")
    if name == "attn" and block.attn is not None:
        outside = frozenset({f"{stack.prefix}.{number}.hook_attn_out"})
        module = _branch(path, block, block.attn)
        if "residual" in inspect.signature(type(module).forward).parameters:
            raise _refused(path, "its module adds the stream to what it computes")
        return Place(path, module, "attention", outside)
    if name == "cross_attn":
        raise _refused(path, "it reads another stack's output beside the stream")
    if name == "mlp" and block.mlp is not None:
        outside = frozenset({f"{stack.prefix}.{number}.hook_mlp_out"})
        module = _branch(path, block, block.mlp)
        _refuse_more_inputs(path, module)
        return Place(path, module, "module", outside)
    norm = block.norms.get(name)  # type: ignore[call-overload]
    return None if norm is None else Place(path, norm.module)


def _branch(path: str, block: BlockPart, part: Any) -> nn.Module:
    module: nn.Module = part.module
    if module is block.module:
        raise _refused(
            path, "this model computes it in the layer itself, not in a module of its own"
        )
    if part.writer.bias is not None:
        raise _refused(path, "the model adds a bias to what it gives")
    norms = [norm.module for norm in block.norms.values()]
    if any(one is norm for one in module.modules() for norm in norms):
        raise _refused(path, "its module adds the stream to what it computes, and normalizes both")
    if not part.writer.scale.is_one:
        raise _refused(path, "the model multiplies what it gives before adding it to the stream")
    down = part.out if isinstance(part, AttentionPart) else getattr(part, "down", None)
    if down is not None and not any(one is down.module for one in module.modules()):
        raise _refused(path, "its last projection is in the layer, outside its module")
    return module


def _refuse_more_inputs(path: str, module: nn.Module) -> None:
    given = inspect.signature(type(module).forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    needed = [one.name for one in given if one.kind in kinds and one.default is one.empty][1:]
    if len(needed) > 1:
        raise _refused(path, f"it reads more than one value ({', '.join(needed)})")


@dataclass(eq=False)
class Frame:
    """One call of a native module that has something else in its place.

    Args:
        place: where.
        twin: what runs the native module.
        args: what the native module is called with.
        kwargs: the same by keyword.
        output: what the native module gave when it was last run in this call.
    """

    place: Place
    twin: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = field(default=None)

    @property
    def given(self) -> Tensor:
        """The value that the native module is called with."""
        return Call(self.twin, self.args, self.kwargs, {}).input

    def run_native(self, value: Tensor) -> Tensor:
        """What the native module gives for a value, with the rest of what this call gave it."""
        call = Call(self.twin, self.args, self.kwargs, {})
        if value is not call.input:
            call.replace_input(value)
        self.output = self.twin(*call.args, **call.kwargs)
        first: Tensor = self.output if isinstance(self.output, Tensor) else self.output[0]
        return first

    def answer(self, value: Any, native: Callable[..., Any]) -> Any:
        """What stands there gave, in the form in which the native module gives it.

        Raises:
            EditError: it is not a tensor.
        """
        if not isinstance(value, Tensor):
            raise EditError(
                f"What stands at {self.place.path} returned {type(value).__name__}; it has to "
                "return a tensor."
            )
        if self.output is None:
            return in_form(form_of(self.place.module, native, self.args, self.kwargs), value)
        if isinstance(self.output, Tensor):
            return value
        return type(self.output)((value, *self.output[1:]))
