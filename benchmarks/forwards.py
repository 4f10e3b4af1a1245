"""Forward passes: idle, caching, editing, each against what does the same without lensbridge."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import rival
from benchmarks.checks import require_close, require_equal, require_same_cache
from benchmarks.report import Row
from benchmarks.specimens import Specimen
from benchmarks.timing import Effort, Work, interleave

HEAD = 1


@dataclass(frozen=True)
class Other:
    """What lensbridge is compared with; `work` None: not installed."""

    name: str
    work: Work | None
    budget: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One piece of work, done by lensbridge and by others, with results that were found equal."""

    name: str
    ours: Work
    others: list[Other] = field(default_factory=list)

    def rows(self, model: str, effort: Effort) -> Iterator[Row]:
        """Measure."""
        there = {other.name: other.work for other in self.others if other.work is not None}
        samples = interleave({"lensbridge": self.ours, **there}, effort)
        for other in self.others:
            if other.work is None:
                yield Row(self.name, model, other.name, None, missing="not installed")
            else:
                ratio = samples.ratio("lensbridge", other.name)
                yield Row(self.name, model, other.name, ratio, other.budget)


def native_names(lens: Any) -> list[str]:
    """Every point that is found in the model rather than computed, and not only on request."""
    return [point.name for point in lens.hook_points() if not (point.derived or point.on_request)]


def comparisons(one: Specimen) -> Iterator[Comparison]:
    """Every comparison on one model; results are checked as each is built."""
    yield idle(one)
    yield residuals(one)
    yield patterns(one)
    yield everything_native(one, "default")
    yield everything_native(one, "eager")
    yield everything(one)
    yield ablation(one)


def idle(one: Specimen) -> Comparison:
    """A forward pass that nobody listens to."""
    lens, hf, ids = one.lens, one.hf, one.ids
    require_equal(lens(ids), hf(ids).logits, "logits without hooks")
    return Comparison(
        "forward, no hooks",
        lambda: lens(ids),
        [
            Other("HF forward", lambda: hf(ids), 1.0),
            _bridge(one, "forward", lambda bridge: bridge(ids), _same_logits(one)),
        ],
    )


def residuals(one: Specimen) -> Comparison:
    """The residual stream behind every layer."""
    lens, hf, ids = one.lens, one.hf, one.ids
    logits, cache = lens.run_with_cache(ids, "resid_post")
    native = hf(ids, output_hidden_states=True)
    require_equal(logits, native.logits, "logits while caching resid_post")
    _require_hidden_states(cache, native.hidden_states)
    names = list(cache)
    return Comparison(
        "cache every resid_post",
        lambda: lens.run_with_cache(ids, "resid_post"),
        [
            Other("HF output_hidden_states", lambda: hf(ids, output_hidden_states=True), 1.03),
            _bridge(
                one,
                "run_with_cache, same points",
                lambda bridge: bridge.run_with_cache(ids, names_filter=names),
                lambda bridge: _require_bridge_cache(one, bridge, names),
            ),
        ],
    )


def patterns(one: Specimen) -> Comparison:
    """What HuggingFace can show, and no more: residual streams and attention patterns."""
    lens, ids = one.lens, one.ids
    asked = ["resid_post", "pattern"]
    logits, cache = lens.run_with_cache(ids, asked)
    require_equal(logits, one.hf(ids).logits, "logits while caching patterns")
    _require_hf_outputs(cache, _eager(one)())
    return Comparison(
        "cache every resid_post and pattern",
        lambda: lens.run_with_cache(ids, asked),
        [Other("HF eager, attentions and hidden states", _eager(one))],
    )


def everything_native(one: Specimen, kernel: str) -> Comparison:
    """Every point but derived ones, with the model's own kernel or the one HuggingFace needs."""
    lens, ids = one.lens_eager if kernel == "eager" else one.lens, one.ids
    names = native_names(lens)
    logits, cache = lens.run_with_cache(ids, names)
    require_equal(logits, lens.hf_model(ids).logits, f"logits while caching with {kernel}")
    _require_hf_outputs(cache, _eager(one)())
    others = [Other("HF eager, attentions and hidden states", _eager(one), 1.10)]
    if kernel == "eager":
        raw, _ = raw_cache(one.hf_eager, ids)
        others.append(Other("raw hooks keeping every module's input and output", raw))
    return Comparison(
        f"cache everything but derived, {kernel} kernel",
        lambda: lens.run_with_cache(ids, names),
        others,
    )


def everything(one: Specimen) -> Comparison:
    """Every point that is not asked for by name only, with the model's own kernel."""
    lens, ids = one.lens, one.ids
    logits, cache = lens.run_with_cache(ids)
    require_equal(logits, one.hf(ids).logits, "logits while caching everything")
    names = list(cache)
    return Comparison(
        "cache everything (names_filter=None)",
        lambda: lens.run_with_cache(ids),
        [
            _bridge(
                one,
                "run_with_cache",
                lambda bridge: bridge.run_with_cache(ids),
                lambda bridge: _require_bridge_cache(one, bridge, None),
            ),
            _bridge(
                one,
                "run_with_cache, same points",
                lambda bridge: bridge.run_with_cache(ids, names_filter=names),
                lambda bridge: _require_bridge_cache(one, bridge, names),
            ),
        ],
    )


def ablation(one: Specimen) -> Comparison:
    """One head's z set to zero."""
    lens, ids = one.lens, one.ids
    name = f"blocks.{one.middle}.attn.hook_z"
    raw = _raw_ablation(one)
    edited = lens.run_with_hooks(ids, fwd_hooks=[(name, _zero_head)])
    require_equal(edited, raw(), "logits with a head ablated")
    if torch.equal(edited, lens(ids)):
        raise AssertionError("ablating a head changed nothing")
    return Comparison(
        "zero one head's z",
        lambda: lens.run_with_hooks(ids, fwd_hooks=[(name, _zero_head)]),
        [
            Other("raw PyTorch hook", raw),
            _bridge(
                one,
                "run_with_hooks",
                lambda bridge: bridge.run_with_hooks(ids, fwd_hooks=[(name, _zero_head)]),
                lambda bridge: require_close(
                    edited,
                    bridge.run_with_hooks(ids, fwd_hooks=[(name, _zero_head)]),
                    "logits with a head ablated",
                ),
            ),
        ],
    )


def _zero_head(z: Tensor, hook: Any) -> Tensor:
    z[:, :, HEAD] = 0.0
    return z


def _raw_ablation(one: Specimen) -> Callable[[], Tensor]:
    """The same with nothing but PyTorch, as one writes it by hand."""
    hf, ids = one.hf, one.ids
    projection = one.lens.native.blocks[one.middle].attn.out.module
    size = one.lens.cfg.d_head

    def zero(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z[..., HEAD * size : (HEAD + 1) * size] = 0.0
        return (z, *args[1:])

    def run() -> Tensor:
        handle = projection.register_forward_pre_hook(zero)
        try:
            logits: Tensor = hf(ids).logits
            return logits
        finally:
            handle.remove()

    return run


def raw_cache(hf: Any, ids: Tensor) -> tuple[Work, int]:
    """What keeping everything costs at least: every input and output, by hooks written by hand.

    Returns:
        the work, and how many hooks it puts on.
    """
    modules = [module for module in hf.modules() if module is not hf]

    def run() -> list[Any]:
        kept: list[Any] = []

        def keep(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found = output if isinstance(output, tuple) else (output,)
            kept.extend(x.detach() for x in (*args, *found) if isinstance(x, Tensor))

        handles = [module.register_forward_hook(keep) for module in modules]
        try:
            hf(ids)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    return run, len(modules)


def _eager(one: Specimen) -> Callable[[], Any]:
    hf, ids = one.hf_eager, one.ids
    return lambda: hf(ids, output_hidden_states=True, output_attentions=True)


def _bridge(
    one: Specimen, what: str, run: Callable[[Any], object], check: Callable[[Any], None]
) -> Other:
    """TransformerLens as a contender, once its result was found equal."""
    name, bridge = f"{rival.NAME} {what}", one.bridge
    if bridge is None:
        return Other(name, None)
    check(bridge)
    return Other(name, lambda: run(bridge))


def _same_logits(one: Specimen) -> Callable[[Any], None]:
    return lambda bridge: require_close(
        one.lens(one.ids), bridge(one.ids), "TransformerLens logits"
    )


def _require_bridge_cache(one: Specimen, bridge: Any, names: list[str] | None) -> None:
    ours = one.lens.run_with_cache(one.ids, names)[1]
    theirs = bridge.run_with_cache(one.ids, names_filter=names)[1]
    require_same_cache(ours, theirs, least=len(ours) - 1)  # it has no hook_logits by that name


def _require_hidden_states(cache: Any, hidden: tuple[Tensor, ...]) -> None:
    for layer, state in enumerate(hidden[1:-1]):  # the last one is behind the final norm
        require_equal(cache["resid_post", layer], state, f"resid_post of layer {layer}")


def _require_hf_outputs(cache: Any, native: Any) -> None:
    for layer, pattern in enumerate(native.attentions):
        require_close(cache["pattern", layer], pattern, f"pattern of layer {layer}", 1e-5)
    for layer, state in enumerate(native.hidden_states[1:-1]):
        require_close(cache["resid_post", layer], state, f"resid_post of layer {layer}")
