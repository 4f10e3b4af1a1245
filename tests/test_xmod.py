"""X-MOD: attention, heads and neurons of layers whose language adapters are not described."""

from functools import cache
from typing import Any

import pytest
import torch
from lensbridge_adapters.xmod import XMOD, XMOD_PRE_NORM
from torch import Tensor

import lensbridge
from lensbridge import LensModel
from lensbridge.errors import AbsentPointError
from lensbridge.testing import tiny_model

IDS = torch.tensor([[5, 9, 17, 3, 11, 20], [8, 2, 30, 7, 12, 4]])
LAYER = "roberta.encoder.layer.1."
PUBLISHED = {"adapter_reuse_layer_norm": True, "ln_before_adapter": True}


@cache
def opened(pre_norm: bool) -> LensModel:
    architecture = XMOD_PRE_NORM if pre_norm else XMOD
    return lensbridge.load(tiny_model(architecture, kernel="eager", **PUBLISHED))


def calls_of(model: LensModel, path: str, **options: Any) -> tuple[list[Tensor], list[Tensor], Any]:
    """What a module of the bare model reads and returns, and the output of the model."""
    given: list[Tensor] = []
    returned: list[Tensor] = []

    def note(_: Any, args: Any, out: Tensor) -> None:
        given.append(args[0])
        returned.append(out)

    handle = model.hf_model.get_submodule(LAYER + path).register_forward_hook(note)
    try:
        with torch.no_grad():
            output = model.hf_model(IDS, **options)
    finally:
        handle.remove()
    return given, returned, output


@pytest.mark.parametrize("pre_norm", [False, True])
def test_heads_and_patterns_are_the_models(pre_norm: bool) -> None:
    model = opened(pre_norm)
    [z], [out], output = calls_of(model, "attention.output.dense", output_attentions=True)
    _, [queries], _ = calls_of(model, "attention.self.query")
    _, found = model.run_with_cache(IDS)
    assert torch.equal(found["blocks.1.attn.hook_q"].flatten(-2), queries)
    assert torch.equal(found["blocks.1.attn.hook_z"].flatten(-2), z)
    assert torch.equal(found["blocks.1.hook_attn_out"], out)
    assert torch.equal(found["blocks.1.attn.hook_pattern"], output.attentions[1])
    assert torch.equal(found["hook_logits"], output.logits)


def test_neurons_are_the_models() -> None:
    model = opened(False)
    [neurons], [out], _ = calls_of(model, "output.dense")
    [given], [before], _ = calls_of(model, "intermediate.dense")
    _, found = model.run_with_cache(IDS)
    assert torch.equal(found["blocks.1.ln2.hook_out"], given)
    assert torch.equal(found["blocks.1.mlp.hook_pre"], before)
    assert torch.equal(found["blocks.1.mlp.hook_post"], neurons)
    assert torch.equal(found["blocks.1.hook_mlp_out"], out)


def test_an_ablated_neuron_is_one_without_its_column() -> None:
    model = opened(False)
    weight = model.hf_model.get_submodule(LAYER + "output.dense").weight
    with torch.no_grad():
        kept = weight[:, 3].clone()
        weight[:, 3] = 0
        wanted = model.hf_model(IDS).logits
        weight[:, 3] = kept

    def ablate(value: Tensor, hook: Any) -> None:
        value[..., 3] = 0

    found = model.run_with_hooks(IDS, fwd_hooks=[("blocks.1.mlp.hook_post", ablate)])
    torch.testing.assert_close(found, wanted)


def test_what_is_not_described_says_why() -> None:
    with pytest.raises(AbsentPointError, match="runs a second time before the adapter"):
        opened(True).run_with_cache(IDS, names_filter="blocks.0.mlp.hook_post")
    with pytest.raises(AbsentPointError, match="an adapter behind the MLPs"):
        opened(False).run_with_cache(IDS, names_filter="blocks.0.hook_resid_mid")
