"""Compiled models: hooks act as on the bare model, and what is compiled stays as it is.

The oracle is the same model, not compiled, under plain PyTorch hooks.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import Shape, build, tokens
from torch import Tensor, nn
from torch._dynamo import eval_frame
from torch._dynamo.utils import counters
from transformers import CompileConfig

import lensbridge
from lensbridge.errors import HookError
from lensbridge.native import compiled

pytestmark = pytest.mark.usefixtures("one_thread", "fresh")
POINT = "blocks.0.hook_mlp_out"
QUIET: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is compiled before a test, nor after it, and the compiler is left as it was.

    Hooks that other tests left on their models would keep all of it from running compiled.
    """
    compiled._forget()
    torch.compiler.reset()
    counters.clear()
    yield
    assert stance() == "default"
    torch.compiler.reset()


def stance() -> str:
    return eval_frame._stance.stance


class Backend:
    """A compiler that compiles nothing and counts.

    Attributes:
        graphs: how many it was given.
        runs: how often they ran.
    """

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any, **_: Any) -> Callable[..., Any]:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run

    @property
    def state(self) -> tuple[int, int]:
        """What must not change: graphs, and breaks of graphs."""
        return self.graphs, sum(counters["graph_break"].values())


def gpt2() -> Any:
    return build(Shape("gpt2"))


def double(value: Tensor, hook: Any) -> Tensor:
    return value * 2


def of_layers(change: Callable[[nn.Module], nn.Module]) -> Callable[[Any], nn.Module]:
    def wrap(model: Any) -> nn.Module:
        for i, layer in enumerate(model.transformer.h):
            model.transformer.h[i] = change(layer)
        return model  # type: ignore[no-any-return]

    return wrap


def in_place(module: nn.Module, backend: Any) -> nn.Module:
    module.compile(backend=backend)
    return module


def of_forward(module: nn.Module, backend: Any) -> nn.Module:
    module.forward = torch.compile(module.forward, backend=backend)
    return module


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "wrapper": lambda model, b: torch.compile(model, backend=b),
    "model in place": in_place,
    "layers in place": lambda model, b: of_layers(lambda one: in_place(one, b))(model),
    "forward of layers": lambda model, b: of_layers(lambda one: of_forward(one, b))(model),
    "layers replaced": lambda model, b: of_layers(lambda one: torch.compile(one, backend=b))(model),
}
"""Five ways to compile; each gives what the user calls from then on."""


class Truth(NamedTuple):
    """What the bare model gives under PyTorch hooks: by itself, and with an MLP doubled."""

    plain: Tensor
    edited: Tensor
    residual: Tensor
    generated: Tensor
    grad: Tensor


def truth(ids: Tensor) -> Truth:
    model, kept = gpt2(), []
    layer = model.transformer.h[0]
    with layer.register_forward_hook(lambda m, a, out: kept.append(out)):
        plain = model(ids).logits
    residual = kept[0] if isinstance(kept[0], Tensor) else kept[0][0]
    residual.retain_grad()
    plain.sum().backward()
    with layer.mlp.register_forward_hook(lambda m, a, out: out * 2), torch.no_grad():
        edited, generated = model(ids).logits, model.generate(ids, **QUIET)
    assert residual.grad is not None
    return Truth(plain.detach(), edited, residual.detach(), generated, residual.grad)


@pytest.mark.parametrize("way", WAYS)
def test_hooks_act_in_what_has_been_compiled_and_run(way: str) -> None:
    ids, backend, hf = tokens(), Backend(), gpt2()
    wanted, early = truth(ids), lensbridge.load(hf)
    native = WAYS[way](hf, backend)
    with torch.no_grad():
        assert torch.equal(native(ids).logits, wanted.plain)
    late, first = lensbridge.load(native), backend.state
    assert first[0]
    with torch.no_grad():
        assert torch.equal(early(ids), wanted.plain)  # runs compiled, unless within a wrapper
    before = backend.state
    for lens in (early, late):
        hold_equal(lens, native, ids, wanted)
        assert backend.state == before
        runs = backend.runs
        with torch.no_grad():
            assert torch.equal(native(ids).logits, wanted.plain)
        assert backend.runs > runs  # compiled code runs again
    assert backend.state == before


def hold_equal(lens: lensbridge.LensModel, native: Any, ids: Tensor, wanted: Truth) -> None:
    """All that hooks do to the model is what they do to the bare model."""
    edits = [(POINT, double)]
    with torch.no_grad():
        assert torch.equal(lens.run_with_hooks(ids, fwd_hooks=edits), wanted.edited)
        _, cache = lens.run_with_cache(ids)
        assert torch.equal(cache["resid_post", 0], wanted.residual)
        with lens.hooks(edits):
            assert torch.equal(lens(ids), wanted.edited)
            assert torch.equal(native(ids).logits, wanted.edited)
            assert torch.equal(lens.generate(ids, **QUIET, verbose=False), wanted.generated)
        handle = lens.add_hook(*edits[0])
        assert torch.equal(native(ids).logits, wanted.edited)
        assert torch.equal(lens(ids), wanted.edited)
        assert torch.equal(lens.generate(ids, **QUIET, verbose=False), wanted.generated)
        handle.remove()
        assert torch.equal(lens(ids, stop_at_layer=1), wanted.residual)
        assert torch.equal(lens(wanted.residual, start_at_layer=1), wanted.plain)
    grads: list[Tensor] = []
    bwd = [("blocks.0.hook_resid_post", lambda grad, hook: grads.append(grad))]
    lens.run_with_hooks(ids, bwd_hooks=bwd).sum().backward()
    assert torch.equal(grads[0], wanted.grad)
    assert torch.equal(lens.W_in[0], gpt2().transformer.h[0].mlp.c_fc.weight)


def test_a_sweep_is_that_of_the_bare_model() -> None:
    backend, hf = Backend(), gpt2()
    clean, corrupted = tokens(1), tokens(1, seed=1)

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, 5]

    def swept(lens: Any) -> Tensor:
        _, cache = lens.run_with_cache(clean)
        patch = lensbridge.patching.get_act_patch_resid_pre
        return torch.as_tensor(patch(lens, corrupted, cache, metric, exact=True))

    native = in_place(hf, backend)
    with torch.no_grad():
        native(corrupted)
        graphs = backend.graphs
        assert torch.equal(swept(lensbridge.load(native)), swept(lensbridge.load(gpt2())))
    assert graphs
    assert backend.graphs == graphs


def test_a_function_around_the_model_that_was_compiled() -> None:
    """Nobody can find it: neither from the model nor from its modules."""
    ids, backend, hf = tokens(), Backend(), gpt2()
    wanted, lens = truth(ids), lensbridge.load(hf)
    step = torch.compile(lambda given: hf(given).logits.relu(), backend=backend)
    with torch.no_grad():
        assert torch.equal(step(ids), wanted.plain.relu())
        before = backend.state
        with lens.hooks([(POINT, double)]):
            lens(ids)
            assert torch.equal(step(ids), wanted.edited.relu())
        assert torch.equal(step(ids), wanted.plain.relu())
        handle = lens.add_hook(POINT, double)
        assert torch.equal(step(ids), wanted.edited.relu())
        handle.remove()
        assert torch.equal(step(ids), wanted.plain.relu())
    assert backend.state == before
    assert backend.runs == 3


def test_compiled_while_a_hook_is_on() -> None:
    ids, backend, hf = tokens(), Backend(), gpt2()
    wanted, lens = truth(ids), lensbridge.load(hf)
    with torch.no_grad():
        handle = lens.add_hook(POINT, double)
        hf.compile(backend=backend)
        assert torch.equal(hf(ids).logits, wanted.edited)
        assert backend.graphs == 0
        handle.remove()
        assert torch.equal(hf(ids).logits, wanted.plain)
        assert backend.graphs
        assert not counters["graph_break"]


@pytest.mark.parametrize("name", ["_old_forward", "class"])
def test_a_forward_that_was_compiled_out_of_sight(name: str) -> None:
    """accelerate keeps a layer's own forward under another name; a class may be compiled."""
    ids, backend, hf = tokens(), Backend(), gpt2()
    wanted, layer = truth(ids), hf.transformer.h[0]
    if name == "class":

        class Own(type(layer)):  # type: ignore[misc]
            forward = torch.compile(type(layer).forward, backend=backend)

        layer.__class__ = Own
    else:
        layer._old_forward = torch.compile(layer.forward, backend=backend)
        layer.forward = lambda *args, **kwargs: layer._old_forward(*args, **kwargs)
    lens = lensbridge.load(gpt2())
    lens = lensbridge.LensModel(hf, lambda: None, lens.architecture)
    with torch.no_grad():
        hf(ids)
        before = backend.state
        assert torch.equal(lens.run_with_hooks(ids, fwd_hooks=[(POINT, double)]), wanted.edited)
    assert backend.graphs
    assert backend.state == before


# --- the stance of the compiler ----------------------------------------------------------------


def test_contexts_nest_and_restore_the_stance() -> None:
    lens = lensbridge.load(in_place(gpt2(), Backend()))
    seen = []

    def look(value: Tensor, hook: Any) -> None:
        seen.append(stance())

    with torch.compiler.set_stance("eager_on_recompile"):
        with lens.hooks([(POINT, look)]):
            assert stance() == "force_eager"
            with lens.hooks([(POINT, double)]):
                lens.run_with_cache(tokens())
            assert stance() == "force_eager"
            handle = lens.add_hook(POINT, look)
        assert stance() == "force_eager"
        handle.remove()
        handle.remove()
        assert stance() == "eager_on_recompile"
        with pytest.raises(ZeroDivisionError):
            lens.run_with_hooks(tokens(), fwd_hooks=[(POINT, lambda v, hook: 1 / 0)])
        assert stance() == "eager_on_recompile"
    assert seen == ["force_eager"]


def test_flex_attention_stays_compiled() -> None:
    """It is a compiled function itself, and its plain form holds all scores of a layer."""
    hf = build(Shape("llama"))
    lens = lensbridge.load(hf)
    hf.config._attn_implementation = "flex_attention"
    with lens.engine.attached([]):
        assert stance() == "default"
    hf.compile(backend=Backend())
    with lens.engine.attached([]):
        assert stance() == "force_eager"


def test_a_thread_that_ends_first_does_not_let_compiled_code_run() -> None:
    ids, lens = tokens(), lensbridge.load(in_place(gpt2(), Backend()))
    wanted, entered, done = truth(ids), threading.Event(), threading.Event()

    def other() -> None:
        with lens.hooks([(POINT, lambda value, hook: value * 0)]):
            entered.set()
            done.wait(60)
            lens(ids)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(60)
    with torch.no_grad(), lens.hooks([(POINT, double)]):
        done.set()
        thread.join()
        assert torch.equal(lens(ids), wanted.edited)
        assert stance() == "force_eager"


def test_a_stance_that_is_set_meanwhile_is_left_alone_and_not_trusted() -> None:
    backend = Backend()
    lens = lensbridge.load(in_place(gpt2(), backend))
    handle = lens.add_hook(POINT, double)
    torch.compiler.set_stance("fail_on_recompile")
    with pytest.raises(HookError, match=r"The model is compiled, and torch\.compiler\.set_stance"):
        lens.run_with_cache(tokens())
    handle.remove()
    assert stance() == "fail_on_recompile"
    torch.compiler.set_stance("default")
    assert lens.run_with_cache(tokens())
    assert backend.graphs == 0


@pytest.mark.parametrize("call", ["run_with_hooks", "add_hook"])
def test_hooks_inside_a_function_that_is_compiled_are_refused(call: str) -> None:
    lens, ids = lensbridge.load(gpt2()), tokens()

    def put_on(given: Tensor) -> Any:
        if call == "run_with_hooks":
            return lens.run_with_hooks(given, fwd_hooks=[(POINT, double)])
        lens.add_hook(POINT, double)
        return lens(given)

    with pytest.raises(HookError, match="function that is compiled"):
        torch.compile(put_on, backend="eager")(ids)
    assert not lens.engine.permanent
    disabled = torch.compiler.disable(put_on)
    found = torch.compile(lambda given: disabled(given), backend="eager")(ids)
    assert torch.equal(found, truth(ids).edited)
    lens.reset_hooks()


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")  # threads
def test_hooks_are_taken_off_inside_a_function_that_is_compiled() -> None:
    """As when a model is collected there. Another thread put them on after the call began."""
    ids, lens = tokens(), lensbridge.load(gpt2())
    handles: list[Any] = []
    seen = []

    def run(given: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: handles.append(lens.add_hook(POINT, double)))
        thread.start()
        thread.join()
        seen.append(stance())
        handles[0].remove()
        return given + 1

    torch.compile(run, backend="eager")(ids)
    assert seen == ["force_eager"]
    assert stance() == "default"
    assert torch.equal(lens(ids), truth(ids).plain)


# --- a static key/value cache, with which transformers compiles on its own -----------------------


def static(backend: Any) -> dict[str, Any]:
    """Options with which `generate` compiles its passes, here on a CPU too."""

    def compile(graph: Any, inputs: Any, **_: Any) -> Any:
        return backend(graph, inputs)  # transformers copies its options, but no functions

    config = CompileConfig(backend=compile, fullgraph=False, mode=None)
    config._compile_all_devices = True
    return {**QUIET, "cache_implementation": "static", "compile_config": config}


@pytest.mark.parametrize("ran", [False, True], ids=["new", "compiled already"])
def test_generation_with_a_static_cache(ran: bool) -> None:
    ids, backend, hf = tokens(), Backend(), gpt2()
    lens, options, seen = lensbridge.load(hf), static(backend), []
    wanted = truth(ids)

    def edit(value: Tensor, hook: Any) -> Tensor:
        seen.append((hook.step, hook.positions.tolist()[0]))
        return value * 2

    with torch.no_grad():
        plain = gpt2().generate(ids, **QUIET)
        if ran:
            assert torch.equal(lens.generate(ids, **options, verbose=False), plain)
            assert backend.graphs
        before = backend.state
        with lens.hooks([(POINT, edit)]):
            found = lens.generate(ids, **options, verbose=False)
            assert seen == [(0, [*range(7)]), (1, [7]), (2, [8])]
            assert torch.equal(found, wanted.generated)
            assert torch.equal(hf.generate(ids, **options), wanted.generated)
        assert not torch.equal(found, plain)
        assert backend.state == before
    assert hf.generation_config.disable_compile is not True


def test_generation_does_not_compile_where_the_stance_would_let_it() -> None:
    ids, backend, lens = tokens(), Backend(), lensbridge.load(gpt2())
    with torch.no_grad(), lens.hooks([(POINT, double)]):
        torch.compiler.set_stance("default")
        found = lens.generate(ids, **static(backend), verbose=False)
    assert torch.equal(found, truth(ids).generated)
    assert backend.graphs == 0


# --- the compiler that PyTorch ships -------------------------------------------------------------


@pytest.mark.inductor
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own modules
@pytest.mark.parametrize("way", WAYS)
def test_under_inductor(way: str) -> None:
    ids, hf = tokens(), gpt2()
    wanted = truth(ids)
    native = WAYS[way](hf, "inductor")
    with torch.no_grad():
        fast = native(ids).logits
        torch.testing.assert_close(fast, wanted.plain)
        graphs = counters["stats"]["unique_graphs"]
        lens = lensbridge.load(native)
        with lens.hooks([(POINT, double)]):
            assert torch.equal(lens(ids), wanted.edited)
            assert torch.equal(native(ids).logits, wanted.edited)
        assert torch.equal(native(ids).logits, fast)
    assert graphs
    assert counters["stats"]["unique_graphs"] == graphs
