"""Path patching between stacks: encoders, cross-attention and pictures, against the bare models."""

from functools import partial
from typing import Any

import pytest
import torch
from described import of_class
from raw_patching import run_changing
from tiny_models import tokens
from torch import Tensor, nn

from lensbridge import patching as P
from lensbridge.errors import AbsentPointError, InputError
from lensbridge.inputs.random import inputs_for
from lensbridge.model import LensModel

pytestmark = pytest.mark.usefixtures("one_thread")
family = partial(of_class, dtype=torch.float64)

CLEAN, CORRUPTED = (
    {"input_ids": tokens(2, 6, seed), "decoder_input_ids": tokens(2, 4, seed + 2)}
    for seed in (0, 1)
)
MODELS = ["T5ForConditionalGeneration", "BartForConditionalGeneration"]
HEADS = 4


def same(logits: Tensor) -> Tensor:
    return logits


class Bare:
    """The modules of a bare encoder-decoder, and what goes through them in either run."""

    def __init__(self, model: LensModel) -> None:
        self.hf: Any = model.hf_model
        self.is_t5 = "T5" in type(self.hf).__name__
        core = self.hf if self.is_t5 else self.hf.model
        self.encoder, self.decoder = core.encoder, core.decoder

    def layers(self, stack: str) -> Any:
        found = self.encoder if stack == "encoder" else self.decoder
        return found.block if self.is_t5 else found.layers

    def attention(self, stack: str, layer: int, cross: bool = False) -> tuple[Any, nn.Module]:
        """Projections of an attention, and its output projection."""
        one = self.layers(stack)[layer]
        if self.is_t5:
            attn = one.layer[1].EncDecAttention if cross else one.layer[0].SelfAttention
            return attn, attn.o
        attn = one.encoder_attn if cross else one.self_attn
        return attn, attn.out_proj

    def projection(self, attn: Any, letter: str) -> nn.Module:
        return getattr(attn, letter if self.is_t5 else f"{letter}_proj")

    def io(self, module: nn.Module, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        found: list[Any] = []

        def hook(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            read = args[0] if args else kwargs["hidden_states"]
            found.append((read, out[0] if isinstance(out, tuple) else out))

        handle = module.register_forward_hook(hook, with_kwargs=True)
        self.hf(**given)
        handle.remove()
        return found[0]

    def told(self, out: nn.Module, head: int) -> Tensor:
        """An output projection's result with one head clean."""
        z, clean = self.io(out, CORRUPTED)[0].clone(), self.io(out, CLEAN)[0]
        d = z.shape[-1] // HEADS
        z[..., head * d : (head + 1) * d] = clean[..., head * d : (head + 1) * d]
        return out(z)

    def changed(self, *changes: tuple[nn.Module, str, Any]) -> Tensor:
        more = {"decoder_input_ids": CORRUPTED["decoder_input_ids"]}
        return run_changing(self.hf, list(changes), CORRUPTED["input_ids"], **more)

    def encoded(self, attn_out: Tensor) -> Tensor:
        """What the encoder gives when attention of its first layer adds this, all else held."""
        first, second = self.layers("encoder")
        if self.is_t5:
            _, out = self.attention("encoder", 0)
            stream = self.io(self.encoder.final_layer_norm, CORRUPTED)[0]
            return self.encoder.final_layer_norm(stream + attn_out - self.io(out, CORRUPTED)[1])
        read = self.io(first, CORRUPTED)[0]
        mid = first.self_attn_layer_norm(read + attn_out)
        stream = first.final_layer_norm(mid + self.io(first.fc2, CORRUPTED)[1])
        mid = second.self_attn_layer_norm(stream + self.io(second.self_attn, CORRUPTED)[1])
        return second.final_layer_norm(mid + self.io(second.fc2, CORRUPTED)[1])


def head_of(new: Tensor, head: int) -> Any:
    """A change of a projection's output: one head's share is another."""
    d = new.shape[-1] // HEADS

    def replaced(whole: Tensor) -> Tensor:
        found = whole.clone()
        found[..., head * d : (head + 1) * d] = new[..., head * d : (head + 1) * d]
        return found

    return replaced


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[LensModel, Bare]:
    model = family(request.param)
    return model, Bare(model)


@pytest.mark.parametrize("letter", ["k", "v"])
def test_what_an_encoder_head_tells_a_head_of_cross_attention(
    letter: str, case: tuple[LensModel, Bare]
) -> None:
    model, bare = case
    heard = bare.encoded(bare.told(bare.attention("encoder", 0)[1], 1))
    projection = bare.projection(bare.attention("decoder", 1, cross=True)[0], letter)
    wanted = bare.changed((projection, "output", head_of(projection(heard), 2)))
    found = P.path_patch(model, CLEAN, CORRUPTED, "encoder.a0.h1", f"c1.h2<{letter}>", same)
    close(found, wanted)
    assert (wanted - model(CORRUPTED)).abs().max() > 1e-4


def test_indirect_paths_go_through_cross_attention(case: tuple[LensModel, Bare]) -> None:
    model, bare = case
    out = bare.attention("encoder", 0)[1]
    told = bare.told(out, 1)
    sent = (out, "output", lambda _: told)
    inputs = (model, CLEAN, CORRUPTED, "encoder.a0.h1")
    close(P.path_patch(*inputs, "logits", same, through="everything"), bare.changed(sent))
    query = bare.projection(bare.attention("decoder", 1)[0], "q")
    seen: list[Tensor] = []
    bare.changed(sent, (query, "output", lambda whole: seen.append(whole) or whole))
    wanted = bare.changed((query, "output", head_of(seen[0], 3)))
    close(P.path_patch(*inputs, "a1.h3<q>", same, through="everything"), wanted)
    assert (wanted - model(CORRUPTED)).abs().max() > 1e-5


def test_cross_attention_hears_the_decoder_and_tells_it(case: tuple[LensModel, Bare]) -> None:
    model, bare = case
    told = bare.told(bare.attention("decoder", 0)[1], 1)
    cross, out = bare.attention("decoder", 0, cross=True)
    query = bare.projection(cross, "q")
    layer = bare.layers("decoder")[0]
    if bare.is_t5:
        stream = bare.io(layer.layer[0], CORRUPTED)[0]
        read = layer.layer[1].layer_norm(stream + told)
    else:
        stream = bare.io(layer, CORRUPTED)[0]
        read = layer.self_attn_layer_norm(stream + told)
    wanted = bare.changed((query, "output", head_of(query(read), 2)))
    inputs = (model, CLEAN, CORRUPTED)
    close(P.path_patch(*inputs, "a0.h1", "c0.h2<q>", same), wanted)
    heads = [f"c0.h{i}" for i in range(HEADS)]
    all_heads = P.path_patch(*inputs, heads, ["m0", "a1.h1<v>"], same)
    close(P.path_patch(*inputs, "c0", ["m0", "a1.h1<v>"], same), all_heads)
    close(P.path_patch(*inputs, "decoder.c0", ["decoder.m0", "a1.h1<v>"], same), all_heads)
    assert (all_heads - model(CORRUPTED)).abs().max() > 1e-4
    if bare.is_t5:
        delta = bare.told(out, 3) - bare.io(out, CORRUPTED)[1]
        final = bare.decoder.final_layer_norm
        wanted = bare.changed((final, "input", lambda whole: whole + delta))
        close(P.path_patch(*inputs, "c0.h3", "logits", same), wanted)


def test_paths_inside_an_encoder(case: tuple[LensModel, Bare]) -> None:
    model, bare = case
    value = bare.projection(bare.attention("encoder", 1)[0], "v")
    told = bare.told(bare.attention("encoder", 0)[1], 1)
    first = bare.layers("encoder")[0]
    if bare.is_t5:
        _, out = bare.attention("encoder", 0)
        stream = bare.io(bare.layers("encoder")[1].layer[0], CORRUPTED)[0]
        read = (
            bare.layers("encoder")[1]
            .layer[0]
            .layer_norm(stream + told - bare.io(out, CORRUPTED)[1])
        )
    else:
        mid = first.self_attn_layer_norm(bare.io(first, CORRUPTED)[0] + told)
        read = first.final_layer_norm(mid + bare.io(first.fc2, CORRUPTED)[1])
    wanted = bare.changed((value, "output", head_of(value(read), 2)))
    close(P.path_patch(model, CLEAN, CORRUPTED, "encoder.a0.h1", "encoder.a1.h2<v>", same), wanted)
    at = P.path_patch(model, CLEAN, CORRUPTED, "encoder.m0@5", "encoder.m1@5", same)
    assert (at - model(CORRUPTED)).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("sender", "receiver", "told"),
    [
        ("encoder.a0.h1", "logits", "every path goes through cross-attention"),
        ("encoder.a0.h1", "a1.h0<q>", "every path goes through cross-attention"),
        ("encoder.a0.h1", "a0.h0<q>", "There is no path from"),
        ("a0.h1", "encoder.a1.h0<q>", "There is no path from"),
        ("a0.h1", "c1.h0<k>", "There is no path from"),
        ("c0.h1", "c0.h1<q>", "There is no path from"),
        ("tower.a0.h1", "logits", "There is no stack 'tower'; there are decoder, encoder"),
        ("encoder.a7.h1", "logits", "encoder has 2 layers"),
        ("encoder.a0.h1@6", "c0.h0<k>", "the input has 6 positions"),
        ("a0.h1@4", "c0.h0<q>", "the input has 4 positions"),
        ("encoder.a0.h1", "c0.h0<k>@6", "the input has 6 positions"),
        ("c0.h9", "logits", "layer 0 has 4 heads"),
        (("c0.h1", "c0"), "logits", "Name one of the two"),
    ],
    ids=str,
)
def test_paths_that_there_are_not(sender: Any, receiver: str, told: str) -> None:
    model = family("T5ForConditionalGeneration")
    with pytest.raises(InputError, match=told):
        P.path_patch(model, CLEAN, CORRUPTED, sender, receiver, same)
    assert model.engine.is_idle


def test_encoders_have_no_cross_attention() -> None:
    model = family("T5ForConditionalGeneration")
    with pytest.raises(AbsentPointError, match="has no cross-attention"):
        P.path_patch(model, CLEAN, CORRUPTED, "encoder.c0.h1", "c1.h0<k>", same)


def test_a_head_that_sees_a_picture_tells_the_text() -> None:
    """The tower's own branches and the text's are held: its sum goes through the projector."""
    model = family("LlavaForConditionalGeneration")
    corrupted = inputs_for(model.hf_model, batch=1, length=5)
    clean = {**corrupted, "pixel_values": corrupted["pixel_values"].flip(-1)}
    hf: Any = model.hf_model
    tower = next(m for name, m in hf.named_modules() if name.endswith("vision_tower"))
    first = next(m for name, m in tower.named_modules() if name.endswith("layers.0"))
    out = first.self_attn.out_proj
    seen: list[Tensor] = []
    handle = out.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    hf(**clean)
    hf(**corrupted)
    handle.remove()
    heads = next(one for one in model.native.stacks if one.prefix == "vision.blocks").sizes.n_heads
    z, d = seen[1].clone(), seen[1].shape[-1] // heads
    z[..., d : 2 * d] = seen[0][..., d : 2 * d]
    ids = corrupted.pop("input_ids")

    def run(*changes: tuple[nn.Module, str, Any]) -> Tensor:
        return run_changing(hf, list(changes), ids, **corrupted)

    wanted = run((out, "input", lambda _: z))
    given = (model, clean, {**corrupted, "input_ids": ids}, "vision.blocks.a0.h1")
    close(P.path_patch(*given, "logits", same, through="everything"), wanted)
    value = hf.model.language_model.layers[1].self_attn.v_proj
    noted: list[Tensor] = []
    run((out, "input", lambda _: z), (value, "output", lambda x: noted.append(x) or x))
    width = value.out_features // model.native.main.sizes.n_key_value_heads

    def first_head(whole: Tensor) -> Tensor:
        changed = whole.clone()
        changed[..., :width] = noted[0][..., :width]
        return changed

    found = P.path_patch(*given, "a1.h0<v>", same, through="everything")
    close(found, run((value, "output", first_head)))
    direct = P.path_patch(*given, "a1.h0<v>", same)
    assert (direct - model(given[2])).abs().max() > 1e-6
