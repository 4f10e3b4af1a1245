"""Memory: what a sweep needs, what is free, and how many positions a batch may have."""

from math import prod
from pathlib import Path

import torch

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel
from lensbridge.plans.footprint import Footprint
from lensbridge.sweeps.base_run import BaseRun
from lensbridge.sweeps.metric import Metrics
from lensbridge.sweeps.options import MAX_BATCH_TOKENS

CELL_BYTES = 500
"""Bytes that one cell takes on the host: its row, its index, its place in the queue."""

SHARE = 0.5
"""Share of the free memory that batches may take if the user sets no size."""

MOST_TOKENS = 2**18
"""Positions in one batch; larger ones are no faster on any device."""


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device, or None where it is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        return None
    rows = dict(line.split(":") for line in table.read_text().splitlines() if ":" in line)
    found = rows.get("MemAvailable", "").split()
    return int(found[0]) * 1024 if found else None


def least_free(base: BaseRun) -> int | None:
    """Free memory of the model's device; of ranks that share a model, that of the one with least.

    Ranks that made batches of different sizes could not run them together.
    """
    free, sharding = free_bytes(base.logits.device), base.model.native.sharding
    return free if free is None or sharding is None else sharding.least(free)


def position_bytes(base: BaseRun) -> int:
    """Bytes that one position of a batch takes at most: the activations of a layer, and logits.

    Logits count three times: those of this batch, those of the batch before it, which are still
    held, and temporary tensors of the head. What a mixer holds depends on its implementation, so a
    model that has one is run once and measured.
    """
    sizes, count = base.model.native.sizes, base.logits.shape[1]
    if any(block.mixer is not None for block in base.model.native.blocks):
        return 2 * run_bytes(base) // prod(base.logits.shape[:2])
    inside = 8 * sizes.d_model + 4 * sizes.d_mlp + 4 * sizes.n_heads * count
    return base.logits.element_size() * (inside + 3 * base.logits.shape[-1])


def run_bytes(base: BaseRun) -> int:
    """Bytes that one run takes at its peak, without the weights."""
    with torch.no_grad(), Footprint() as found:
        base.model(base.input)
    return found.peak


def batch_tokens(base: BaseRun, asked: int | None) -> int:
    """How many positions a batch may have.

    Args:
        base: the unpatched run.
        asked: what the user set; None: as many as fit into memory and are fast on the device.

    Raises:
        InputError: fewer than one run has, or one run does not fit into memory.
    """
    one = prod(base.logits.shape[:2])
    if asked is not None:
        if 1 <= asked < one:
            raise InputError(
                f"max_batch_tokens={asked}: one run alone has {one} positions "
                f"({base.logits.shape[0]} examples of {base.logits.shape[1]}). Allow as many, or "
                "sweep fewer examples at once."
            )
        return asked
    device, each = base.logits.device, position_bytes(base)
    most = MOST_TOKENS if device.type == "cuda" else MAX_BATCH_TOKENS
    free = least_free(base)
    if free is None:
        return max(one, most)
    check_room(one * each, free, "one patched run")
    return max(one, min(most, int(SHARE * free) // each))


def generated_tokens(model: HookedModel, asked: int | None) -> int:
    """How many positions a batch of generated texts may have, keys and values included.

    Args:
        model: the model.
        asked: what the user set; None: as many as fit into memory and are fast on the device.
    """
    if asked is not None:
        return asked
    sizes = model.native.sizes
    held = 2 * len(model.native.blocks) * sizes.d_model  # keys and values of all layers
    each = 4 * (held + 8 * sizes.d_model + 4 * sizes.d_mlp + 4 * sizes.n_heads)
    most = MOST_TOKENS if model.device.type == "cuda" else MAX_BATCH_TOKENS
    free = free_bytes(model.device)
    return most if free is None else max(1, min(most, int(SHARE * free) // each))


def check_cells(count: int) -> None:
    """Refuse more cells than fit into the memory of the host.

    Raises:
        InputError: with the memory that they need.
    """
    free = free_bytes(torch.device("cpu"))
    if free is not None:
        check_room(count * CELL_BYTES, free, f"{count:,} cells")


def check_values(base: BaseRun, count: int, metrics: Metrics) -> None:
    """Refuse more values than fit into the memory of the model's device.

    Raises:
        InputError: with the memory that they need.
    """
    each = len(metrics.names) * (base.batch if metrics.per_example else 1) * 4
    free = least_free(base)
    if free is not None:
        check_room(count * each, free, f"the values of {count:,} cells")


def check_room(needed: int, free: int, what: str) -> None:
    """Refuse what does not fit into memory.

    Raises:
        InputError: with what is needed and what is free.
    """
    if needed > free:
        raise InputError(
            f"This sweep does not fit into memory: {what} would take about {needed / 1e9:.3g} GB, "
            f"and {free / 1e9:.3g} GB are free. Name fewer cells (index_df, or cells of your own), "
            "or pass fewer or shorter examples."
        )
