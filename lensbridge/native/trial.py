"""Trial: one small call of a plain module, which shows how it takes ids and returns logits.

The config of a transformers model has this information. A plain module has to be called. If the
call fails, the error lists what lensbridge needs.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends.mha import get_fastpath_enabled, set_fastpath_enabled

from lensbridge.errors import InputError, UnsupportedArchitectureError
from lensbridge.native.calling import Calling, logits_in
from lensbridge.native.compiled import Compilable
from lensbridge.native.settings import settings_of
from lensbridge.native.table import rows_of
from lensbridge.native.wrappers import named_parts

_BATCH, _POSITIONS = 2, 3


@dataclass(frozen=True)
class Trial:
    """What a call of a plain module showed.

    Args:
        calling: how it is called.
        embed: the module that embeds the ids; None: no single module does.
        vocabulary: how many ids there are.
        extra: an argument, such as `targets`, with which the module returns logits at every
            position; None: it does so without one, or never.
    """

    calling: Calling
    embed: nn.Module | None
    vocabulary: int
    extra: str | None

    @classmethod
    def of(cls, core: nn.Module) -> "Trial":
        """Call a module.

        Raises:
            UnsupportedArchitectureError: the module takes no ids, or returns no logits.
        """
        calling = Calling.of(core)
        device = next((one.device for one in core.parameters()), torch.device("cpu"))
        ids = torch.tensor([[0, 1, 1], [1, 0, 0]], device=device)[:_BATCH, :_POSITIONS]
        if calling.needed:
            raise _refusal(core, f"needs {', '.join(calling.needed)} beside {calling.ids}")
        with undisturbed(core):
            logits, embed = _call(core, calling, {"input_ids": ids})
            extra = None if logits.shape[:-1] == ids.shape else _extra(core, calling, ids)
        rows = rows_of(embed)
        said = settings_of(core).to_dict().get("vocab_size")
        vocabulary = next(one for one in (rows, said, logits.shape[-1]) if isinstance(one, int))
        return cls(calling, embed, vocabulary, extra)

    def inputs(self, ids: Tensor) -> dict[str, Tensor]:
        """Arguments with which the model returns logits at every position, if it can."""
        return {"input_ids": ids, **({} if self.extra is None else {self.extra: ids})}


def _call(
    core: nn.Module, calling: Calling, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, nn.Module | None]:
    """The logits, and the innermost module that was given the ids alone."""
    tables: list[nn.Module] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        floats = isinstance(output, Tensor) and output.is_floating_point() and output.ndim == 3
        given = args[0] if args else None
        if floats and isinstance(given, Tensor) and _same(given, inputs["input_ids"]):
            tables.append(module)

    handles = [one.register_forward_hook(note) for path, one in named_parts(core) if path]
    try:
        output = calling.call(core, inputs)
    except Exception as error:  # a foreign forward may raise anything
        reason = f"raised {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise _refusal(core, f"{reason} when it was given token ids") from error
    finally:
        for handle in handles:
            handle.remove()
    try:
        embed = next(iter(tables), None)
        return _logits(output, rows_of(embed)), embed
    except InputError as error:
        reason = str(error).partition(", and no")[0].removeprefix("The model ")
        raise _refusal(core, f"{reason} when it was given token ids") from error


def _logits(output: Any, width: int | None) -> Tensor:
    try:
        return logits_in(output, width)
    except InputError:
        return logits_in(output)


def _same(given: Tensor, ids: Tensor) -> bool:
    return given.shape == ids.shape and given.dtype == ids.dtype and torch.equal(given, ids)


def _extra(core: nn.Module, calling: Calling, ids: Tensor) -> str | None:
    """The argument, such as `targets`, with which a model returns logits at every position."""
    for name in sorted(calling.accepted, key=lambda name: name not in ("targets", "labels")):
        try:
            logits, _ = _call(core, calling, {"input_ids": ids, name: ids})
        except UnsupportedArchitectureError:
            continue
        if logits.shape[:-1] == ids.shape:
            return name
    return None


def _refusal(core: nn.Module, what: str) -> UnsupportedArchitectureError:
    """The error that says what a plain module has to be."""
    return UnsupportedArchitectureError(
        f"{type(core).__name__} cannot be opened: its forward {what}. A plain module must\n"
        "- take token ids [batch, pos] as its first argument, and have defaults for the others;\n"
        "- return logits [batch, pos, vocabulary]: alone, in a tuple or a mapping, or as .logits;\n"
        "- hold its layers in an nn.ModuleList, nn.Sequential or nn.ModuleDict;\n"
        "- be described, load(model, architecture=...), or be of a form that can be derived. Sizes "
        "are fields of its config (any object), or numbers: Dims(layers=12, ...)."
    )


@contextmanager
def undisturbed(model: nn.Module, gradients: bool = False) -> Iterator[None]:
    """A context for runs that lensbridge makes by itself, without dropout and compiled code.

    `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` do not take their fast path here,
    because it calls none of the modules inside them. Afterwards the mode of each module and the
    state of the random number generators are as before.

    Args:
        model: the model that runs.
        gradients: whether the runs record gradients.
    """
    training = [module for module in model.modules() if module.training]
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.callback(set_fastpath_enabled, get_fastpath_enabled())
        set_fastpath_enabled(False)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for handle in Compilable.of(model).eagerly():
            stack.callback(handle.remove)
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
