"""The checks of `python -m benchmarks.gpu`, each a function of the place where it is to run.

A check raises where lensbridge and the bare model differ, and gives what it measured, in words.
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import dispatch_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import lensbridge
from benchmarks.checks import UnequalResultsError, require_close, require_equal
from benchmarks.memory import peak_allocated
from benchmarks.specimens import Shape, Specimen, gpt2, llama
from lensbridge.patching import Cell
from lensbridge.viz.numbers import bytes_as_text

POINTS = ("resid_pre", "q", "z", "mlp_post", "resid_post")


class NotHereError(Exception):
    """A check needs something that this machine does not have."""


@dataclass(frozen=True)
class Place:
    """Where checks run, and on how large a model.

    Args:
        device: where models are.
        other: a second device for layers; the same one where there is no other.
        shape: of the models.
        dtype: of the weights.
    """

    device: str
    other: str
    shape: Shape
    dtype: torch.dtype

    @property
    def on_gpu(self) -> bool:
        """Whether it is a CUDA device."""
        return self.device.startswith("cuda")

    def model(self, build: Callable[[Shape], Specimen] = llama, kernel: str = "") -> Specimen:
        """A model here, with its input."""
        one = build(self.shape)
        hf = one.hf.to(self.device, self.dtype)
        if kernel:
            hf.set_attn_implementation(kernel)
        return Specimen(one.name, hf, one.ids.to(self.device))

    def wait(self) -> None:
        """Until all that was started is done."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], rounds: int = 5) -> float:
        """The shortest time of some rounds, after one that is not timed."""
        work()
        found = []
        for _ in range(rounds):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - start)
        return min(found)


def reading(place: Place) -> str:
    """Every point is read, and the logits are those of the bare model."""
    count = 0
    for build in (gpt2, llama):
        one = place.model(build)
        wanted = one.hf(one.ids).logits
        logits, cache = one.lens.run_with_cache(one.ids, one.lens.hook_names)
        require_equal(logits, wanted, f"{one.name}: logits while all points are read")
        require_equal(one.lens(one.ids), wanted, f"{one.name}: logits afterwards")
        count += len(cache)
    return f"{count} points; logits equal bit for bit in {str(place.dtype).removeprefix('torch.')}"


def kernels(place: Place) -> str:
    """With each fused attention kernel, points are those of the eager one up to rounding."""
    eager = place.model(kernel="eager")
    _, wanted = eager.lens.run_with_cache(eager.ids, POINTS)
    told = []
    for name, choose in _kernels().items():
        one = place.model(kernel="sdpa")
        try:
            with choose():
                bare = one.hf(one.ids).logits
                logits, cache = one.lens.run_with_cache(one.ids, [*POINTS, "pattern"])
        except RuntimeError as error:
            if not re.search("No (available kernel|viable backend)", str(error)):
                raise
            continue
        require_equal(logits, bare, f"{name}: logits while points are read")
        _require_near(cache, wanted, name, place.dtype)
        told.append(name)
    if not told:
        raise UnequalResultsError("no fused kernel ran")
    return f"{', '.join(told)} like eager, also where patterns are read"


def _kernels() -> dict[str, Callable[[], Any]]:
    return {
        "flash": partial(sdpa_kernel, SDPBackend.FLASH_ATTENTION),
        "memory-efficient": partial(sdpa_kernel, SDPBackend.EFFICIENT_ATTENTION),
        "cuDNN": partial(sdpa_kernel, SDPBackend.CUDNN_ATTENTION),
        "math": partial(sdpa_kernel, SDPBackend.MATH),
    }


def _require_near(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str, dtype: torch.dtype
) -> None:
    """Equal up to the rounding of a dtype, beside the size of each value."""
    allowed = 64 * torch.finfo(dtype).eps
    for name, value in wanted.items():
        off = (found[name].float() - value.float()).abs().max() / value.float().abs().max()
        if float(off) > allowed:
            raise UnequalResultsError(f"{what}: {name} is off by {float(off):.1e} of its size")


def device_maps(place: Place) -> str:
    """Half of the layers on another device: the same bits, each point where it is computed."""
    one = place.model()
    _, wanted = one.lens.run_with_cache(one.ids, POINTS)
    layers, half = place.shape.layers, place.shape.layers // 2
    places = {f"model.layers.{i}": (place.device, place.other)[i >= half] for i in range(layers)}
    ends = {"model.embed_tokens": place.device, "model.rotary_emb": place.device}
    ends |= {"model.norm": place.other, "lm_head": place.other}
    away = lensbridge.load(dispatch_model(deepcopy(one.hf), {**ends, **places}))
    _, cache = away.run_with_cache(one.ids, POINTS)
    _, moved = away.run_with_cache(one.ids, POINTS, device="cpu")
    for name, value in wanted.items():
        require_equal(cache[name].cpu(), value.cpu(), name)
        require_equal(moved[name], value.cpu(), f"{name}, kept on the CPU")
    found = sorted({str(tensor.device) for tensor in cache.values()})
    _patched_like(away, one, wanted)
    return f"{len(cache)} points equal on {' and '.join(found)}; patched from another device"


def _patched_like(away: Any, one: Specimen, cache: Mapping[str, Tensor]) -> None:
    """A patch with values of the CPU acts as one with values of the device."""
    name = f"blocks.{place_of_patch(one)}.hook_resid_pre"
    value = cache[name].flip(1)

    def patch(resid: Tensor, hook: Any) -> None:
        resid[:, 1:] = value[:, 1:].to(resid.device)

    wanted = one.lens.run_with_hooks(one.ids, fwd_hooks=[(name, patch)])
    on_the_host = value.cpu()
    whole = away.run_with_hooks(one.ids, fwd_hooks=[(name, lambda resid, hook: on_the_host)])
    part = one.lens.run_with_hooks(one.ids, fwd_hooks=[(name, lambda resid, hook: value)])
    require_equal(whole.cpu(), part.cpu(), "patched from the CPU")
    if torch.equal(wanted, one.lens(one.ids)):
        raise UnequalResultsError("the patch did nothing")


def place_of_patch(one: Specimen) -> int:
    """The last layer, which is on the other device where there are two."""
    return len(one.lens.native.blocks) - 1


def offload(place: Place) -> str:
    """The last layers on disk: the same bits, and they are there again afterwards."""
    one = place.model()
    _, wanted = one.lens.run_with_cache(one.ids, POINTS)
    layers = place.shape.layers
    places = {f"model.layers.{i}": (place.device, "disk")[i >= layers // 2] for i in range(layers)}
    ends = dict.fromkeys(
        ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"], place.device
    )
    with tempfile.TemporaryDirectory() as folder:
        hf = dispatch_model(deepcopy(one.hf), {**ends, **places}, offload_dir=folder)
        away = lensbridge.load(hf)
        before = [name for name, held in hf.named_parameters() if held.is_meta]
        _, cache = away.run_with_cache(one.ids, POINTS)
        after = [name for name, held in hf.named_parameters() if held.is_meta]
    for name, value in wanted.items():
        require_equal(cache[name].cpu(), value.cpu(), name)
    if not before or before != after:
        raise UnequalResultsError("weights on disk were left in memory")
    return f"{len(before)} weights on disk; {len(cache)} points equal"


def gradients(place: Place) -> str:
    """Gradients at points are those of autograd on the bare model."""
    one = place.model()
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        value = output if isinstance(output, Tensor) else output[0]
        kept.append(value)

    handles = [layer.register_forward_hook(keep) for layer in one.hf.model.layers]
    loss = one.hf(one.ids, labels=one.ids).loss
    for handle in handles:
        handle.remove()
    wanted = torch.autograd.grad(loss, kept)
    how = {"incl_bwd": True, "return_type": "loss"}
    _, cache = one.lens.run_with_cache(one.ids, "resid_post", **how)
    named = {f"blocks.{i}.hook_resid_post_grad": grad for i, grad in enumerate(wanted)}
    _require_near(cache, named, "gradients", place.dtype)
    return f"{len(wanted)} layers"


def compiled(place: Place) -> str:
    """A compiled model gives its points while hooks listen, and runs compiled when they do not."""
    one = place.model()
    _, wanted = one.lens.run_with_cache(one.ids, POINTS)
    backend = "inductor" if place.on_gpu else "eager"
    with _fresh_compiler():
        fast = torch.compile(deepcopy(one.hf), backend=backend)
        lens = lensbridge.load(fast)
        with torch.no_grad():
            before = fast(one.ids).logits
            _, cache = lens.run_with_cache(one.ids, POINTS)
            after = fast(one.ids).logits
    for name, value in wanted.items():
        require_equal(cache[name], value, f"{name} of the compiled model")
    require_equal(after, before, "the compiled model after hooks")
    return f"{len(cache)} points equal to the eager model's, with {backend}"


@contextmanager
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()


def cuda_graphs(place: Place) -> str:
    """A captured graph of the bare model replays the same after hooks came and went."""
    if not place.on_gpu:
        raise NotHereError("CUDA graphs are of CUDA")
    one = place.model()
    with torch.no_grad():
        wanted = one.hf(one.ids, use_cache=False).logits
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                one.hf(one.ids, use_cache=False)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            out = one.hf(one.ids, use_cache=False).logits
        one.lens.run_with_cache(one.ids, POINTS)
        graph.replay()
        place.wait()
    require_close(out.float(), wanted.float(), "the replayed graph", 1e-2)
    bare = place.seconds(lambda: one.hf(one.ids, use_cache=False))
    return f"replays in {place.seconds(graph.replay) / bare:.2f} of a forward pass"


def sweeps(place: Place) -> str:
    """A sweep in batches gives what one run for each cell gives, and is faster."""
    one = place.model(gpt2)
    every, width = slice(None), place.shape.width
    cells = [
        Cell(("resid_pre", layer), (every, at), torch.zeros(width))
        for layer in range(place.shape.layers)
        for at in range(0, place.shape.positions, max(1, place.shape.positions // 8))
    ]

    def metric(logits: Tensor) -> Tensor:
        return logits[:, -1].float().logsumexp(-1).mean()

    def alone() -> Tensor:
        found = []
        for cell in cells:
            hook = (cell.point, lambda value, hook, cell=cell: cell.apply(value))
            found.append(metric(one.lens.run_with_hooks(one.ids, fwd_hooks=[hook])))
        return torch.stack(found)

    with torch.no_grad():
        wanted, found = alone(), one.lens.sweep(one.ids, cells, metric).values
        _require_near({"all": found.flatten()}, {"all": wanted}, "cells", place.dtype)
        slow = place.seconds(alone, 1)
        fast = place.seconds(lambda: one.lens.sweep(one.ids, cells, metric), 1)
    return f"{len(cells)} cells in {fast / slow:.2f} of the time of single runs"


def hook_cost(place: Place) -> str:
    """What an idle lens, a cache and a hook at every layer cost beside the bare model."""
    one = place.model()
    hooks = [("resid_post", lambda value, hook: None)]
    with torch.no_grad():
        bare = place.seconds(lambda: one.hf(one.ids))
        runs = {
            "no hooks": lambda: one.lens(one.ids),
            "cache resid_post": lambda: one.lens.run_with_cache(one.ids, "resid_post"),
            "hook resid_post": lambda: one.lens.run_with_hooks(one.ids, fwd_hooks=hooks),
        }
        told = [f"{name} {place.seconds(work) / bare:.2f}x" for name, work in runs.items()]
    return ", ".join(told)


def planned_memory(place: Place) -> str:
    """The plan of a cache is what it holds, and the peak is what the device reports."""
    one, worst = place.model(), 0.0
    for names, how in (
        ("resid_post", {}),
        (["z", "pattern"], {}),
        ("resid_post", {"incl_bwd": True, "return_type": "loss"}),
    ):
        plan = one.lens.plan(one.ids, names, **how)
        work = partial(one.lens.run_with_cache, one.ids, names, **how)
        _, cache = work()
        held = {held.data_ptr(): held.nbytes() for held in map(_storage, cache.values())}
        del cache
        if plan.total != sum(held.values()):
            raise UnequalResultsError(f"{names}: {plan.total} planned, {sum(held.values())} held")
        peak = _peak(place, work)
        worst = max(worst, abs(sum(plan.peak.values()) / peak - 1))
    return f"caches to the byte, peaks within {worst:.0%} (the last {bytes_as_text(peak)})"


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()


def _peak(place: Place, work: Callable[[], Any]) -> int:
    if not place.on_gpu:
        return peak_allocated(work)
    work()
    place.wait()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    place.wait()
    return int(torch.cuda.max_memory_allocated() - before)


def generation(place: Place) -> str:
    """Text is generated as transformers generates it, with and without hooks."""
    one = place.model()
    how: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    mask = torch.ones_like(one.ids)
    wanted = one.hf.generate(one.ids, attention_mask=mask, eos_token_id=None, **how)
    steps: list[int] = []
    hooks = [(("resid_post", 0), lambda value, hook: steps.append(hook.step))]
    with one.lens.hooks(hooks):
        found = one.lens.generate(one.ids, stop_at_eos=False, verbose=False, **how)
    require_equal(found[:, -8:], wanted[:, -8:], "tokens")
    if len(steps) != 8:
        raise UnequalResultsError(f"the hook ran in {len(steps)} of 8 steps")
    return "8 tokens, a hook in each step"


CHECKS: dict[str, Callable[[Place], str]] = {
    "points": reading,
    "attention kernels": kernels,
    "device map": device_maps,
    "disk offload": offload,
    "gradients": gradients,
    "compiled": compiled,
    "CUDA graphs": cuda_graphs,
    "generation": generation,
    "sweep": sweeps,
    "cost of hooks": hook_cost,
    "plan and memory": planned_memory,
}
