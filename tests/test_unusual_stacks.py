"""Models whose layers are not one list that every pass runs once, against plain PyTorch hooks."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from described import tiny
from raw import record
from torch import Tensor, nn
from transformers.models.gemma3n import modeling_gemma3n as auto

from lensbridge import load
from lensbridge.causal import attribution_patch
from lensbridge.conformance.tiny import tiny_from
from lensbridge.errors import HookNeverFiredError, InputError
from lensbridge.inputs.random import inputs_for
from lensbridge.model import LensModel

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[9, 23, 41, 17, 60, 33, 12], [14, 52, 31, 77, 25, 48, 66]])


# --- Llama 3.2 Vision: layers that only run with an image -----------------------------------------


@pytest.fixture(scope="module")
def mllama() -> LensModel:
    return tiny("mllama_text", num_hidden_layers=4, cross_attention_layers=[1, 3])


def image(model: Any, places: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, places, model.config.hidden_size, generator=generator).double()


def test_cross_attention_layers_hold_what_the_bare_model_computes(mllama: LensModel) -> None:
    bare: Any = mllama.hf_model
    given = {"input_ids": IDS, "cross_attention_states": image(bare)}
    with torch.no_grad():
        raw = record(bare, **given)
    logits, cache = mllama.run_with_cache(given)
    layer = bare.model.layers[1]
    assert torch.equal(logits, raw.logits)
    assert torch.equal(cache["blocks.1.hook_resid_pre"], raw.inputs[layer])
    assert torch.equal(
        cache["blocks.1.hook_cross_attn_out"],
        layer.cross_attn_attn_gate.tanh() * raw.outputs[layer.cross_attn],
    )
    assert torch.equal(
        cache["blocks.1.hook_mlp_out"], layer.cross_attn_mlp_gate.tanh() * raw.outputs[layer.mlp]
    )
    q = raw.outputs[layer.cross_attn.q_norm]
    assert torch.equal(cache["blocks.1.cross_attn.hook_q"], q.transpose(1, 2))
    z = raw.inputs[layer.cross_attn.o_proj]
    assert torch.equal(cache["blocks.1.cross_attn.hook_z"].flatten(2), z)
    assert cache["blocks.1.cross_attn.hook_pattern"].shape == (2, 4, 7, 5)


@pytest.mark.filterwarnings("ignore:`hidden_state` is deprecated:FutureWarning")  # by old ones
def test_tiles_of_an_image_are_one_row_of_keys_and_values() -> None:
    model = tiny("mllama")
    bare: Any = model.hf_model
    given = inputs_for(bare)
    with torch.no_grad():
        raw = record(bare, **given)
    logits, cache = model.run_with_cache(given)
    assert torch.equal(logits, raw.logits)
    attention = bare.model.language_model.layers[1].cross_attn
    tiles = raw.outputs[attention.v_proj]
    assert tiles.shape[0] == 8  # four of each of two images
    v = tiles.reshape(2, -1, 2, 8)
    assert torch.equal(cache["blocks.1.cross_attn.hook_v"], v)
    pattern = cache["blocks.1.cross_attn.hook_pattern"]
    mixed = pattern @ v.transpose(1, 2).repeat_interleave(2, dim=1)
    torch.testing.assert_close(mixed.transpose(1, 2), cache["blocks.1.cross_attn.hook_z"])
    for prefix, stack in (("vision", "transformer"), ("global", "global_transformer")):
        for i, layer in enumerate(getattr(bare.model.vision_model, stack).layers):
            assert torch.equal(cache[f"{prefix}.blocks.{i}.hook_resid_post"], raw.outputs[layer])

    def shift(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[4:] += 1.0  # the second image's
        return output

    handle = attention.v_proj.register_forward_hook(shift)
    with torch.no_grad():
        wanted = bare(**given).logits
    handle.remove()

    def edit(value: Tensor, hook: Any) -> None:
        value[1] += 1.0

    assert torch.equal(
        model.run_with_hooks(given, fwd_hooks=[("blocks.1.cross_attn.hook_v", edit)]), wanted
    )


def test_terms_of_the_stream_are_gated_as_the_model_gates_them(mllama: LensModel) -> None:
    given = {"input_ids": IDS, "cross_attention_states": image(mllama.hf_model)}
    _, cache = mllama.run_with_cache(given)
    terms, labels = cache.decompose_resid(-1, return_labels=True)
    assert "3_cross_attn_out" in labels
    torch.testing.assert_close(terms.sum(0), cache["blocks.3.hook_resid_post"])


def test_a_text_without_an_image_skips_layers(mllama: LensModel) -> None:
    with torch.no_grad():
        logits = mllama.hf_model(IDS).logits
    found, cache = mllama.run_with_cache(IDS)
    assert torch.equal(found, logits)
    assert not [name for name in cache if name.startswith(("blocks.1.", "blocks.3."))]
    stream = cache["blocks.2.hook_resid_pre"]
    assert torch.equal(stream, cache["blocks.0.hook_resid_post"])
    assert torch.equal(mllama(stream, start_at_layer=2), logits)
    with pytest.raises(HookNeverFiredError, match=r"blocks\.1"):
        mllama.run_with_cache(IDS, names_filter="blocks.1.hook_resid_pre")
    with pytest.raises(InputError, match="skips this layer"):
        mllama(stream, start_at_layer=1)
    with pytest.raises(InputError, match="skips this layer"):
        mllama(IDS, stop_at_layer=3)


# --- layers that share one module -----------------------------------------------------------------


def test_spans_begin_and_end_in_the_call_that_is_the_layer() -> None:
    model = tiny("albert", num_hidden_layers=3)
    logits, cache = model.run_with_cache(IDS)
    for layer in (1, 2):
        stopped, _ = model.run_with_cache(IDS, stop_at_layer=layer)
        assert torch.equal(stopped, cache[f"blocks.{layer}.hook_resid_pre"])
    last = cache["blocks.2.hook_resid_post"]
    assert torch.equal(model.run_with_cache(IDS, stop_at_layer=3)[0], last)
    assert torch.equal(model(cache["blocks.0.hook_resid_pre"], start_at_layer=0), logits)
    assert torch.equal(model(last, start_at_layer=3), logits)


# --- HRM: two stacks that run in turn, several times ----------------------------------------------


@pytest.fixture(scope="module")
def hrm() -> LensModel:
    return tiny("hrm_text")


def calls_of(module: nn.Module, run: Callable[[], object]) -> list[tuple[Tensor, Tensor]]:
    """What goes into a module and comes out of it, in each call."""
    found: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((args[0], output))

    handle = module.register_forward_hook(note)
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    return found


def test_each_run_of_a_layer_is_a_layer(hrm: LensModel) -> None:
    bare: Any = hrm.hf_model
    logits, cache = hrm.run_with_cache(IDS)
    with torch.no_grad():
        assert torch.equal(logits, bare(IDS).logits)
    stacks = {"blocks": (bare.model.H_module, 2), "low.blocks": (bare.model.L_module, 4)}
    for prefix, (stack, cycles) in stacks.items():
        for j, layer in enumerate(stack.layers):
            calls = calls_of(layer, lambda: bare(IDS))
            assert len(calls) == cycles
            for cycle, (given, made) in enumerate(calls):
                at = f"{prefix}.{cycle * len(stack.layers) + j}"
                assert torch.equal(cache[f"{at}.hook_resid_pre"], given)
                assert torch.equal(cache[f"{at}.hook_resid_post"], made)
    final = calls_of(bare.model.H_module.final_norm, lambda: bare(IDS))
    assert torch.equal(cache["ln_final.hook_out"], final[-1][1])


def test_an_edit_in_one_cycle_is_that_of_the_bare_model(hrm: LensModel) -> None:
    bare: Any = hrm.hf_model
    seen: list[int] = []

    def shift(_: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        seen.append(1)
        return output + 1.0 if len(seen) == 3 else None  # cycle 2 of 4

    handle = bare.model.L_module.layers[1].mlp.register_forward_hook(shift)
    with torch.no_grad():
        wanted = bare(IDS).logits
    handle.remove()
    edit = [("low.blocks.5.hook_mlp_out", lambda value, hook: value + 1.0)]
    assert torch.equal(hrm.run_with_hooks(IDS, fwd_hooks=edit), wanted)


def test_the_stream_that_begins_anew_is_a_term(hrm: LensModel) -> None:
    _, cache = hrm.run_with_cache(IDS)
    terms, labels = cache.decompose_resid(-1, return_labels=True)
    assert [label for label in labels if "between" in label] == ["2_between"]
    torch.testing.assert_close(terms.sum(0), cache["blocks.3.hook_resid_post"])


# --- BLT: bytes, patches of bytes, bytes ----------------------------------------------------------


@pytest.fixture(scope="module")
def blt() -> LensModel:
    return tiny("blt")


def test_three_stacks_hold_what_the_bare_model_computes(blt: LensModel) -> None:
    bare: Any = blt.hf_model
    with torch.no_grad():
        raw = record(bare, input_ids=IDS)
    logits, cache = blt.run_with_cache(IDS)
    assert torch.equal(logits, raw.logits)
    model = bare.model
    stacks = {
        "blocks": model.local_decoder,
        "local.blocks": model.local_encoder,
        "global.blocks": model.global_transformer,
    }
    for prefix, stack in stacks.items():
        for i, layer in enumerate(stack.layers):
            assert torch.equal(cache[f"{prefix}.{i}.hook_resid_pre"], raw.inputs[layer])
            assert torch.equal(cache[f"{prefix}.{i}.hook_resid_post"], raw.outputs[layer])
            z = raw.inputs[layer.self_attn.o_proj]
            assert torch.equal(cache[f"{prefix}.{i}.attn.hook_z"].flatten(2), z)
    patches = cache["global.blocks.0.hook_resid_pre"].shape[1]
    assert patches < IDS.shape[1] + 1
    assert torch.equal(cache["hook_embed"], model.local_encoder.embed_tokens(IDS))


def test_what_comes_from_the_patches_is_a_term_between_layers(blt: LensModel) -> None:
    bare: Any = blt.hf_model
    with torch.no_grad():
        raw = record(bare, input_ids=IDS)
    _, cache = blt.run_with_cache(IDS)
    terms, labels = cache.decompose_resid(-1, return_labels=True)
    crossed = raw.outputs[bare.model.local_decoder.cross_attn_layers[1]]
    torch.testing.assert_close(terms[labels.index("1_between")], crossed)
    torch.testing.assert_close(terms.sum(0), cache["blocks.1.hook_resid_post"])
    with pytest.raises(InputError, match="outside of the layers"):
        attribution_patch(
            blt, IDS, IDS.flip(1), lambda logits: logits[:, -1].sum(), granularity="edge"
        )
    with pytest.raises(InputError, match="needs the ids"):
        blt(cache["blocks.1.hook_resid_pre"], start_at_layer=1)


# --- Gemma 3n with its towers, of which one needs timm --------------------------------------------


def test_the_text_layers_of_gemma_3n_are_described_beside_its_towers() -> None:
    make = auto.AutoModel.from_config

    def without_timm(config: Any, **given: Any) -> nn.Module:
        return nn.Identity() if "vision" in config.model_type else make(config, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto.AutoModel, "from_config", without_timm)
        cls = transformers.Gemma3nForConditionalGeneration
        model = tiny_from(cls, {}, torch.float32, None, seed=0)
    lens = load(model)
    assert lens.cfg.architecture == "gemma3n"
    with torch.no_grad():
        raw = record(model, input_ids=IDS)
    logits, cache = lens.run_with_cache(IDS)
    assert torch.equal(logits, raw.logits)
    for i, layer in enumerate(model.model.language_model.layers):
        assert torch.equal(cache[f"blocks.{i}.hook_resid_post"], raw.outputs[layer])
        assert torch.equal(
            cache[f"blocks.{i}.attn.hook_z"].flatten(2), raw.inputs[layer.self_attn.o_proj]
        )
        assert torch.equal(cache[f"blocks.{i}.mlp.hook_post"], raw.inputs[layer.mlp.down_proj])
