"""How weights are held: each kind is found, read as the module uses it, and refuses writes.

The oracles are the bare module's forward on the rows of the identity matrix, and the dequantizer of
transformers.
"""

import copy
import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from described import described, tiny
from peft import LoraConfig, get_peft_model
from tiny_models import Shape, build, tokens
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import lensbridge
from lensbridge.errors import ProcessingError, WeightError
from lensbridge.native.holding import held, proof, read
from lensbridge.native.linear import Linear

N_IN, N_OUT = 28, 24  # of llama's q_proj: 4 heads of 6


def effective(module: nn.Module) -> Tensor:
    """`[in, out]`, from what the module computes."""
    with torch.no_grad():
        zero = module(torch.zeros(1, N_IN))
        return module(torch.eye(N_IN)) - zero


# --- modules that are not plain -------------------------------------------------------------------


class Tanh(nn.Linear):
    """Uses another weight than it stores."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.tanh(), self.bias)


class Scaled(nn.Linear):
    """Has a number beside its weight."""

    factor = 1.01

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.factor, self.bias)


class Clipped(nn.Linear):
    """Is a product for the weights that it has, and would not be for larger ones."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.clamp(-1.0, 1.0), self.bias)


class Masked(nn.Linear):
    """Has a mask beside its weight, which is ones so far."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("mask", torch.ones(self.weight.shape))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class LowRank(nn.Module):
    """LoRA as it is written by hand: a layer around another one."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.inner = nn.Linear(*args)
        self.in_features, self.out_features = self.inner.in_features, self.inner.out_features
        self.down, self.up = nn.Linear(N_IN, 2, bias=False), nn.Linear(2, N_OUT, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.up(self.down(x))


class Packed(nn.Module):
    """Codes of four bits in the format of GPTQ: eight to a word, along the inputs."""

    offset = 1

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = 32, N_OUT, None
        source = torch.Generator().manual_seed(2)
        self.codes = torch.randint(16, (32, N_OUT), generator=source)
        self.zeros = torch.randint(1, 8, (2, N_OUT), generator=source)
        self.register_buffer("scales", torch.rand(2, N_OUT, generator=source) / 16)
        self.register_buffer("qweight", words(self.codes.mT, 8).mT.contiguous())
        self.register_buffer("qzeros", words(self.zeros - self.offset, 8))

    @property
    def whole(self) -> Tensor:
        zeros, scales = (x.repeat_interleave(16, 0) for x in (self.zeros, self.scales))
        return (self.codes - zeros) * scales

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.whole


class PackedSecond(Packed):
    """GPTQ's second format stores the zeros as they are."""

    offset = 0


class PackedAWQ(Packed):
    """AWQ packs along the outputs, eight columns in an order of their own."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        for name, codes in (("qweight", self.codes), ("qzeros", self.zeros)):
            there = codes.unflatten(-1, (-1, 8))[..., order].flatten(-2)
            self.register_buffer(name, words(there, 8))


def words(codes: Tensor, per_word: int) -> Tensor:
    """Codes of four bits in words of 32, along the last axis."""
    shifts = 4 * torch.arange(per_word)
    packed = (codes.unflatten(-1, (-1, per_word)).long() << shifts).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def replaced_forward() -> nn.Module:
    linear = nn.Linear(N_IN, N_OUT)
    linear.forward = MethodType(lambda self, x: F.linear(x, self.weight.round(decimals=1)), linear)  # type: ignore[method-assign]
    return linear


def parametrized() -> nn.Module:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    return parametrize.register_parametrization(nn.Linear(N_IN, N_OUT), "weight", Half())


def parametrized_bias() -> nn.Module:
    class Half(nn.Module):
        def forward(self, bias: Tensor) -> Tensor:
            return bias / 2

    return parametrize.register_parametrization(nn.Linear(N_IN, N_OUT), "bias", Half())


ODD: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: Tanh(N_IN, N_OUT),
    "a factor": lambda: Scaled(N_IN, N_OUT),
    "a clip": lambda: Clipped(N_IN, N_OUT),
    "a mask": lambda: Masked(N_IN, N_OUT),
    "layers around it": lambda: LowRank(N_IN, N_OUT),
    "a replaced forward": replaced_forward,
    "parametrized": parametrized,
    "a parametrized bias": parametrized_bias,
    "pruned": lambda: prune.random_unstructured(nn.Linear(N_IN, N_OUT), "weight", amount=0.5),
    "a pruned bias": lambda: prune.random_unstructured(nn.Linear(N_IN, N_OUT), "bias", amount=0.5),
}


def with_query(module: nn.Module) -> tuple[Any, Any]:
    """A llama whose first query projection is a module, and the same behind the lens."""
    hf = build(Shape("llama"))
    hf.model.layers[0].self_attn.q_proj = module
    return hf, opened(hf)


def opened(hf: Any) -> Any:
    """A llama behind the lens, read as one whatever code is in it."""
    return lensbridge.load(hf, architecture=described("llama"))


@pytest.mark.parametrize("kind", ODD)
def test_what_a_module_does_not_use_as_it_is_is_opaque(kind: str) -> None:
    torch.manual_seed(0)
    module = ODD[kind]()
    _, model = with_query(module)
    before = copy.deepcopy(module.state_dict())
    row = model.describe_weights()["blocks.0.attn.W_Q"]
    assert (row.holding, row.writable, row.module) == ("opaque", False, type(module).__name__)
    assert model.weight_state("blocks.0.attn.W_Q") == "opaque"
    found = model.W_Q[0].detach()
    wanted = effective(module).unflatten(-1, (4, 6)).permute(1, 0, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        bias = module(torch.zeros(1, N_IN))[0].unflatten(-1, (4, 6))
    torch.testing.assert_close(model.b_Q[0].detach(), bias, rtol=1e-5, atol=1e-6)
    with torch.no_grad(), pytest.raises(WeightError, match=r"model\.hf_model"):
        model.W_Q[0].zero_()
    with pytest.raises(WeightError, match="is a copy"):
        model.W_Q[0] = 0.0
    with pytest.raises(ProcessingError, match=r"not used as it is|no parameter"):
        model.process_weights_(fold_ln=True)
    after = module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.weight_state("blocks.1.attn.W_Q") == "plain"


class Spelled(nn.Linear):
    """A product that is written in other words."""

    def forward(self, x: Tensor) -> Tensor:
        out = x @ self.weight.T
        return out if self.bias is None else out + self.bias


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("cls", [nn.Linear, Spelled])
def test_a_product_is_plain_in_every_dtype(cls: type[nn.Linear], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for bias in (True, False):
        module = cls(700, 90, bias=bias).to(dtype)
        linear = Linear(module, False, 700, 90)
        assert linear.state == "plain"
        assert linear.weight().data_ptr() == module.weight.data_ptr()
        scaled = Scaled(700, 90, bias=bias).to(dtype)
        assert Linear(scaled, False, 700, 90).state == "opaque"


def test_fake_quantization_is_found_where_rounding_is_coarse() -> None:
    """The step of eight bits is below what a sum over the row shows in bfloat16."""
    torch.manual_seed(0)

    class Fake(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            step = self.weight.abs().amax() / 127
            return F.linear(x, (self.weight / step).round() * step, self.bias)

    assert Linear(Fake(500, 300).bfloat16(), False, 500, 300).state == "opaque"


def test_weights_that_torch_makes_before_a_run_are_made_before_a_read() -> None:
    module = prune.random_unstructured(nn.Linear(N_IN, N_OUT), "weight", amount=0.5)
    linear = Linear(module, False, N_IN, N_OUT)
    with torch.no_grad():
        before = linear.weight().clone()
        module.weight_orig.mul_(3)
        torch.testing.assert_close(linear.weight(), 3 * before)
        torch.testing.assert_close(linear.weight(), effective(module), rtol=1e-5, atol=1e-6)


def test_a_compiled_forward_is_the_class_own() -> None:
    module = nn.Linear(N_IN, N_OUT)
    compiled: Any = torch.compile(module.forward, backend="eager")
    module.forward = compiled  # type: ignore[method-assign]
    assert Linear(module, False, N_IN, N_OUT).state == "plain"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_read_where_it_is(number: float) -> None:
    """By running the module, it would be in a whole row: zero times it is NaN."""
    torch.manual_seed(0)
    module, odd = nn.Linear(N_IN, N_OUT), Tanh(N_IN, N_OUT)
    with torch.no_grad():
        module.weight[1, 2] = odd.weight[1, 2] = number
    linear = Linear(module, False, N_IN, N_OUT)
    assert linear.state == "plain"
    assert linear.weight().data_ptr() == module.weight.data_ptr()
    assert Linear(odd, False, N_IN, N_OUT).state == "opaque"
    hf = build(Shape("gpt2"))
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.fill_(number)
    assert set(lensbridge.load(hf).describe_weights().counts) == {"plain"}


def test_a_bias_of_eight_bits_beside_a_float_weight() -> None:
    """PyTorch cannot tell whether its numbers are finite."""
    module = nn.Linear(N_IN, N_OUT)
    codes = module.bias.detach().to(torch.float8_e4m3fn)
    module.bias = nn.Parameter(codes, requires_grad=False)
    assert Linear(module, False, N_IN, N_OUT).state == "opaque"


# --- the run that shows it ------------------------------------------------------------------------


class Counting(nn.Linear):
    """Counts its runs on the class, so that it has nothing beside its weight."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.runs += 1
        return F.linear(x, self.weight, self.bias)


def test_a_module_is_run_once_until_something_changes() -> None:
    module = Counting(N_IN, N_OUT, bias=False)
    _, model = with_query(module)
    Counting.runs = 0
    assert model.weight_state("blocks.0.attn.W_Q") == "plain"
    runs = Counting.runs
    assert 0 < runs <= 2  # on the module, and on one with other values
    for _ in range(3):
        model.W_Q.full()
        model.describe_weights()
    with torch.no_grad():
        model.W_Q[0].mul_(2)  # a write to the parameter
    model.W_Q.full()
    assert Counting.runs == runs
    module.weight = nn.Parameter(torch.zeros(N_OUT, N_IN))
    model.W_Q.full()
    assert Counting.runs == 2 * runs
    module.forward = MethodType(Tanh.forward, module)  # type: ignore[method-assign]
    assert model.weight_state("blocks.0.attn.W_Q") == "opaque"


def test_loading_and_running_do_not_examine_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any) -> str:
        raise AssertionError("a module was examined")

    monkeypatch.setattr(proof, "hindrance", never)
    model = lensbridge.load(build(Shape("llama")))
    model(tokens())
    assert model.weight_names


def test_nobody_sees_the_run() -> None:
    hf = build(Shape("llama"))
    hf.train()
    hf.model.layers[1].mlp.eval()
    modes = [module.training for module in hf.modules()]
    seen: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_: seen.append("hook")) for module in hf.modules()
    ]
    model = lensbridge.load(hf)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model.add_hook("blocks.0.attn.hook_q", lambda x, hook: seen.append(hook.name))
    assert model.describe_weights().counts == {"plain": len(model.weight_names)}
    model.reset_hooks()
    assert torch.equal(torch.get_rng_state(), state)
    assert not seen
    assert modes == [module.training for module in hf.modules()]
    assert all(p.grad is None for p in hf.parameters())
    for handle in handles:
        handle.remove()


def test_autocast_and_inference_mode_do_not_change_what_is_found() -> None:
    for context in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        model = lensbridge.load(build(Shape("gpt2")))
        with context:
            assert set(model.describe_weights().counts) == {"plain"}
        _, model = with_query(Tanh(N_IN, N_OUT))
        with context:
            assert model.weight_state("blocks.0.attn.W_Q") == "opaque"
            assert model.W_Q[0].dtype == torch.float32


def test_what_was_found_goes_with_the_module(tmp_path: Path) -> None:
    from accelerate import disk_offload

    gc.collect()
    before = len(proof._found)
    hf = build(Shape("llama"))
    disk_offload(hf, tmp_path, execution_device=torch.device("cpu"))  # replaces every forward
    model = lensbridge.load(hf)
    model.describe_weights()
    assert len(proof._found) > before
    del model, hf
    gc.collect()
    assert len(proof._found) <= before


# --- float8 codes and packed codes ----------------------------------------------------------------


@pytest.mark.parametrize("block", [None, (4, 7), (5, 8)])
def test_float8_codes_are_read_with_the_scales_of_their_blocks(block: Any) -> None:
    from transformers.integrations.finegrained_fp8 import FP8Linear, _dequantize_fp8_weight

    torch.manual_seed(0)
    module = FP8Linear(N_IN, N_OUT, block_size=block, has_bias=True)
    with torch.no_grad():
        module.weight.copy_((torch.randn(N_OUT, N_IN) * 100).to(torch.float8_e4m3fn))
        module.weight_scale_inv.copy_(torch.rand(module.weight_scale_inv.shape) / 1000)
        module.bias.normal_()
    _, model = with_query(module)
    wanted = _dequantize_fp8_weight(module.weight, module.weight_scale_inv, block, torch.float32)
    assert model.weight_state("blocks.0.attn.W_Q") == "quantized"
    assert torch.equal(model.W_Q[0], wanted.mT.unflatten(-1, (4, 6)).permute(1, 0, 2))
    assert torch.equal(model.b_Q[0], module.bias.unflatten(-1, (4, 6)))
    for write in (lambda: model.W_Q[0].zero_(), lambda: model.b_Q[0].zero_()):
        with torch.no_grad(), pytest.raises(WeightError, match="quantized"):
            write()
    with pytest.raises(ProcessingError, match="quantized"):
        model.process_weights_(fold_ln=True)
    row = model.describe_weights()["blocks.0.attn.W_Q"]
    assert row.dtype == "float8_e4m3fn"
    assert row.bytes == module.weight.nbytes + module.weight_scale_inv.nbytes


def test_float8_experts_are_read_with_their_scales() -> None:
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

    holder: Any = nn.Module()
    codes = (torch.randn(3, 8, 12) * 50).to(torch.float8_e4m3fn)
    holder.register_parameter("down_proj", nn.Parameter(codes, False))
    holder.register_parameter("down_proj_scale_inv", nn.Parameter(torch.rand(3, 2, 3), False))
    holder.block_size = (4, 4)
    assert held(holder, "down_proj").holding == "quantized"
    wanted = _dequantize_fp8_weight(codes, holder.down_proj_scale_inv, (4, 4), torch.float32)
    assert torch.equal(read(holder, "down_proj"), wanted)


@pytest.mark.parametrize("cls", [Packed, PackedSecond, PackedAWQ])
def test_packed_codes_are_unpacked_as_the_module_does(cls: type[Packed]) -> None:
    module = cls()
    linear = Linear(module, False, 32, N_OUT)
    assert linear.state == "quantized"
    torch.testing.assert_close(linear.weight(), module.whole)
    assert not linear.bias().any()


def test_the_librarys_own_unpacking_comes_first() -> None:
    module: Any = Packed()
    linear, asked = Linear(module, False, 32, N_OUT), []
    module.dequantize_weight = lambda: asked.append(True) or module.whole
    assert torch.equal(linear.weight(), module.whole)
    assert asked
    module.dequantize_weight = lambda: module.whole * 2  # not what the module computes with
    torch.testing.assert_close(linear.weight(), module.whole)


def test_codes_that_no_format_explains_are_an_error() -> None:
    module = Packed()
    module.scales *= 3  # the module now computes with other numbers than it stores
    module.forward = MethodType(lambda self, x: x @ self.codes.float(), module)  # type: ignore[method-assign]
    with pytest.raises(WeightError, match="GPTQ"):
        Linear(module, False, 32, N_OUT).weight()


# --- tables, norms, experts -----------------------------------------------------------------------


class Doubled(nn.Embedding):
    """A table that multiplies its rows, as some do."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 2


class Rotated(nn.Embedding):
    """A table that gives other rows."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).roll(1, -1)


def test_tables() -> None:
    hf = build(Shape("llama"))
    kept = hf.model.embed_tokens.weight
    for cls, state in ((Doubled, "plain"), (Rotated, "opaque")):
        hf.model.embed_tokens = cls(*kept.shape, _weight=kept)
        model = opened(hf)
        assert model.weight_state("embed.W_E") == state
    with torch.no_grad():
        assert torch.equal(model.W_E, kept.roll(1, -1))
        with pytest.raises(WeightError, match="Rotated does not look up its rows"):
            model.W_E[3] = 0.0
    hf.model.embed_tokens = nn.Embedding(*kept.shape, max_norm=0.5, _weight=kept.detach().clone())
    model, before = opened(hf), hf.model.embed_tokens.weight.detach().clone()
    assert model.weight_state("embed.W_E") == "opaque"
    assert torch.equal(model.W_E, before)
    assert torch.equal(hf.model.embed_tokens.weight, before)  # a look-up would have rescaled rows


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads a name that transformers retires
def test_an_adapted_table_is_read_with_its_adapter() -> None:
    config = LoraConfig(target_modules=["embed_tokens"], r=2)
    wrapped = get_peft_model(build(Shape("llama")), config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_embedding" in name:
                parameter.normal_()
    model = lensbridge.load(wrapped)
    assert model.weight_state("embed.W_E") == "adapted"
    table = wrapped.base_model.model.model.embed_tokens
    with torch.no_grad():
        assert torch.equal(model.W_E, table(torch.arange(61)))
        assert not torch.allclose(model.W_E, table.base_layer.weight)
        with pytest.raises(WeightError, match="LoRA"):
            model.W_E.zero_()


def test_a_norm_that_computes_something_else_takes_no_writes() -> None:
    hf = build(Shape("llama"))
    norm = hf.model.layers[0].input_layernorm
    plain_forward = norm.forward
    norm.forward = lambda x: plain_forward(x) * 2
    model = opened(hf)
    assert model.weight_state("blocks.0.ln1.w") == "opaque"
    assert model.weight_state("blocks.0.ln2.w") == "plain"
    with torch.no_grad(), pytest.raises(WeightError, match=r"forward .* was replaced"):
        model.blocks[0].ln1.w.zero_()


def test_experts_take_writes_only_where_they_use_their_weights() -> None:
    model = tiny("mixtral", torch.float32)
    assert model.weight_state("blocks.0.mlp.W_in") == "plain"
    experts = model.blocks[0].part.mlp.experts.module
    experts.act_fn = nn.Sequential(experts.act_fn, nn.Identity())
    model.blocks[0].mlp.W_out.detach()  # examined by the parameter: still the same module
    experts.down_proj = nn.Parameter(experts.down_proj.detach().clone())
    own = type(experts).forward
    experts.forward = MethodType(lambda self, *args: own(self, *args) * 2, experts)
    assert model.weight_state("blocks.0.mlp.W_out") == "opaque"
    with torch.no_grad(), pytest.raises(WeightError, match="was replaced"):
        model.blocks[0].mlp.W_out.zero_()


# --- offloaded ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_writes_to_offloaded_weights_raise(family: str, tmp_path: Path) -> None:
    from accelerate import disk_offload

    whole = lensbridge.load(build(Shape(family)))
    hf = build(Shape(family))
    disk_offload(hf, tmp_path, execution_device=torch.device("cpu"))
    model = lensbridge.load(hf)
    assert set(model.describe_weights().counts) == {"offloaded"}
    assert {row.device for row in model.describe_weights() if row.bytes} == {"offloaded"}
    for name in model.weight_names:
        assert torch.equal(model.weight(name), whole.weight(name)), name
        with torch.no_grad(), pytest.raises(WeightError, match="offloaded by accelerate"):
            model.weight(name).zero_()
    assert torch.equal(model(tokens()), whole(tokens()))


def test_an_offloaded_weight_is_offloaded_while_its_layer_runs(tmp_path: Path) -> None:
    from accelerate import disk_offload

    hf = build(Shape("llama"))
    disk_offload(hf, tmp_path, execution_device=torch.device("cpu"))
    model, states = lensbridge.load(hf), []
    attention = hf.model.layers[0].self_attn.q_proj
    with model.hf_model.model.layers[0].register_forward_pre_hook(lambda *_: None):
        attention._hf_hook.pre_forward(attention, torch.zeros(1, 1, N_IN))
        assert not attention.weight.is_meta  # accelerate has brought it
        states.append(model.weight_state("blocks.0.attn.W_Q"))
        with torch.no_grad(), pytest.raises(WeightError, match="offloaded"):
            model.W_Q[0].zero_()
        attention._hf_hook.post_forward(attention, torch.zeros(1))
    assert states == ["offloaded"]


def test_weights_without_values_say_so() -> None:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf = build(Shape("llama"))
    model = lensbridge.load(hf.to("meta"))
    row = model.describe_weights()["blocks.0.attn.W_Q"]
    assert (row.holding, row.readable) == ("offloaded", "not at all")
    with pytest.raises(WeightError, match="meta device"):
        _ = model.W_Q[0]


# --- the description ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_the_description_is_of_what_is_read(family: str) -> None:
    hf = build(Shape(family))
    model = lensbridge.load(hf)
    found = model.describe_weights()
    assert [row.name for row in found] == model.weight_names
    for row in found:
        weight = model.weight(row.name)
        assert row.shape == tuple(weight.shape), row.name
        assert row.writable == isinstance(
            weight if weight._base is None else weight._base, nn.Parameter
        )
        assert row.bytes in (0, weight.nbytes)
    table, head = hf.get_input_embeddings().weight, hf.get_output_embeddings().weight
    total = sum(row.bytes for row in found) - (table.nbytes if table is head else 0)
    assert total == sum(p.nbytes for p in hf.parameters())


def test_the_description_is_filtered_and_shown() -> None:
    _, model = with_query(Tanh(N_IN, N_OUT, bias=False))
    found = model.describe_weights()
    assert [row.name for row in found.where(holding="opaque")] == [
        "blocks.0.attn.W_Q",
        "blocks.0.attn.b_Q",
    ]
    assert {row.name for row in found.where("*W_Q", writable=True)} == {"blocks.1.attn.W_Q"}
    assert [row.name for row in model.describe_weights("blocks.1.ln1.*")] == [
        "blocks.1.ln1.w",
        "blocks.1.ln1.b",
    ]
    text, page = str(found), found._repr_html_()
    for part in ("blocks.{i}.attn.W_Q", "Tanh", "opaque", "Not written: blocks.0.attn.W_Q"):
        assert part in text
        assert part in page
    with pytest.raises(WeightError, match=r"Did you mean .*'blocks\.0\.attn\.W_Q'"):
        _ = found["blocks.0.attn.W_q"]
