"""Wrappers around a model: opened, so that everything is as it is on the model inside."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from peft import LoraConfig, get_peft_model
from plain_models import VOCABULARY, nano
from tiny_models import Shape, build, tokens
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import lensbridge
from lensbridge.errors import LoadError
from lensbridge.testing import conformance

pytestmark = pytest.mark.usefixtures("one_thread", "alone")


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    torch.compiler.reset()


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


AROUND: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": compiled,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "compile in DistributedDataParallel": lambda m: DistributedDataParallel(compiled(m)),
    "DataParallel in compile": lambda m: compiled(nn.DataParallel(m)),
}
"""Wrappers around the whole model."""


def each_layer(change: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def wrap(model: nn.Module) -> nn.Module:
        layers = model.transformer.h
        for i, layer in enumerate(layers):
            layers[i] = change(layer)
        return model

    return wrap


def in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def of_forward(module: nn.Module) -> nn.Module:
    module.forward = torch.compile(module.forward, backend="eager")
    return module


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.transformer.h:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


INSIDE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "layers compiled": each_layer(compiled),
    "layers compiled in place": each_layer(in_place),
    "compiled in place": in_place,
    "forward compiled": of_forward,
    "fully_shard": sharded,
}
"""Changes of the model itself."""


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return build(Shape("gpt2"))


def double(value: Tensor, hook: Any) -> Tensor:
    return value * 2


def hold_equal(wrapped: nn.Module, bare: nn.Module, ids: Tensor) -> None:
    """Every activation, edit, weight and generated token is that of the bare model."""
    model, wanted = lensbridge.load(wrapped), lensbridge.load(bare)
    assert model.hook_names == wanted.hook_names
    with torch.no_grad():
        logits, cache = model.run_with_cache(ids, names_filter=model.hook_names)
        expected, others = wanted.run_with_cache(ids, names_filter=model.hook_names)
        assert torch.equal(logits, expected)
        for name in others:
            assert torch.equal(cache[name], others[name]), name
        edits = [("blocks.0.hook_attn_out", double), ("blocks.1.hook_mlp_out", double)]
        edited = model.run_with_hooks(ids, fwd_hooks=edits)
        assert torch.equal(edited, wanted.run_with_hooks(ids, fwd_hooks=edits))
        assert not torch.equal(edited, logits)
        for name, function in edits:
            model.add_hook(name, function)
        assert torch.equal(model(ids), edited)
        assert torch.equal(model.hf_model(ids).logits, edited)
        model.reset_hooks(including_permanent=True)
        assert torch.equal(model(ids), expected)
        middle = model(ids, stop_at_layer=1)
        assert torch.equal(model(middle, start_at_layer=1), wanted(middle, start_at_layer=1))
    for name in wanted.weight_names:
        assert torch.equal(model.weight(name), wanted.weight(name)), name
    options = {"max_new_tokens": 3, "do_sample": False, "verbose": False}
    with wanted.hooks(fwd_hooks=edits):
        generated = wanted.generate(ids, **options)
    with model.hooks(fwd_hooks=edits):
        assert torch.equal(model.generate(ids, **options), generated)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in plain(model.hf_model))


def plain(model: nn.Module) -> Iterator[nn.Module]:
    """The modules to which no wrapper gives hooks of its own."""
    return (one for one in model.modules() if not type(one).__name__.startswith("FSDP"))


@pytest.mark.parametrize("wrap", AROUND.values(), ids=AROUND)
def test_a_wrapper_is_opened(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = gpt2()
    wrapped = wrap(model)
    assert lensbridge.load(wrapped).hf_model is model
    assert lensbridge.LensModel(wrapped, lambda: None).hf_model is model
    hold_equal(wrapped, gpt2(), tokens())


@pytest.mark.parametrize("wrap", INSIDE.values(), ids=INSIDE)
@pytest.mark.parametrize("ran", [False, True], ids=["new", "compiled already"])
def test_hooks_act_in_compiled_and_sharded_modules(
    wrap: Callable[[nn.Module], nn.Module], ran: bool
) -> None:
    """PyTorch's compiler does not look at hooks that are added after it has compiled."""
    wrapped = wrap(gpt2())
    if ran:
        with torch.no_grad():
            wrapped(tokens())
    hold_equal(wrapped, gpt2(), tokens())


def test_layers_compiled_after_loading() -> None:
    model = gpt2()
    lens = lensbridge.load(model)
    with torch.no_grad():
        wanted = lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.hook_mlp_out", double)])
        each_layer(in_place)(model)(tokens())
        found = lens.run_with_hooks(tokens(), fwd_hooks=[("blocks.1.hook_mlp_out", double)])
    assert torch.equal(found, wanted)


def adapted(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    lora = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "init_lora_weights": False}
    return get_peft_model(model, LoraConfig(r=2, **lora)).eval()


@pytest.mark.parametrize(
    "wrap", [lambda m: compiled(adapted(m)), lambda m: adapted(compiled(m))], ids=["around", "in"]
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
def test_adapters_and_a_wrapper(wrap: Callable[[nn.Module], nn.Module]) -> None:
    hold_equal(wrap(gpt2()), adapted(gpt2()), tokens())


def test_an_averaged_model_is_opened() -> None:
    hold_equal(AveragedModel(gpt2()).eval(), gpt2(), tokens())


@pytest.mark.parametrize("wrap", AROUND.values(), ids=AROUND)
def test_a_plain_module_in_a_wrapper(wrap: Callable[[nn.Module], nn.Module]) -> None:
    bare = nano()
    ids = tokens() % VOCABULARY
    model = lensbridge.load(wrap(bare))
    assert model.hf_model is bare
    with torch.no_grad():
        assert torch.equal(model(ids), bare(ids)[0])


def test_the_kit_checks_the_model_in_a_wrapper() -> None:
    report = conformance(compiled(gpt2()))
    assert report.passed, str(report)
    assert {row.model for row in report.rows} == {"GPT2LMHeadModel"}


def flat() -> nn.Module:
    """An FSDP module as far as can be had without a GPU."""
    module = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(module)
    module._fsdp_wrapped_module = gpt2()
    return module


REFUSED = {
    "FSDP": (flat, "FSDP keeps the weights.*fully_shard"),
    "FSDP inside": (lambda: each_layer(lambda _: flat())(gpt2()), "FSDP keeps the weights"),
    "script": (lambda: torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), "TorchScript"),
    "graph": (lambda: torch.fx.symbolic_trace(nn.Linear(2, 2)), "torch.fx graph"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_wrapper_that_hides_its_modules_is_refused_in_a_sentence(
    make: Callable[[], nn.Module], said: str
) -> None:
    with pytest.raises(LoadError, match=said) as raised:
        lensbridge.load(make())
    assert len(str(raised.value).splitlines()) == 1
