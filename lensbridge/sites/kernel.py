"""Inside the attention function: post-rotary q and k, scores, pattern.

While an attention module runs, a `TorchFunctionMode` watches for the two functions that native
attention calls: `scaled_dot_product_attention`, whose arguments are the post-rotary q, k and v, and
`softmax`, whose input is the scores and whose output is the pattern. Nothing is registered with
transformers. Without an edit the output is the native kernel's, bit for bit. Kernels that call
neither function are replaced by sdpa during the run (`visible_kernel`).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lensbridge.errors import HookError
from lensbridge.forks import in_forked
from lensbridge.native.linear import fetch
from lensbridge.native.settings import OWN_KERNEL, kernel_of
from lensbridge.sites.derived import change, substitute
from lensbridge.sites.head_counts import has_other_heads, miscounted
from lensbridge.sites.site import Call, Chain, Site, Stage
from lensbridge.tensors.layouts import repeat_kv

Role = Literal["rot_q", "rot_k", "v", "scores", "pattern", "z"]

VISIBLE_KERNELS = frozenset({"sdpa", "eager", OWN_KERNEL})


def _as_it_is(chain: Chain) -> Chain:
    return chain


@dataclass(frozen=True)
class KernelSite(Site):
    """A value inside one attention module's kernel."""

    module: nn.Module
    role: Role
    n_heads: int
    n_kv: int
    sinks: tuple[nn.Module, str] | None = None
    positions_first: bool = False
    through: Callable[[Chain], Chain] = _as_it_is
    """What a chain is made into before the kernel's values pass it."""

    @property
    def may_be_part(self) -> bool:
        return self.role in ("rot_q", "rot_k")

    def _stages(self) -> list[Stage]:
        def act(call: Call, chain: Chain) -> None:
            tap = call.around.get("attention")
            if tap is None:
                tap = call.around["attention"] = self._tap(call.input)
            assert isinstance(tap, KernelTap)
            tap.chains[self.role] = self.through(chain)

        return [Stage(self.module, "input", 9, act, around=True)]

    def _tap(self, given: Tensor) -> "KernelTap":
        given = given.transpose(0, 1) if self.positions_first else given
        return KernelTap(self.name, self.n_heads, self.n_kv, given, self.sinks)

    def around_run(self, root: nn.Module) -> AbstractContextManager[Any] | None:
        return None if kernel_of(root) in VISIBLE_KERNELS else visible_kernel(root)


class KernelTap(TorchFunctionMode):
    """Watches one call of one attention module."""

    def __init__(
        self,
        name: str,
        n_heads: int,
        n_kv: int,
        given: Tensor,
        sinks: tuple[nn.Module, str] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.n_heads = n_heads
        self.n_kv = n_kv
        self.sinks = sinks
        self.batch, self.positions = given.shape[:2]
        self.dtype = given.dtype
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
                raise miscounted(self.name, "scores", self.unlike, self.n_heads, "heads")
            raise HookError(
                f"{self.name}: the attention module called {self.kernels} kernels that can be "
                f"watched (scaled_dot_product_attention or softmax), and {self.expected} was "
                "expected. Load the model with attn_implementation='eager'."
            )

    # --- canonical axes of the kernel's tensors ----------------------------------------------

    def heads_first(self, x: Tensor) -> Tensor:
        """Shapes: `[b, h, p, ·]` or `[b*h, p, ·]` -> `[b, h, p, ·]`; packed heads stay packed."""
        return x.reshape(self.batch, -1, *x.shape[-2:]) if x.ndim == 3 else x

    def as_queries(self, x: Tensor) -> Tensor:
        """Shapes: -> `[b, h, p, ·]`, with heads unpacked that were packed with positions."""
        x = self.heads_first(x)
        self.require_heads("queries", x)
        return x.reshape(self.batch, self.n_heads, self.positions, x.shape[-1])

    def as_keys(self, x: Tensor) -> Tensor:
        """Shapes: -> `[b, g, k, ·]`, with heads taken once that were repeated for the queries."""
        x = self.heads_first(x)
        if x.shape[1] > self.n_kv and x.shape[1] != self.n_heads:
            raise miscounted(self.name, "keys or values", x, self.n_kv, "kv_heads")
        return x if x.shape[1] <= self.n_kv else x[:, :: x.shape[1] // self.n_kv]

    def require_heads(self, what: str, x: Tensor) -> None:
        """Require that queries or scores have as many heads as described."""
        if has_other_heads(x, self.batch, self.n_heads, self.positions):
            raise miscounted(self.name, what, x, self.n_heads, "heads")

    def edit_queries(self, x: Tensor) -> Tensor:
        """Queries after their chain, in their native shape."""
        if "rot_q" not in self.chains:
            return x
        read = self.as_queries(x).transpose(1, 2)
        new = self.chains["rot_q"].run(read)
        how = change(read, new)
        if how == "none" or new is None:
            return x
        return substitute(x, new.transpose(1, 2).reshape(x.shape), how)

    def edit_keys(self, x: Tensor) -> Tensor:
        """Keys after their chain, in their native shape."""
        if "rot_k" not in self.chains:
            return x
        read = self.as_keys(x).transpose(1, 2)
        new = self.chains["rot_k"].run(read)
        how = change(read, new)
        if how == "none" or new is None:
            return x
        keys = repeat_kv(new.transpose(1, 2), self.heads_first(x).shape[1], axis=1)
        return substitute(x, keys.reshape(x.shape), how)

    def edit_values(self, x: Tensor) -> Tensor:
        """Values after their chain, which is given those of the positions of this pass."""
        if "v" not in self.chains or self.values_seen:
            return x
        self.values_seen = True
        every = self.as_keys(x)
        before, now = every[:, :, : -self.positions], every[:, :, -self.positions :]
        read = now.transpose(1, 2)
        new = self.chains["v"].run(read)
        how = change(read, new)
        if how == "none" or new is None:
            return x
        edited = torch.cat([before, new.transpose(1, 2)], dim=2)
        values = repeat_kv(edited, self.heads_first(x).shape[1], axis=1)
        return substitute(x, values.reshape(x.shape), how)

    # --- the two functions -------------------------------------------------------------------

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
        how, pattern = self.probabilities(scores, of_masked_rows(query, key, attn_mask, scale))
        if how == "none":
            return self.mixed(native())
        weights = F.dropout(pattern.to(value.dtype), dropout_p)
        values = repeat_kv(value, query.shape[1], axis=1)
        mixed = weights.reshape(*query.shape[:3], -1) @ values
        return self.mixed(mixed if how == "changed" else substitute(native(), mixed, how))

    def mixed(self, z: Tensor) -> Tensor:
        """The kernel's output after its chain, in its native shape."""
        if "z" not in self.chains or self.mixed_seen:
            return z
        self.mixed_seen = True
        new = self.chains["z"].run(self.as_queries(z).transpose(1, 2))
        return z if new is None else new.transpose(1, 2).reshape(z.shape)

    def probabilities(self, scores: Tensor, masked: Tensor | None) -> tuple[Any, Tensor]:
        """Run the chains of scores and pattern: what changed, and the pattern to use.

        Args:
            scores: of the kernel.
            masked: the pattern of rows that are masked as a whole, if the kernel gives them one.
        """
        how: Any = "none"
        self.require_heads("scores", scores)
        if scores.numel() % (self.batch * self.n_heads * self.positions):
            raise HookError(
                f"{self.name}: the kernel's scores, {tuple(scores.shape)}, are not those of "
                f"{self.n_heads} heads, as the description says (dims.heads)."
            )
        canonical = scores.reshape(self.batch, self.n_heads, self.positions, -1)
        if "scores" in self.chains:
            new = self.chains["scores"].run(canonical)
            how = change(canonical, new)
            canonical = canonical if new is None else new
        pattern = safe_softmax(canonical)
        if masked is not None:
            dead = canonical.amax(-1, keepdim=True) == -torch.inf
            pattern = torch.where(dead, masked.reshape(pattern.shape).to(pattern), pattern)
        if "pattern" in self.chains:
            new = self.chains["pattern"].run(pattern)
            how_pattern = change(pattern, new)
            how = how if how_pattern == "none" else stronger(how, how_pattern)
            pattern = pattern if new is None else new
        return how, pattern

    def softmax(
        self, func: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Eager attention: the input is the scores, the output the pattern."""
        if not self._is_pattern_shaped(input):
            if has_other_heads(input, self.batch, self.n_heads, self.positions):
                self.unlike = input
            return func(input, *args, **kwargs)
        self.kernels += 1
        scores = self._edit_scores(input) if "scores" in self.chains else input
        pattern = func(scores, *args, **kwargs)
        if "pattern" not in self.chains:
            return pattern
        seen = pattern if self.sinks is None else pattern[..., :-1]
        read = seen.reshape(self.batch, self.n_heads, self.positions, -1).to(self.dtype)
        new = self.chains["pattern"].run(read)
        how = change(read, new)
        if how == "none":
            return pattern
        assert new is not None
        edited = new.to(pattern.dtype).reshape(seen.shape)
        if self.sinks is not None:
            edited = torch.cat([edited, pattern[..., -1:]], dim=-1)
        return substitute(pattern, edited, how)

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
        canonical = seen.reshape(self.batch, self.n_heads, self.positions, -1)
        plain = canonical if shift is None else canonical + shift
        read = plain.masked_fill(canonical <= floor / 2, -torch.inf)
        new = self.chains["scores"].run(read)
        if change(read, new) == "none":
            return input
        assert new is not None
        if shift is None:
            return new.clamp(min=floor).reshape(input.shape)
        edited = (new - shift).clamp(min=floor).reshape(seen.shape)
        return torch.cat([edited, input[..., -1:]], dim=-1)

    def _is_of_queries(self, x: Tensor) -> bool:
        """Whether it has one row for each query head and position (an indexer has fewer)."""
        return x.numel() == self.batch * self.n_heads * self.positions * x.shape[-1]

    def _is_pattern_shaped(self, x: Tensor) -> bool:
        return x.ndim >= 3 and self._is_of_queries(x)

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
        if query.ndim < 3 or key_t.ndim < 3 or not self._is_of_queries(query):
            return func(*args, **kwargs)
        self.products += 1
        edited = (self.edit_queries(query), self.edit_keys(key_t.mT).mT)
        return func(*args[:first], *edited, *args[first + 2 :], **kwargs)


def stronger(one: Any, other: Any) -> Any:
    """Which of two changes decides what is recomputed."""
    return "changed" if "changed" in (one, other) else other


_PRODUCTS_WITH_BIAS = frozenset({torch.baddbmm, Tensor.baddbmm})


_HANDLERS: dict[Any, Callable[..., Tensor]] = {
    F.scaled_dot_product_attention: KernelTap.fused_kernel,
    **dict.fromkeys([F.softmax, torch.softmax, Tensor.softmax], KernelTap.softmax),
    **dict.fromkeys(
        [torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm], KernelTap.product
    ),
    **dict.fromkeys(_PRODUCTS_WITH_BIAS, KernelTap.product),
}


def masked_scores(
    query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> Tensor:
    """The scores of which the fused kernel takes the softmax, with -inf where masked.

    Shapes: `[b, h, p, d]`, `[b, g, k, d]` -> `[b, h, p, k]`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    groups = key.shape[1]
    grouped = query.unflatten(1, (groups, -1))
    scores = ((grouped @ key.unsqueeze(2).mT) * scale).flatten(1, 2)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        return scores.masked_fill_(~seen, -torch.inf)
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill_(~mask, -torch.inf)
    return (scores + mask).masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)


def of_masked_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor | None:
    """The pattern of rows whose keys are all masked, where the mask holds large numbers.

    The fused kernel takes the softmax of the scores plus these numbers, which is not zero. With
    -inf or False in the mask it is zero, and None here.
    """
    if mask is None or mask.dtype == torch.bool:
        return None
    dead = (mask <= torch.finfo(mask.dtype).min / 2).all(-1, keepdim=True)
    if not bool((dead & mask.isfinite().any(-1, keepdim=True)).any()):
        return None
    scores = masked_scores(query, key, None, False, scale)
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return safe_softmax(wide + mask.to(wide))


def safe_softmax(scores: Tensor) -> Tensor:
    """Softmax in float32 over the last axis; a row that is entirely masked gives zeros.

    The fused kernel does the same. The gradients are finite here.
    """
    wide = scores if scores.dtype == torch.float64 else scores.float()
    dead = wide.detach().amax(-1, keepdim=True) == -torch.inf
    if scores.requires_grad:
        wide = wide.masked_fill(dead, 0.0)  # softmax of -inf alone has no gradient
    return wide.softmax(-1).masked_fill(dead, 0.0).to(scores.dtype)


_switch = RLock()
_switched: list[tuple[Any, str]] = []
"""Configs that are changed now, and what they had."""
_told: set[str] = set()


@contextmanager
def visible_kernel(root: nn.Module) -> Iterator[None]:
    """Run attention through sdpa while inside, because the chosen kernel is no torch function.

    Warns once for each kernel. One thread at a time, because this changes the model's config.
    """
    config: Any = root.config
    chosen = config._attn_implementation
    if chosen not in _told:
        _told.add(chosen)
        warnings.warn(
            f"attention runs through sdpa while scores or patterns are asked for: {chosen!r} "
            "does not show them",
            stacklevel=2,
        )
    with _switch:
        _switched.append((config, chosen))
        config._attn_implementation = "sdpa"
        try:
            yield
        finally:
            config._attn_implementation = chosen
            _switched.pop()


@in_forked
def _switch_back() -> None:
    """A forked process has the kernels that its models were given."""
    global _switch
    _switch = RLock()
    for config, chosen in _switched:
        config._attn_implementation = chosen
