"""Tensors that are in pieces, one on each rank of a mesh: how they are put together and split.

Under tensor parallelism a rank computes some of the heads and neurons. `Sharding` says at which
modules of a model that shows, and `Pieces` turns a rank's piece into the whole tensor and back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lensbridge.errors import LensbridgeError


@dataclass(frozen=True)
class Pieces:
    """One axis of a tensor is in pieces. Every rank of the mesh has to call both methods.

    Gradients flow through both: that of a whole tensor is the whole one on every rank, and that of
    a piece is the piece's.

    Args:
        mesh: the ranks, along one dimension.
        axis: which axis, counted from the last: -1.
        size: the length of the axis in the whole tensor.
    """

    mesh: Any
    axis: int
    size: int

    def whole(self, piece: Tensor) -> Tensor:
        """The whole tensor, on every rank."""
        from torch.distributed.tensor import DTensor, Shard

        axis = piece.ndim + self.axis
        shape = torch.Size([*piece.shape[:axis], self.size, *piece.shape[axis + 1 :]])
        stride = torch.empty(shape, device="meta").stride()
        held = DTensor.from_local(
            piece.contiguous(),
            self.mesh,
            [Shard(axis)],
            run_check=False,
            shape=shape,
            stride=stride,
        )
        return held.full_tensor()

    def mine(self, whole: Tensor) -> Tensor:
        """This rank's piece of a tensor that is the same on every rank."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        axis = whole.ndim + self.axis
        held = DTensor.from_local(whole.contiguous(), self.mesh, [Replicate()], run_check=False)
        return held.redistribute(placements=[Shard(axis)]).to_local()


@dataclass(frozen=True, eq=False)
class Sharding:
    """Which native tensors of a model are in pieces. All others are whole on every rank.

    Args:
        mesh: the ranks, along one dimension.
        inputs: modules whose input is in pieces.
        outputs: modules whose output is in pieces.
        kernels: attention modules of which each rank computes some of the heads.
    """

    mesh: Any
    inputs: Mapping[nn.Module, Pieces]
    outputs: Mapping[nn.Module, Pieces]
    kernels: frozenset[nn.Module]

    @property
    def ranks(self) -> int:
        """How many pieces there are."""
        return int(self.mesh.size())

    def touches(self, module: nn.Module) -> bool:
        """Whether the input or the output of a module is in pieces."""
        return module in self.inputs or module in self.outputs

    def least(self, value: int) -> int:
        """The smallest of the values that the ranks have, on every rank."""
        import torch.distributed as distributed

        given = torch.tensor([value], device=self.mesh.device_type)
        distributed.all_reduce(given, distributed.ReduceOp.MIN, group=self.mesh.get_group())
        return int(given.item())


def refuse_copies(sharding: Sharding | None) -> None:
    """Refuse to copy or pickle a model that is in pieces.

    Raises:
        LensbridgeError: transformers put a `forward` on its modules that runs these very modules.
    """
    if sharding is not None:
        raise LensbridgeError(
            f"This model is spread over {sharding.ranks} ranks by tp_plan, and its modules hold "
            "functions that run the originals, so a copy would run the weights of the original. "
            "Load the model again on every rank."
        )
