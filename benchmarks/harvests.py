"""A harvest beside loops that are written by hand: the same activations, run and written.

One hand-written loop raises after the last needed layer, as a harvest stops there; the other runs
the whole model, as most notebooks do. Both write the same shards with safetensors. TransformerLens
runs its cache up to the layer.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.checks import require_equal
from benchmarks.report import Row
from benchmarks.specimens import Specimen
from benchmarks.timing import Effort, Work, interleave
from lensbridge import Harvest, Rows

BATCHES, SHARD = 8, 4
"""Batches of one harvest, and of a shard."""


class StopHereError(Exception):
    """The layer was reached."""


def rows(one: Specimen, effort: Effort) -> Iterator[Row]:
    """The stream after the middle layer, of some batches."""
    layer = len(one.hf.transformer.h) // 2 if hasattr(one.hf, "transformer") else 0
    batch, positions = one.ids.shape
    ids = torch.randint(3, one.hf.config.vocab_size, (BATCHES * batch, positions))
    spec = Harvest(
        one.lens,
        ids,
        [("resid_post", layer)],
        rows=Rows(positions, "pad"),
        batch=batch,
        shard_tokens=SHARD * batch * positions,
    )
    module = one.hf.transformer.h[layer]

    def stopped(part: Tensor) -> Tensor:
        kept: list[Tensor] = []

        def stop(_: Any, given: Any, out: Any) -> None:
            kept.append(out[0] if isinstance(out, tuple) else out)
            raise StopHereError

        handle = module.register_forward_hook(stop)
        try:
            one.hf(part)
        except StopHereError:
            pass
        finally:
            handle.remove()
        return kept[0]

    def whole(part: Tensor) -> Tensor:
        found = one.hf(part, output_hidden_states=True).hidden_states[layer + 1]
        return torch.as_tensor(found)

    contenders = {
        "lensbridge": in_folder(lambda out: spec.run(out)),
        "a loop that stops": in_folder(lambda out: by_hand(out, ids, batch, stopped)),
        "a loop that does not stop": in_folder(lambda out: by_hand(out, ids, batch, whole)),
    }
    with tempfile.TemporaryDirectory() as folder:
        spec.run(Path(folder) / "ours")
        by_hand(Path(folder), ids, batch, stopped)
        ours = load_file(Path(folder) / "ours" / "shard-000000.safetensors")
        require_equal(
            ours[f"blocks.{layer}.hook_resid_post"],
            load_file(Path(folder) / "0.safetensors")["acts"],
            "a shard",
        )
    samples = interleave(contenders, effort)
    work = f"harvest layer {layer}, {BATCHES} batches of {batch} x {positions}"
    for other, budget in (("a loop that stops", 1 / 0.98), ("a loop that does not stop", None)):
        yield Row(work, one.name, other, samples.ratio("lensbridge", other), budget)


def by_hand(folder: Path, ids: Tensor, batch: int, read: Callable[[Tensor], Tensor]) -> None:
    """Run the batches and write the shards."""
    parts = ids.split(batch)
    for number in range(0, len(parts), SHARD):
        some = parts[number : number + SHARD]
        acts = torch.cat([read(part).flatten(0, 1) for part in some])
        tokens = torch.cat(some).flatten()
        path = folder / f"{number // SHARD}.safetensors"
        save_file({"acts": acts, "tokens": tokens}, path)


def in_folder(work: Callable[[Path], object]) -> Work:
    """Work in a folder of its own, which is removed."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            work(Path(folder))

    return run
