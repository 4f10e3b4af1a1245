"""Records one forward pass: inputs and outputs of every module and every attention kernel."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lensbridge.derive.probe import inputs_of, token_table
from lensbridge.derive.shared_rows import SharedRows
from lensbridge.errors import InputError
from lensbridge.native.calling import Calling, logits_in
from lensbridge.native.table import rows_of
from lensbridge.native.trial import undisturbed
from lensbridge.native.wrappers import named_parts


@dataclass(eq=False)
class TracedCall:
    """One call of one module.

    Args:
        path: the module, from the model.
        start: when it began, in ticks of the trace's clock; `end` is when it ended.
        inputs: copies of the tensors that it read; `outputs` likewise.
        arguments: the arguments themselves.
        overwritten: whether its output was written to later.
    """

    path: str
    module: nn.Module
    start: int
    end: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    overwritten: bool = False

    @property
    def output(self) -> Tensor | None:
        """The output as hooks see it: the first tensor."""
        return self.outputs[0] if self.outputs else None


@dataclass(eq=False)
class Kernel:
    """One attention kernel and the module inside which it ran.

    Shapes: all `[b, h, p, d]` or `[(b h), p, d]`; k and v may have fewer heads.
    `extra_column`: whether its softmax runs over one score more than there are keys.
    `turned`: whether its scores have positions before heads.
    `mask`: what the fused function is given as its mask; without that function, the pattern.
    """

    path: str
    time: int
    q: Tensor
    k: Tensor
    v: Tensor | None = None
    z: Tensor | None = None
    extra_column: bool = False
    mask: Tensor | None = None
    turned: bool = False


@dataclass
class Trace:
    """The calls and kernels of one forward pass, in order."""

    model: nn.Module
    inputs: dict[str, Any]
    calls: list[TracedCall] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    logits: Tensor | None = None
    pooled: Tensor | None = None

    def of(self, path: str) -> list[TracedCall]:
        """The calls of one module."""
        return [call for call in self.calls if call.path == path]

    def within(self, path: str) -> list[TracedCall]:
        """The calls of the modules below a path, without the module itself."""
        return [call for call in self.calls if call.path.startswith(f"{path}.")]

    @property
    def tolerance(self) -> float:
        """How far two computations of one value may differ, relative to its size."""
        dtype = next(self.model.parameters()).dtype
        return 2e-2 if dtype in (torch.float16, torch.bfloat16) else 2e-5


def trace(model: nn.Module) -> Trace:
    """Run the model once and record it.

    Raises:
        RuntimeError: it ran on none of the inputs tried, with the last reason.
    """
    reason: Exception | None = None
    for inputs in inputs_of(model):
        try:
            return _run(model, inputs)
        except Exception as error:  # the model's code may raise anything
            reason = error
    raise RuntimeError(f"it ran on none of the inputs tried: {reason}") from reason


def kernels_with(call: TracedCall, changed: nn.Module, by: float) -> list[Kernel]:
    """The attention kernels of a call that is made again, with a module's output moved by noise."""
    recorder = _Recorder(Trace(call.module, {}))

    def move(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(output.shape, generator=generator).to(output)
        return output + by * noise

    handle = changed.register_forward_hook(move)
    args, kwargs = call.arguments
    try:
        with torch.no_grad(), recorder.taps():
            call.module(*args, **kwargs)
    finally:
        handle.remove()
    return recorder.found.kernels


def _run(model: nn.Module, inputs: dict[str, Any]) -> Trace:
    found = Trace(model, inputs)
    recorder = _Recorder(found)
    calling = Calling.of(model)
    with undisturbed(model), recorder.attached(), recorder.taps():
        output = calling.call(model, inputs)
    recorder.note_overwritten()
    found.calls.sort(key=lambda call: call.start)
    found.logits = _logits(output, rows_of(token_table(model)))
    found.pooled = getattr(output, "pooler_output", None)
    return found


def _logits(output: Any, width: int | None) -> Tensor | None:
    for wanted in (width, None):
        try:
            return logits_in(output, wanted)
        except InputError:
            continue
    return next(iter(tensors(output)), None)


def tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Every tensor in a nest of tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif depth < 3 and isinstance(value, (tuple, list)):
        for one in value:
            yield from tensors(one, depth + 1)
    elif depth < 3 and isinstance(value, dict):
        for one in value.values():
            yield from tensors(one, depth + 1)


def _kept(value: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().clone() for tensor in tensors(value))


class _Recorder:
    """The hooks and the function mode of one traced run."""

    def __init__(self, found: Trace) -> None:
        self.found = found
        self.clock = 0
        self.stack: list[tuple[str, int, tuple[Tensor, ...], Any]] = []
        self.given: list[tuple[TracedCall, Tensor, int]] = []

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = []
        try:
            for path, module in named_parts(self.found.model):
                handles += [
                    module.register_forward_pre_hook(self._enter(path), with_kwargs=True),
                    module.register_forward_hook(self._leave(path)),
                ]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def note_overwritten(self) -> None:
        """Note for each call whether its output was written to since."""
        for call, tensor, version in self.given:
            call.overwritten = tensor._version != version

    def taps(self) -> "_Taps":
        return _Taps(self)

    def _enter(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.stack.append((path, self.tick(), _kept((args, kwargs)), (args, dict(kwargs))))

        return hook

    def _leave(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            _, start, inputs, arguments = self.stack.pop()
            call = TracedCall(path, module, start, self.tick(), inputs, _kept(output), arguments)
            self.found.calls.append(call)
            given = next(tensors(output), None)
            if given is not None:
                self.given.append((call, given, given._version))

        return hook


_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_SUMMED = {torch.baddbmm, Tensor.baddbmm}
_OPERANDS = ("mat1", "batch1", "other", "mat2", "batch2")


class _Taps(TorchFunctionMode):
    """Records attention kernels: the fused function, or product, softmax, product."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.product: tuple[Tensor, Tensor, Tensor] | None = None
        self.open: tuple[Kernel, Tensor, SharedRows | None] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            self._see(func, args, kwargs or {}, result)
        return result

    def _see(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False), **kwargs)
            q, k, v = named["query"], named["key"], named["value"]
            kernel = self._keep(q, k)
            kernel.v, kernel.z, kernel.mask = v.clone(), result.clone(), named.get("attn_mask")
        elif func in _PRODUCTS or func in _SUMMED:
            given = [*args, *(kwargs[name] for name in _OPERANDS if name in kwargs)]
            left, right = given[-2:] if len(given) >= 2 else (None, None)
            if isinstance(left, Tensor) and isinstance(right, Tensor) and right.ndim > 2:
                self._see_product(left, right, result)
        elif func in _SOFTMAX and self.product is not None:
            self._see_softmax(args[0], result)

    def _see_product(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        if self.open is not None:
            kernel, pattern, rows = self.open
            if left.shape[-2] == pattern.shape[-2] and left.shape[-1] in (
                pattern.shape[-1],
                pattern.shape[-1] - 1,
            ):
                kernel.v, kernel.z = right.clone(), result.clone()
                if rows is not None:
                    kernel.v, kernel.z = kernel.v.unsqueeze(1), rows.apart(kernel.z)
                self.open = None
                return
        self.product = (left, right, result)

    def _see_softmax(self, scores: Tensor, pattern: Tensor) -> None:
        assert self.product is not None
        q, k, product = self.product
        rows = product.numel() // product.shape[-1]
        if scores.numel() not in (product.numel(), product.numel() + rows):
            return
        shared = SharedRows.of(product, scores)
        if shared is not None:
            kernel = self._keep(shared.apart(q), k.mT.unsqueeze(1))
            pattern, kernel.turned = pattern.reshape(product.shape), shared.turned
        elif scores.shape[-2] == product.shape[-2]:
            kernel = self._keep(q, k.transpose(-1, -2))
        else:
            return
        kernel.extra_column = scores.numel() > product.numel()
        kernel.mask = pattern
        self.open = (kernel, pattern, shared)
        self.product = None

    def _keep(self, q: Tensor, k: Tensor) -> Kernel:
        path = self.recorder.stack[-1][0] if self.recorder.stack else ""
        kernel = Kernel(path, self.recorder.tick(), q.clone(), k.clone())
        self.recorder.found.kernels.append(kernel)
        return kernel
