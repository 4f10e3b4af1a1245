"""Weights that a quantization library stores as codes, and its own way back to floats."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from torch import Tensor, nn

from lensbridge.native.holding import packed, scaled
from lensbridge.native.holding.kinds import Held
from lensbridge.native.holding.offloaded import fetched

Dequantizer: TypeAlias = Callable[[Any, str], Tensor | None]
"""The float value of a module's weight, as the module would store it; None where it cannot tell."""


@dataclass(frozen=True)
class Library:
    """A library that quantizes, found by where the class of a module or of a tensor is defined.

    Args:
        name: what it is called.
        package: the package that defines the class.
        dequantize: its own dequantizer; None where the module has to be run.
        tensors_only: whether only its tensors are codes, and its modules hold plain floats too.
    """

    name: str
    package: str
    dequantize: Dequantizer | None = None
    tensors_only: bool = False


def found(module: nn.Module, name: str) -> Held | None:
    """How a weight is held if it is quantized, otherwise None."""
    library = _library(module, name)
    return None if library is None else _held(library)


def read(module: nn.Module, name: str) -> Tensor | None:
    """The float value by the library's own dequantizer; None where the module has to be run."""
    library = _library(module, name)
    if library is None or library.dequantize is None:
        return None
    with fetched(module):
        value = library.dequantize(module, name)
    return None if value is None else value.detach().clone()


@lru_cache(maxsize=64)
def _held(library: Library) -> Held:
    own = library.dequantize is not None
    return Held(
        "quantized",
        f"quantized: {library.name}",
        "Load the model without quantization to change its weights.",
        f"dequantized: {library.name}" if own else "by running the module",
    )


def _library(module: nn.Module, name: str) -> Library | None:
    tensor = module._parameters.get(name)
    of_tensor = None if tensor is None else _defined_in(type(tensor))
    if of_tensor is not None:
        return of_tensor
    if name == "weight" and "quantization_scheme" in module.__dict__:
        return _COMPRESSED
    if scaled.scale_of(module, name) is not None:
        return _SCALED
    of_module = _defined_in(type(module)) if name == "weight" else None  # type: ignore[arg-type]
    if of_module is not None and not of_module.tensors_only:
        return of_module
    return _PACKED if name == "weight" and packed.is_packed(module) else None


@lru_cache(maxsize=1024)
def _defined_in(cls: type) -> Library | None:
    for one in cls.__mro__:
        for library in _LIBRARIES:
            if f"{one.__module__}.".startswith(f"{library.package}."):
                return library
    return None


# --- dequantizers ---------------------------------------------------------------------------------


def _bitsandbytes(module: Any, name: str) -> Tensor | None:
    import bitsandbytes.functional as bnb

    weight = module._parameters[name]
    if weight.is_floating_point():  # codes are made in each run
        return None
    state = getattr(weight, "quant_state", None)
    if state is not None:
        codes, state = _unpacked_of_cpu(weight.data, state)
        return bnb.dequantize_4bit(codes, state)
    scales = getattr(weight, "SCB", None)  # which the first run moves into a state
    return bnb.int8_vectorwise_dequant(weight.data, module.state.SCB if scales is None else scales)


def _unpacked_of_cpu(codes: Tensor, state: Any) -> tuple[Tensor, Any]:
    """bitsandbytes packs the codes anew for some CPUs, when a layer first runs in evaluation."""
    if not getattr(state, "packing_format_for_cpu", False):
        return codes, state
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

    before = copy.copy(state)
    before.original_nested = False  # the scales of scales are gone
    before.absmax = state.absmax.T.reshape(-1).float()
    return _convert_weight_packed_for_cpu_inverse(codes, before)


def _of_tensor(module: Any, name: str) -> Tensor | None:
    """torchao: the tensor itself knows, or the one inside it, where activations are quantized."""
    fake = getattr(module, "weight_fake_quantizer", None)
    weight = module._parameters.get(name)
    if fake is not None:
        return fake(weight)
    weight = getattr(weight, "original_weight_tensor", weight)
    return weight.dequantize() if hasattr(weight, "dequantize") else None


def _quanto(module: Any, name: str) -> Tensor | None:
    weight = getattr(module, "qweight", None)  # quantized at each run until `freeze`
    if weight is None:
        weight = module._parameters.get(name)
    if weight is None:
        return None
    return weight if type(weight) is nn.Parameter else weight.dequantize()


def _hqq(module: Any, name: str) -> Tensor | None:
    return module.dequantize()


def _compressed_tensors(module: Any, name: str) -> Tensor | None:
    """Unpack compressed codes, or quantize a float weight as each run does."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationStatus, forward_quantize

    scheme, status = module.quantization_scheme, module.quantization_status
    if scheme.weights is None or not getattr(module, "quantization_enabled", True):
        return module._parameters[name]
    if status == QuantizationStatus.COMPRESSED and scheme.format is not None:
        compressor = BaseCompressor.get_value_from_registry(str(scheme.format.value))
        held = {key: one for key, one in module._parameters.items() if one is not None}
        return compressor.decompress(held, scheme)[name]
    weight = module._parameters[name].detach()
    if status >= QuantizationStatus.COMPRESSED:
        return weight
    return forward_quantize(module, weight, name, scheme.weights)


def _torch(module: Any, name: str) -> Tensor | None:
    """PyTorch's own quantized modules, whose weight is a method."""
    weight = module.weight()
    return weight.dequantize() if weight.is_quantized else weight.float()


_SCALED = Library("codes of 8 bits with scales", "", scaled.dequantized)
_PACKED = Library("packed codes, as of GPTQ or AWQ", "", packed.dequantized)
_COMPRESSED = Library("compressed-tensors", "compressed_tensors", _compressed_tensors)
_LIBRARIES = (
    Library("bitsandbytes", "bitsandbytes", _bitsandbytes, tensors_only=True),
    Library("torchao", "torchao", _of_tensor),
    Library("quanto", "optimum.quanto", _quanto),
    Library("hqq", "hqq", _hqq),
    _COMPRESSED,
    Library("PyTorch", "torch.ao.nn.quantized", _torch),
    Library("GPTQModel", "gptqmodel", packed.dequantized),
    Library("AutoAWQ", "awq", packed.dequantized),
    Library("AutoGPTQ", "auto_gptq", packed.dequantized),
    *(
        Library(name, package)
        for name, package in {
            "AQLM": "aqlm",
            "EETQ": "eetq",
            "VPTQ": "vptq",
            "SpQR": "spqr_quant",
            "HIGGS": "transformers.integrations.higgs",
            "BitNet": "transformers.integrations.bitnet",
            "FBGEMM": "transformers.integrations.fbgemm_fp8",
            "MXFP4": "transformers.integrations.mxfp4",
            "FP-Quant": "transformers.integrations.fp_quant",
            "Quark": "quark",
        }.items()
    ),
)
