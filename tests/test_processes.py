"""Hooks and other processes and threads.

The oracle is the bare model: a forked process has nothing but that, a pickle gives the same bits.
"""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from tiny_models import Shape, build, tokens
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import lensbridge
from lensbridge import plugins
from lensbridge.errors import HookError, LensbridgeError
from lensbridge.hooks import standing
from lensbridge.hookspecs import hookimpl
from lensbridge.native.compiled import EagerWhile
from lensbridge.sites.kernel.switch import visible_kernel

pytestmark = pytest.mark.usefixtures("one_thread")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
IDS = tokens()


def double(value: Tensor, hook: Any) -> Tensor:
    return value * 2


class Halved:
    """A sparse autoencoder that halves what it is given."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, features: Tensor) -> Tensor:
        return features / 2


EDITS = [("blocks.0.hook_mlp_out", double)]
SAE: Any = {"blocks.1.hook_resid_pre": Halved()}


def forked(function: Callable[[], Any]) -> Any:
    """What a function gives in a process that is forked off here."""
    there = multiprocessing.get_context("fork")
    receiver, sender = there.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(1)
        try:
            sender.send(pickle.dumps(function()))
        except BaseException as error:
            sender.send(pickle.dumps(error))
            raise

    process = there.Process(target=run)
    process.start()
    assert receiver.poll(60)
    found = pickle.loads(receiver.recv())
    process.join()
    if isinstance(found, BaseException):
        raise found
    return found


def hooks_on(model: Any) -> int:
    """How many PyTorch hooks a model has, in all the places where PyTorch notes them."""
    kinds = [name for name in vars(torch.nn.Module()) if "hooks" in name]
    return sum(len(getattr(one, kind) or ()) for one in model.modules() for kind in kinds)


# --- forked processes ----------------------------------------------------------------------------


class Logits(Dataset[Tensor]):
    """A data set that runs a model, as one that caches activations does."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        self.run = run

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.run(IDS[index : index + 1])


@forks
@pytest.mark.parametrize("how", ["hooks", "add_hook", "spliced", "add_sae"])
@pytest.mark.parametrize("runs", ["native", "lens"])
def test_a_worker_of_a_data_loader_has_no_hooks(how: str, runs: str) -> None:
    hf = build(Shape("gpt2"))
    lens = lensbridge.load(hf)
    with torch.no_grad():
        wanted = [hf(IDS[i : i + 1]).logits for i in range(2)]
    run: Any = lens if runs == "lens" else lambda ids: hf(ids).logits
    loader = DataLoader(Logits(run), batch_size=None, num_workers=1, multiprocessing_context="fork")
    if how in ("hooks", "spliced"):
        with lens.hooks(EDITS) if how == "hooks" else lens.spliced(SAE):
            found = list(loader)
            edited = run(IDS[:1])
    else:
        if how == "add_hook":
            lens.add_hook(*EDITS[0])
        else:
            lens.add_sae(SAE["blocks.1.hook_resid_pre"], hook_name="blocks.1.hook_resid_pre")
        found = list(loader)
        edited = run(IDS[:1])
        lens.reset_hooks()
        lens.reset_saes()
    assert all(map(torch.equal, found, wanted))
    assert not torch.equal(edited, wanted[0])  # here the hooks are on


@forks
def test_a_forked_process_has_nothing_of_ours_and_all_of_others() -> None:
    hf = build(Shape("gpt2"))
    lens, other = lensbridge.load(hf), lensbridge.load(hf)
    with torch.no_grad():
        plain, cache = lens.run_with_cache(IDS)
    foreign = hf.transformer.h[1].register_forward_hook(lambda m, a, out: None, always_call=True)
    bare, names = hooks_on(hf), len(lens.hook_names)

    def there() -> Any:
        state = hooks_on(hf), len(lens.engine.listening), len(lens.hook_names), lens.acts_to_saes
        with torch.no_grad():
            _, found = lens.run_with_cache(IDS)
            with lens.hooks(EDITS):
                edited = lens(IDS)
            again = torch.equal(other.run_with_cache(IDS)[0], plain)
        others = len(other.engine.listening), other.acts_to_saes, len(other.hook_names), again
        return state, found["z", 1], edited, hooks_on(hf), others

    with lens.hooks(EDITS):
        other.add_sae(SAE["blocks.1.hook_resid_pre"], hook_name="blocks.1.hook_resid_pre")
        handle = other.add_hook("blocks.1.hook_resid_post", double)
        assert hooks_on(hf) > bare
        lens(IDS)
        state, z, edited, after, others = forked(there)
        handle.remove()
        other.reset_saes()
    with torch.no_grad():
        assert torch.equal(edited, lens.run_with_hooks(IDS, fwd_hooks=EDITS))
        assert not torch.equal(edited, plain)
    assert state == (bare, 0, names, {})
    assert after == bare
    assert others == (0, {}, names, True)
    assert torch.equal(z, cache["z", 1])
    foreign.remove()


@forks
def test_a_fork_inside_a_hook_inside_a_run() -> None:
    """The child is in the middle of its parent's run: shadowed layers, scopes, another kernel."""
    hf = build(Shape("gpt2", kernel="eager"))
    lens, found = lensbridge.load(hf), []
    with torch.no_grad():
        residual = lens(IDS, stop_at_layer=1)
        plain = hf(IDS).logits

    def there() -> Any:
        with torch.no_grad():
            shadowed = [layer for layer in hf.transformer.h if "forward" in vars(layer)]
            return hf(IDS).logits, lens(IDS), len(shadowed), len(standing._users)

    def fork(value: Tensor, hook: Any) -> None:
        found.append(forked(there))

    with torch.no_grad():
        again = lens.run_with_hooks(
            residual, fwd_hooks=[("blocks.1.hook_mlp_out", fork)], start_at_layer=1
        )
    native, own, shadowed, users = found[0]
    assert torch.equal(native, plain)
    assert torch.equal(own, plain)
    assert (shadowed, users) == (0, 0)
    assert torch.equal(again, plain)


@forks
@pytest.mark.filterwarnings("ignore:attention runs through sdpa:UserWarning")
def test_a_forked_process_has_the_kernel_that_was_chosen() -> None:
    hf = build(Shape("gpt2", kernel="eager"))
    with visible_kernel(hf):
        assert hf.config._attn_implementation == "sdpa"
        assert forked(lambda: hf.config._attn_implementation) == "eager"
        assert hf.config._attn_implementation == "sdpa"
    assert forked(lambda: hf.config._attn_implementation) == "eager"


@forks
def test_a_child_that_goes_on_in_the_block_of_its_parent() -> None:
    """`os.fork` inside a block: the child leaves the block as well."""
    hf = build(Shape("gpt2"))
    lens = lensbridge.load(hf)
    with torch.no_grad():
        plain = hf(IDS).logits
    receiver, sender = os.pipe()
    child = 0
    try:
        with lens.hooks([(name, lambda value, hook: None) for name, _ in EDITS]):
            lens(IDS)
            child = os.fork()
            with torch.no_grad():
                inside = torch.equal(hf(IDS).logits, plain)
        said = f"{inside} {hooks_on(hf)} {EagerWhile._users} {len(standing._users)}"
        if child == 0:
            os.write(sender, said.encode())
    finally:
        if child == 0:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(receiver, 99) == b"True 0 0 0"


@forks
def test_locks_that_a_thread_held_are_free_in_a_forked_process() -> None:
    lens = lensbridge.load(build(Shape("gpt2")))
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with standing._lock, EagerWhile._lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        found = forked(lambda: lens.run_with_hooks(lens(IDS, stop_at_layer=1), start_at_layer=1))
    finally:
        done.set()
        thread.join()
    assert torch.equal(found, lens(IDS))


# --- pickles -------------------------------------------------------------------------------------


def own_description() -> lensbridge.LensModel:
    """A model with a description that no plugin of another process has."""
    lens = lensbridge.load(build(Shape("llama")))
    return lensbridge.load(lens.hf_model, architecture=replace(lens.architecture, name="mine"))


MODELS: dict[str, Callable[[], lensbridge.LensModel]] = {
    "demo": lambda: lensbridge.load("demo"),
    "object": lambda: lensbridge.load(build(Shape("llama"))),
    "own description": own_description,
}
"""Models, each of another origin."""
PICKLERS: dict[str, Callable[[Any], bytes]] = {
    "pickle": pickle.dumps,
    "cloudpickle": cloudpickle.dumps,
}


@pytest.mark.parametrize("dump", PICKLERS.values(), ids=PICKLERS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_comes_back_from_a_pickle(
    make: Callable[[], lensbridge.LensModel], dump: Callable[[Any], bytes]
) -> None:
    model = make()
    back = pickle.loads(dump(model))
    assert back.hf_model is not model.hf_model
    assert repr(back) == repr(model)
    assert back.architecture == model.architecture
    assert back.processed_by == model.processed_by == ()
    with torch.no_grad():
        bare = model.hf_model(IDS).logits
        logits, cache = back.run_with_cache(IDS)
        _, wanted = model.run_with_cache(IDS)
    assert torch.equal(logits, bare)
    assert all(torch.equal(cache[name], wanted[name]) for name in wanted)
    if model.tokenizer is not None:
        assert torch.equal(back.to_tokens("A test."), model.to_tokens("A test."))


@pytest.fixture
def registry() -> Iterator[Any]:
    """The registry of this process, made anew before and after."""
    plugins.registry.cache_clear()
    yield plugins.registry
    plugins.registry.cache_clear()


class Brings:
    """A plugin with one description."""

    def __init__(self, architecture: lensbridge.Architecture) -> None:
        self.architecture = architecture

    @hookimpl
    def lensbridge_architectures(self) -> list[lensbridge.Architecture]:
        """The description."""
        return [self.architecture]


def test_a_description_that_only_the_plugins_of_one_process_have(registry: Any) -> None:
    known = lensbridge.load(build(Shape("llama")))
    mine = replace(known.architecture, name="mine", overrides=known.architecture.name)
    lensbridge.register(Brings(mine), "my-plugin")
    model = lensbridge.load(build(Shape("llama")))
    kept = pickle.dumps(model), pickle.dumps(known)
    assert pickle.loads(kept[0])._description == (None, model._description[1])
    registry.cache_clear()  # as in a process without the plugin
    back = pickle.loads(kept[0])
    assert back.architecture == mine
    assert back.native.plugin == "my-plugin"
    assert pickle.loads(kept[1]).architecture == known.architecture
    assert torch.equal(back(IDS), model.hf_model(IDS).logits)


def test_processed_weights_are_known_to_be_so_in_a_copy() -> None:
    model = lensbridge.load("demo")
    model.process_weights_()
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert other.processed_by == model.processed_by != ()
        assert torch.equal(other.W_U, model.W_U)


def test_a_model_with_hooks_is_not_pickled() -> None:
    lens = lensbridge.load(build(Shape("gpt2")))
    with lens.hooks(EDITS):
        lens(IDS)
        with pytest.raises(HookError, match=r"edit at blocks\.0\.hook_mlp_out"):
            pickle.dumps(lens)
    lens.add_sae(SAE["blocks.1.hook_resid_pre"], hook_name="blocks.1.hook_resid_pre")
    with pytest.raises(HookError, match=r"splice at blocks\.1\.hook_resid_pre.*reset_saes"):
        cloudpickle.dumps(lens)
    lens.reset_saes()
    assert torch.equal(pickle.loads(pickle.dumps(lens))(IDS), lens(IDS))


def test_copies_of_a_model_with_hooks_have_none() -> None:
    lens = lensbridge.load(build(Shape("gpt2")))
    plain = lens(IDS)
    with lens.hooks(EDITS):
        lens(IDS)
        assert torch.equal(copy.deepcopy(lens)(IDS), plain)
        shallow = copy.copy(lens)
    assert shallow.hf_model is lens.hf_model
    assert torch.equal(shallow(IDS), plain)


def test_a_forward_that_was_compiled_would_run_the_layers_of_the_original() -> None:
    hf = build(Shape("gpt2"))
    layer = hf.transformer.h[0]
    layer.forward = torch.compile(layer.forward, backend="eager")
    lens = lensbridge.load(hf)
    for dump in (*PICKLERS.values(), copy.deepcopy):
        with pytest.raises(LensbridgeError, match="compiled function"):
            dump(lens)
    del layer.forward
    layer.compile(backend="eager")
    assert torch.equal(pickle.loads(pickle.dumps(lens))(IDS), build(Shape("gpt2"))(IDS).logits)


THERE = """
import pickle, sys, torch
torch.set_num_threads(1)
model, ids, wanted = pickle.load(open(sys.argv[1], "rb"))
with torch.no_grad():
    logits, cache = model.run_with_cache(ids)
assert torch.equal(logits, wanted["logits"]), "logits"
assert torch.equal(cache["z", 1], wanted["z"]), "z"
assert model.architecture.name == wanted["name"], model.architecture.name
print("equal")
"""


def test_a_process_that_shares_nothing_gets_the_same_bits(tmp_path: Path) -> None:
    """Spawned workers and Ray's are such: a description that they do not know goes along."""
    model = own_description()
    with torch.no_grad():
        logits, cache = model.run_with_cache(IDS)
    wanted = {"logits": logits, "z": cache["z", 1], "name": "mine"}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps((model, IDS, wanted)))
    (tmp_path / "there.py").write_text(THERE)
    command = [sys.executable, str(tmp_path / "there.py"), str(tmp_path / "model.pkl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "equal\n", done.stderr[-2000:]


# --- what was kept -------------------------------------------------------------------------------


def test_a_hook_that_something_kept_does_nothing_after_it_was_taken_off() -> None:
    """Compiled code may keep what it was compiled with."""
    hf, calls = build(Shape("gpt2")), []
    lens = lensbridge.load(hf)
    handle = lens.add_hook("blocks.0.hook_mlp_out", lambda value, hook: calls.append(hook.name))
    module = hf.transformer.h[0].mlp
    (kept,) = module._forward_hooks.values()
    kept(module, (), {}, torch.ones(1, 1, 24))
    assert len(calls) == 1
    handle.remove()
    kept(module, (), {}, torch.ones(1, 1, 24))
    assert len(calls) == 1


# --- threads -------------------------------------------------------------------------------------


def test_threads_of_a_pool_run_with_the_hooks_that_are_carried() -> None:
    lens = lensbridge.load(build(Shape("gpt2")))
    rows = [IDS[:1], IDS[1:], IDS]
    with torch.no_grad():
        plain = [lens(ids) for ids in rows]
    with lens.hooks(EDITS), ThreadPoolExecutor(2) as pool:
        edited = [lens(ids) for ids in rows]
        carried = list(pool.map(lensbridge.carry_hooks(lens), rows))
        cached = pool.submit(lensbridge.carry_hooks(lens.run_with_cache), IDS, "mlp_out").result()
        without = list(pool.map(lens, rows))
    assert all(map(torch.equal, carried, edited))
    assert all(map(torch.equal, without, plain))
    assert not torch.equal(edited[0], plain[0])
    assert torch.equal(cached[0], edited[2])


def test_carried_hooks_are_not_lost_in_silence() -> None:
    lens = lensbridge.load(build(Shape("gpt2")))
    with lens.hooks(EDITS):
        lens(IDS)
        carried = lensbridge.carry_hooks(lens)
    with pytest.raises(HookError, match="after the `with` block had ended"):
        carried(IDS)
    assert torch.equal(lensbridge.carry_hooks(lens)(IDS), lens(IDS))
    with lens.hooks([]):
        assert torch.equal(lensbridge.carry_hooks(lens)(IDS), lens(IDS))
