"""A tap on one call of an attention module, which reads and edits what is inside its kernel.

It is a `TorchFunctionMode` that watches for the two functions that native attention calls:
`scaled_dot_product_attention`, whose arguments are the post-rotary q, k and v, and `softmax`, whose
input is the scores and whose output is the pattern. Nothing is registered with transformers.
Without an edit the output is the native kernel's, bit for bit. Kernels that call neither function
are replaced by sdpa during the run (`switch.py`).
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lensbridge.errors import HookError
from lensbridge.native.linear import fetch
from lensbridge.sites.call import Chain
from lensbridge.sites.derived import Change, change, substitute
from lensbridge.sites.kernel.axes import KernelAxes
from lensbridge.sites.kernel.scores import masked_scores, of_masked_rows, safe_softmax
from lensbridge.tensors.layouts import repeat_kv

Role = Literal["rot_q", "rot_k", "v", "scores", "pattern", "z"]
"""Which of the values inside a kernel."""


class KernelTap(TorchFunctionMode):
    """Watches one call of one attention module."""

    def __init__(
        self, axes: KernelAxes, dtype: torch.dtype, sinks: tuple[nn.Module, str] | None = None
    ) -> None:
        super().__init__()
        self.axes = axes
        self.dtype = dtype
        self.sinks = sinks
        self.chains: dict[Role, Chain] = {}
        self.products = 0
        self.kernels = 0
        self.expected = 1
        self.mixed_seen = False
        self.values_seen = False
        self.looking = True
        self.unlike: Tensor | None = None
        """What went through softmax, and are scores of another number of heads than described."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self.handler(func) if self.looking else None
        if handler is None:
            return func(*args, **(kwargs or {}))
        return handler(self, func, *args, **(kwargs or {}))

    def handler(self, func: Any) -> Callable[..., Any] | None:
        """How a function is called instead; None to call it as it is."""
        return _HANDLERS.get(func)

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc, traceback)  # type: ignore[no-untyped-call]
        if exc_type is None and self.kernels != self.expected:
            if self.unlike is not None:
                raise self.axes.other_scores(self.unlike)
            raise HookError(
                f"{self.axes.point}: the attention module called {self.kernels} kernels that can "
                f"be watched (scaled_dot_product_attention or softmax), and {self.expected} was "
                "expected. Load the model with attn_implementation='eager'."
            )

    # --- the chains of single values ---------------------------------------------------------

    def run_chain(self, role: Role, read: Tensor) -> tuple[Change, Tensor]:
        """Run the chain of a value, if it has one: what it did, and the value to use."""
        if role not in self.chains:
            return "none", read
        new = self.chains[role].run(read)
        return change(read, new), read if new is None else new

    def edit_queries(self, x: Tensor) -> Tensor:
        """Queries after their chain, in their native shape."""
        if "rot_q" not in self.chains:
            return x
        how, new = self.run_chain("rot_q", self.axes.queries(x).transpose(1, 2))
        return x if how == "none" else substitute(x, new.transpose(1, 2).reshape(x.shape), how)

    def edit_keys(self, x: Tensor) -> Tensor:
        """Keys after their chain, in their native shape."""
        if "rot_k" not in self.chains:
            return x
        how, new = self.run_chain("rot_k", self.axes.keys(x).transpose(1, 2))
        return x if how == "none" else substitute(x, self._repeated(new.transpose(1, 2), x), how)

    def edit_values(self, x: Tensor) -> Tensor:
        """Values after their chain, which is given those of the positions of this pass."""
        if "v" not in self.chains or self.values_seen:
            return x
        self.values_seen = True
        every, positions = self.axes.keys(x), self.axes.positions
        before, now = every[:, :, :-positions], every[:, :, -positions:]
        how, new = self.run_chain("v", now.transpose(1, 2))
        if how == "none":
            return x
        edited = torch.cat([before, new.transpose(1, 2)], dim=2)
        return substitute(x, self._repeated(edited, x), how)

    def _repeated(self, x: Tensor, native: Tensor) -> Tensor:
        """Keys or values `[b, g, k, ·]` for as many heads as the native ones, in their shape."""
        heads = self.axes.heads_first(native).shape[1]
        return repeat_kv(x, heads, axis=1).reshape(native.shape)

    def mixed(self, z: Tensor) -> Tensor:
        """The kernel's output after its chain, in its native shape."""
        if "z" not in self.chains or self.mixed_seen:
            return z
        self.mixed_seen = True
        new = self.chains["z"].run(self.axes.queries(z).transpose(1, 2))
        return z if new is None else new.transpose(1, 2).reshape(z.shape)

    # --- scaled_dot_product_attention --------------------------------------------------------

    def fused_kernel(
        self,
        func: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`scaled_dot_product_attention`: scores and pattern are computed separately."""
        self.kernels += 1
        query, key = self.edit_queries(query), self.edit_keys(key)
        value = self.edit_values(value)

        def native() -> Tensor:
            extra = {"enable_gqa": True} if enable_gqa else {}
            return func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **extra)

        if "scores" not in self.chains and "pattern" not in self.chains:
            return self.mixed(native())
        scores = masked_scores(query, key, attn_mask, is_causal, scale)
        how, pattern = self._probabilities(scores, of_masked_rows(query, key, attn_mask, scale))
        if how == "none":
            return self.mixed(native())
        weights = F.dropout(pattern.to(value.dtype), dropout_p)
        values = repeat_kv(value, query.shape[1], axis=1)
        mixed = weights.reshape(*query.shape[:3], -1) @ values
        return self.mixed(mixed if how == "changed" else substitute(native(), mixed, how))

    def _probabilities(self, scores: Tensor, masked: Tensor | None) -> tuple[Change, Tensor]:
        """Run the chains of scores and pattern: what changed, and the pattern to use.

        Args:
            scores: of the kernel.
            masked: the pattern of rows that are masked as a whole, if the kernel gives them one.
        """
        how_scores, scores = self.run_chain("scores", self.axes.scores(scores))
        pattern = safe_softmax(scores)
        if masked is not None:
            dead = scores.amax(-1, keepdim=True) == -torch.inf
            pattern = torch.where(dead, masked.reshape(pattern.shape).to(pattern), pattern)
        how_pattern, pattern = self.run_chain("pattern", pattern)
        return stronger(how_scores, how_pattern), pattern

    # --- eager attention: a product, softmax, a product --------------------------------------

    def softmax(
        self, func: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Eager attention: the input is the scores, the output the pattern."""
        if not self.axes.are_of_queries(input):
            if self.axes.has_other_heads(input):
                self.unlike = input
            return func(input, *args, **kwargs)
        self.kernels += 1
        scores = self._edit_scores(input) if "scores" in self.chains else input
        pattern = func(scores, *args, **kwargs)
        return self._edit_pattern(pattern) if "pattern" in self.chains else pattern

    def _edit_scores(self, input: Tensor) -> Tensor:
        """The input of softmax, after the chain of the scores.

        With sinks the last column is not a position, and all columns may have been shifted by
        their maximum: the sink's own logit shows by how much.
        """
        seen, shift = input, None
        if self.sinks is not None:
            sink = fetch(*self.sinks).reshape(1, -1, 1, 1).to(input.device, input.dtype)
            seen, shift = input[..., :-1], sink - input[..., -1:]
        floor = torch.finfo(input.dtype).min
        canonical = self.axes.rows(seen)
        plain = canonical if shift is None else canonical + shift
        read = plain.masked_fill(canonical <= floor / 2, -torch.inf)
        how, new = self.run_chain("scores", read)
        if how == "none":
            return input
        if shift is None:
            return new.clamp(min=floor).reshape(input.shape)
        edited = (new - shift).clamp(min=floor).reshape(seen.shape)
        return torch.cat([edited, input[..., -1:]], dim=-1)

    def _edit_pattern(self, pattern: Tensor) -> Tensor:
        """The output of softmax, after the chain of the pattern; it is not shown the sinks."""
        seen = pattern if self.sinks is None else pattern[..., :-1]
        how, new = self.run_chain("pattern", self.axes.rows(seen).to(self.dtype))
        if how == "none":
            return pattern
        edited = new.to(pattern.dtype).reshape(seen.shape)
        if self.sinks is not None:
            edited = torch.cat([edited, pattern[..., -1:]], dim=-1)
        return substitute(pattern, edited, how)

    def product(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Eager attention: first the product of queries and keys, then of pattern and values."""
        if self.kernels:
            values = (self.edit_values(one) for one in args[1:2])
            return self.mixed(func(*args[:1], *values, *args[2:], **kwargs))
        rotary = "rot_q" in self.chains or "rot_k" in self.chains
        first = 1 if func in _PRODUCTS_WITH_BIAS else 0
        if self.products or not rotary or len(args) < first + 2:
            return func(*args, **kwargs)
        query, key_t = args[first], args[first + 1]
        if key_t.ndim < 3 or not self.axes.are_of_queries(query):
            return func(*args, **kwargs)
        self.products += 1
        edited = (self.edit_queries(query), self.edit_keys(key_t.mT).mT)
        return func(*args[:first], *edited, *args[first + 2 :], **kwargs)


def stronger(one: Change, other: Change) -> Change:
    """Which of two changes decides what is recomputed."""
    if "changed" in (one, other):
        return "changed"
    return one if other == "none" else other


_PRODUCTS_WITH_BIAS = frozenset({torch.baddbmm, Tensor.baddbmm})


_HANDLERS: dict[Any, Callable[..., Tensor]] = {
    F.scaled_dot_product_attention: KernelTap.fused_kernel,
    **dict.fromkeys([F.softmax, torch.softmax, Tensor.softmax], KernelTap.softmax),
    **dict.fromkeys(
        [torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm], KernelTap.product
    ),
    **dict.fromkeys(_PRODUCTS_WITH_BIAS, KernelTap.product),
}
