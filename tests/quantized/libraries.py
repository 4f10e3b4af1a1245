"""Each quantization library as a function that quantizes one layer, and its own way back.

The way back is what the library itself offers, called here without lensbridge.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bitsandbytes
import torch
from compressed_tensors.compressors import compress_module, decompress_module
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
    fake_quantize,
)
from gptqmodel.nn_modules.qlinear.torch import TorchQuantLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchQuantLinear
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from optimum import quanto
from torch import Tensor, nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)


@dataclass(frozen=True)
class Library:
    """One way to quantize.

    Args:
        quantize: gives the quantized layer for an nn.Linear.
        dequantize: gives its weight, `[out, in]`, by the library's own means.
        exact: whether the layer computes a product with that weight: activations are not quantized.
        runs: whether the layer runs alone.
        says: what the description of the weight says of it.
    """

    quantize: Callable[[nn.Linear], nn.Module]
    dequantize: Callable[[Any], Tensor]
    says: str
    exact: bool = True
    runs: bool = True


# --- bitsandbytes ---------------------------------------------------------------------------------


def four_bits(kind: str) -> Callable[[nn.Linear], nn.Module]:
    def quantize(linear: nn.Linear) -> nn.Module:
        layer = bitsandbytes.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=torch.float32,
            quant_type=kind,
        )
        layer.load_state_dict(linear.state_dict())
        return layer.to("cpu")

    return quantize


def four_bits_after_a_run(linear: nn.Linear) -> nn.Module:
    """Some CPUs pack the codes anew at the first run in evaluation, and round the scales."""
    layer = four_bits("nf4")(linear).eval()
    layer.whole = from_four(layer)
    layer(torch.ones(1, linear.in_features))
    return layer


def after_a_run(layer: Any) -> Tensor:
    """Of codes that were packed anew: with the scales in bfloat16, as the layer has them now."""
    if not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        return layer.whole
    scales = layer.weight.quant_state.absmax.T.float()  # row, block
    blocks = layer.whole.unflatten(-1, (scales.shape[1], -1))
    before = blocks.abs().amax(-1)  # the largest number of a block is its scale
    return (blocks / before.unsqueeze(-1) * scales.unsqueeze(-1)).flatten(-2)


def eight_bits(linear: nn.Linear) -> nn.Module:
    layer = bitsandbytes.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def eight_bits_after_a_run(linear: nn.Linear) -> nn.Module:
    """The codes move to another place at the first run."""
    layer = eight_bits(linear)
    layer(torch.ones(1, linear.in_features))
    return layer


def from_four(layer: Any) -> Tensor:
    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def from_eight(layer: Any) -> Tensor:
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, scales)


# --- torchao, quanto, hqq -------------------------------------------------------------------------


def torchao(config: Any) -> Callable[[nn.Linear], nn.Module]:
    def quantize(linear: nn.Linear) -> nn.Module:
        holder = nn.Sequential(linear)
        quantize_(holder, config)
        return holder[0]

    return quantize


def by_quanto(weights: Any, freeze: bool) -> Callable[[nn.Linear], nn.Module]:
    def quantize(linear: nn.Linear) -> nn.Module:
        holder = nn.Sequential(linear)
        quanto.quantize(holder, weights=weights)
        if freeze:
            quanto.freeze(holder)
        return holder[0]

    return quantize


def by_hqq(linear: nn.Linear) -> nn.Module:
    config = BaseQuantizeConfig(nbits=4, group_size=32)
    return HQQLinear(linear, config, compute_dtype=torch.float32, device="cpu")


# --- compressed-tensors ---------------------------------------------------------------------------


def compressed(scheme: dict[str, Any], compress: bool) -> Callable[[nn.Linear], nn.Module]:
    """Fake quantization at each run, or codes."""

    def quantize(linear: nn.Linear) -> nn.Module:
        holder = nn.Sequential(linear)
        args = QuantizationArgs(**scheme)
        group = QuantizationScheme(targets=["Linear"], weights=args)
        config = QuantizationConfig(config_groups={"all": group}, quantization_status="frozen")
        apply_quantization_config(holder, config)
        layer, weight = holder[0], linear.weight.detach()
        layer.weight_scale.data = _scales(weight, layer.weight_scale.shape, args)
        if compress:
            compress_module(layer)
        return layer

    return quantize


def _scales(weight: Tensor, shape: torch.Size, args: Any) -> Tensor:
    most = (
        2 ** (args.num_bits - 1) - 1
        if str(args.type).endswith("INT") or args.type == "int"
        else 448
    )
    groups = weight.unflatten(-1, (shape[-1], -1)) if len(shape) == 2 else weight[None, None]
    return (groups.abs().amax(-1) / most).reshape(shape)


def from_fake(layer: Any) -> Tensor:
    return fake_quantize(
        layer.weight.detach(),
        layer.weight_scale,
        getattr(layer, "weight_zero_point", None),
        layer.quantization_scheme.weights,
    )


def from_compressed(layer: Any) -> Tensor:
    whole = copy.deepcopy(layer)
    decompress_module(whole)
    return whole.weight


# --- GPTQ and AWQ ---------------------------------------------------------------------------------


def grid(linear: nn.Linear, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Scales and zeros of groups, `[out, group]`; the group of each input."""
    groups = linear.weight.detach().unflatten(-1, (-1, size))
    low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
    scales = ((high - low) / 15).half().float()
    return scales, (-low / scales).round(), torch.arange(linear.in_features) // size


def by_gptq(linear: nn.Linear) -> nn.Module:
    layer = TorchQuantLinear(
        bits=4,
        group_size=32,
        sym=False,
        desc_act=False,
        in_features=linear.in_features,
        out_features=linear.out_features,
        bias=linear.bias is not None,
    )
    layer.pack_original(linear, *grid(linear))
    layer.post_init()
    return layer.eval()


def by_awq(linear: nn.Linear) -> nn.Module:
    from gptqmodel.nn_modules.qlinear.gemm_awq import AwqGEMMQuantLinear

    options = {
        "bits": 4,
        "group_size": 32,
        "sym": False,
        "desc_act": False,
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
    }
    layer = AwqTorchQuantLinear(**options, register_buffers=True)
    scales, zeros, _ = grid(linear)
    AwqGEMMQuantLinear.pack(layer, linear, scales, zeros)
    layer.post_init()
    return layer.eval()


def from_awq(layer: Any) -> Tensor:
    return dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, 32).mT


INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}

LIBRARIES = {
    "bitsandbytes nf4": Library(four_bits("nf4"), from_four, "bitsandbytes"),
    "bitsandbytes fp4": Library(four_bits("fp4"), from_four, "bitsandbytes"),
    "bitsandbytes nf4, run": Library(
        four_bits_after_a_run, after_a_run, "bitsandbytes", exact=False
    ),
    "bitsandbytes int8": Library(eight_bits, from_eight, "bitsandbytes", exact=False),
    "bitsandbytes int8, run": Library(
        eight_bits_after_a_run, from_eight, "bitsandbytes", exact=False
    ),
    "torchao int8": Library(
        torchao(Int8WeightOnlyConfig()), lambda layer: layer.weight.dequantize(), "torchao"
    ),
    "torchao int8, activations too": Library(
        torchao(Int8DynamicActivationInt8WeightConfig()),
        lambda layer: layer.weight.dequantize(),
        "torchao",
        exact=False,
    ),
    "quanto int8": Library(
        by_quanto(quanto.qint8, freeze=True), lambda layer: layer.weight.dequantize(), "quanto"
    ),
    "quanto int4": Library(
        by_quanto(quanto.qint4, freeze=True), lambda layer: layer.weight.dequantize(), "quanto"
    ),
    "quanto int8, not frozen": Library(
        by_quanto(quanto.qint8, freeze=False), lambda layer: layer.qweight.dequantize(), "quanto"
    ),
    "hqq": Library(by_hqq, lambda layer: layer.dequantize(), "hqq"),
    "compressed-tensors int8, fake": Library(
        compressed(INT8, compress=False), from_fake, "compressed-tensors"
    ),
    "compressed-tensors int4, fake": Library(
        compressed(INT4, compress=False), from_fake, "compressed-tensors"
    ),
    **{
        f"compressed-tensors {name}": Library(
            compressed(scheme, compress=True),
            from_compressed,
            "compressed-tensors",
            exact=False,
            runs=False,
        )
        for name, scheme in {"int8": INT8, "int4": INT4, "fp8": FP8}.items()
    },
    "GPTQ": Library(by_gptq, lambda layer: layer.dequantize_weight().mT, "GPTQModel"),
    "AWQ": Library(by_awq, from_awq, "GPTQModel"),
}
"""A layer with compressed codes does not run alone: the model is unpacked at its first run."""
