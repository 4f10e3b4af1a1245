"""Values and weights of which each worker of an `LLM` has a part (tensor_parallel_size).

A projection to heads or neurons gives each worker its own heads or neurons; the one after it reads
them. The stream is whole in every worker. Sites are given whole values, and what they write is cut
again, so every worker computes the same edit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.errors import UnsupportedError


@dataclass(frozen=True)
class Shards:
    """How the last axis of a tensor is spread.

    Args:
        sections: the widths of what lies side by side in it here, such as q, k and v.
        ranks: workers.
        rank: which of them this is.
    """

    sections: tuple[int, ...]
    ranks: int
    rank: int

    def whole(self, mine: Tensor) -> Tensor:
        """The tensor of all workers. Shapes: `[..., here]` -> `[..., all]`"""
        from vllm.distributed import tensor_model_parallel_all_gather

        parts = mine.split(self.sections, dim=-1)
        found = [tensor_model_parallel_all_gather(part.contiguous(), dim=-1) for part in parts]
        return torch.cat(found, dim=-1)

    def mine(self, whole: Tensor) -> Tensor:
        """This worker's part. Shapes: `[..., all]` -> `[..., here]`"""
        parts = whole.split([one * self.ranks for one in self.sections], dim=-1)
        return torch.cat([part.chunk(self.ranks, dim=-1)[self.rank] for part in parts], dim=-1)


def _group() -> tuple[int, int]:
    from vllm.distributed import (
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
    )

    return get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank()


def output_shards(module: nn.Module) -> Shards | None:
    """How the output of a module is spread; None: every worker has all of it.

    Raises:
        UnsupportedError: workers have copies of key/value heads.
    """
    from vllm.model_executor.layers import linear

    ranks, rank = _group()
    if ranks == 1 or not isinstance(module, linear.ColumnParallelLinear):
        return None
    if getattr(module, "num_kv_head_replicas", 1) > 1:
        raise UnsupportedError(
            f"This LLM has more workers (tensor_parallel_size={ranks}) than its model key/value "
            "heads, so some have copies of one head. Use fewer workers."
        )
    found: Any = module
    sizes = getattr(found, "output_sizes", None) or [found.output_size]
    return Shards(tuple(int(one) // ranks for one in sizes), ranks, rank)


def input_shards(module: nn.Module) -> Shards | None:
    """How the input of a projection is spread; None: every worker has all of it."""
    from vllm.model_executor.layers import linear

    ranks, rank = _group()
    if ranks == 1 or not isinstance(module, linear.RowParallelLinear):
        return None
    return Shards((int(module.input_size) // ranks,), ranks, rank)


def heads_shards(width: int) -> Shards | None:
    """How the heads that a kernel is given are spread, in all so wide."""
    ranks, rank = _group()
    return None if ranks == 1 else Shards((width,), ranks, rank)


def rows_together(mine: Tensor) -> Tensor:
    """The rows of all workers. Shapes: `[here, ...]` -> `[all, ...]`"""
    from vllm.distributed import tensor_model_parallel_all_gather

    return mine if _group()[0] == 1 else tensor_model_parallel_all_gather(mine.contiguous(), dim=0)
