"""The axes of the tensors that an attention kernel is given and makes."""

from dataclasses import dataclass

from torch import Tensor

from lensbridge.errors import HookError


@dataclass(frozen=True)
class KernelAxes:
    """How many heads and positions one call of an attention module has, by the description.

    Args:
        point: the point that is read, for errors.
        n_heads: how many query heads.
        n_kv: how many key/value heads.
        batch: how many examples.
        positions: how many positions of queries.
    """

    point: str
    n_heads: int
    n_kv: int
    batch: int
    positions: int

    def heads_first(self, x: Tensor) -> Tensor:
        """Shapes: `[b, h, p, ·]` or `[b*h, p, ·]` -> `[b, h, p, ·]`; packed heads stay packed."""
        return x.reshape(self.batch, -1, *x.shape[-2:]) if x.ndim == 3 else x

    def queries(self, x: Tensor) -> Tensor:
        """Shapes: -> `[b, h, p, ·]`, with heads unpacked that were packed with positions."""
        x = self.heads_first(x)
        self._require_heads("queries", x)
        return x.reshape(self.batch, self.n_heads, self.positions, x.shape[-1])

    def keys(self, x: Tensor) -> Tensor:
        """Shapes: -> `[b, g, k, ·]`, with heads taken once that were repeated for the queries."""
        x = self.heads_first(x)
        if x.shape[1] > self.n_kv and x.shape[1] != self.n_heads:
            raise self._miscounted("keys or values", x, self.n_kv, "kv_heads")
        return x if x.shape[1] <= self.n_kv else x[:, :: x.shape[1] // self.n_kv]

    def scores(self, x: Tensor) -> Tensor:
        """Shapes: -> `[b, h, p, k]`."""
        self._require_heads("scores", x)
        if x.numel() % (self.batch * self.n_heads * self.positions):
            raise HookError(
                f"{self.point}: the kernel's scores, {tuple(x.shape)}, are not those of "
                f"{self.n_heads} heads, as the description says (dims.heads)."
            )
        return self.rows(x)

    def rows(self, x: Tensor) -> Tensor:
        """Scores or a pattern that are known to be of these heads.

        Shapes: -> `[b, h, p, k]`.
        """
        return x.reshape(self.batch, self.n_heads, self.positions, -1)

    def are_of_queries(self, x: Tensor) -> bool:
        """Whether there is one row for each query head and position (an indexer has fewer)."""
        rows = self.batch * self.n_heads * self.positions
        return x.ndim >= 3 and x.numel() == rows * x.shape[-1]

    def has_other_heads(self, x: Tensor) -> bool:
        """Whether a tensor is `[b, ·, p, ·]` with another number of query heads."""
        of_pass = x.ndim == 4 and x.shape[0] == self.batch and x.shape[2] == self.positions
        return of_pass and x.shape[1] != self.n_heads

    def other_scores(self, x: Tensor) -> HookError:
        """The error for scores of another number of heads."""
        return self._miscounted("scores", x, self.n_heads, "heads")

    def _require_heads(self, what: str, x: Tensor) -> None:
        if self.has_other_heads(x):
            raise self._miscounted(what, x, self.n_heads, "heads")

    def _miscounted(self, what: str, x: Tensor, said: int, field: str) -> HookError:
        """The error for a kernel that is called with another number of heads.

        Args:
            what: what the tensor is: queries, keys or values, scores.
            x: `[b, h, p, ·]`, as the kernel gets it.
            said: the number of heads by the description.
            field: the field of `Dims` that says so.
        """
        return HookError(
            f"{self.point}: the attention kernel gets {what} of {x.shape[1]} heads, "
            f"{tuple(x.shape)}, and dims.{field} of the description says {said}. Name the config "
            f"field with {x.shape[1]}: Dims({field}='...')."
        )
