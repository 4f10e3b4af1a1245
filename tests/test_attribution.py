"""Direct logit attribution against matrix products by hand, and against the bare model's logits."""

import sys
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from described import of_class
from raw import Recording, record
from tiny_models import FAMILIES, Layer, Shape, build, embed_of, final_norm_of, left_padded, tokens
from torch import Tensor, nn

import lensbridge
from lensbridge import LensModel
from lensbridge.analysis import direct_logit_attribution
from lensbridge.errors import InputError, LensbridgeError, NotCachedError, TokenError
from lensbridge.inputs.random import inputs_for

pytestmark = pytest.mark.usefixtures("one_thread")
tiny = of_class

UNITS = ("component", "layer", "head", "neuron")
STORE = "When John and Mary went to the store, Mary gave a bottle to"
EIFFEL = "The Eiffel Tower is in the city of"


@cache
def demo() -> LensModel:
    return lensbridge.load("demo")


def close(found: Tensor, wanted: Tensor, size: float = 2e-4) -> None:
    torch.testing.assert_close(found.double(), wanted.double(), rtol=size, atol=size)


# --- each unit by hand ------------------------------------------------------------------------


class ByHand:
    """What parts of a bare model write towards a token, from recorded tensors in float64."""

    def __init__(self, hf: nn.Module, shape: Shape, ids: Tensor, right: int, wrong: int) -> None:
        self.hf, self.shape = hf, shape
        self.bare: Recording = record(hf, input_ids=ids)
        norm = final_norm_of(hf, shape.family)
        stream = self.bare.inputs[norm].double()
        self.centres = isinstance(norm, nn.LayerNorm)
        eps = norm.eps if self.centres else norm.variance_epsilon
        stream = self._centred(stream)
        self.divisor = (stream.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        rows = hf.get_output_embeddings().weight.detach().double()
        self.difference = rows[right] - rows[wrong]
        self.gain = norm.weight.detach().double()
        self.shift = norm.bias.detach().double() if self.centres else torch.zeros_like(self.gain)

    def _centred(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centres else x

    def of(self, write: Tensor) -> Tensor:
        """`[batch, pos, d_model]` -> `[batch, pos]`"""
        return (self._centred(write.double()) / self.divisor * self.gain) @ self.difference

    def layer(self, i: int) -> Layer:
        return Layer(self.hf, self.shape.family, i)

    def shares(self, projection: nn.Module, pieces: int) -> list[Tensor]:
        """What each equal piece of a projection's input writes."""
        given = self.bare.inputs[projection].double()
        weight = projection.weight.detach().double()
        weight = weight if self.shape.family == "gpt2" else weight.mT
        both = zip(given.chunk(pieces, -1), weight.chunk(pieces, 0), strict=True)
        return [self.of(x @ w) for x, w in both]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_units_by_hand(family: str) -> None:
    shape = Shape(family)
    hf, ids = build(shape), tokens()
    hand = ByHand(hf, shape, ids, right=9, wrong=30)
    model = lensbridge.load(hf)
    found = {u: direct_logit_attribution(model, ids, 9, 30, unit=u, pos=None) for u in UNITS}
    layers = [hand.layer(i) for i in range(2)]
    heads = [one for layer in layers for one in hand.shares(layer.o, shape.heads)]
    assert found["head"].labels == [f"L{i}H{h}" for i in range(2) for h in range(4)] + ["remainder"]
    close(found["head"].attribution[:-1], torch.stack(heads))
    neurons = [one for layer in layers for one in hand.shares(layer.down, shape.d_mlp)]
    assert found["neuron"].labels[-2:] == [f"L1N{shape.d_mlp - 1}", "remainder"]
    close(found["neuron"].attribution[:-1], torch.stack(neurons))
    terms = dict(zip(found["component"].labels, found["component"].attribution, strict=True))
    close(terms["embed"], hand.of(hand.bare.outputs[embed_of(hf, family)]))
    for i, layer in enumerate(layers):
        close(terms[f"{i}_attn_out"], hand.of(hand.bare.outputs[layer.o]))
        close(terms[f"{i}_mlp_out"], hand.of(hand.bare.outputs[layer.down]))
    grown = [hand.bare.inputs[layers[0].block]] + [hand.bare.outputs[one.block] for one in layers]
    steps = [grown[0], grown[1] - grown[0], grown[2] - grown[1]]
    assert found["layer"].labels == ["embed", "L0", "L1"]
    close(found["layer"].attribution, torch.stack([hand.of(step) for step in steps]))
    logits = hand.bare.logits
    for result in found.values():
        close(result.cumulative[-1], logits[..., 9] - logits[..., 30])
        close(result.bias, (hand.shift @ hand.difference).expand(2, 7))
        close(result.attribution.sum(0) + result.bias, logits[..., 9] - logits[..., 30])


# --- on every kind of architecture the sum is the logit ---------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("GraniteForCausalLM", UNITS),  # multiplied residuals and logits
        ("CohereForCausalLM", UNITS),  # parallel, scaled logits
        ("Olmo2ForCausalLM", UNITS),  # norms behind the branches
        ("PhiForCausalLM", UNITS),  # a bias of the head
        ("OPTForCausalLM", UNITS),
        ("T5ForConditionalGeneration", UNITS),
        ("BartForConditionalGeneration", UNITS),  # post-norm, a bias outside the head
        ("FalconH1ForCausalLM", UNITS),  # attention beside a mixer
        ("MambaForCausalLM", ("component", "layer")),
        ("MixtralForCausalLM", UNITS[:3]),
        ("DeepseekV3ForCausalLM", UNITS[:3]),
        ("Qwen3NextForCausalLM", UNITS[:3]),  # gated z, linear attention
        ("GitForCausalLM", UNITS[:3]),  # pictures in the stream that are not in the embedding
    ],
)
def test_attributions_sum_to_the_native_logits(name: str, units: tuple[Any, ...]) -> None:
    model = tiny(name)
    given = inputs_for(model.hf_model)
    logits = model.hf_model(**given).logits.double()
    right = torch.tensor([[5], [11]])
    for unit in units:
        result = direct_logit_attribution(model, given, right[:, 0], unit=unit, pos=[0, -1])
        wanted = logits[:, [0, -1]].gather(-1, right[:, None].expand(2, 2, 1))[..., 0]
        close(result.logit, wanted, 5e-4)
        assert result.attribution.shape == (len(result.labels), 2, 2)


@torch.no_grad()
def test_before_a_soft_cap() -> None:
    model = tiny("Gemma2ForCausalLM")
    given = inputs_for(model.hf_model)
    cap = model.hf_model.config.final_logit_softcapping
    capped = model.hf_model(**given).logits[:, -1, 7].double()
    for unit in UNITS:
        found = direct_logit_attribution(model, given, 7, unit=unit).logit
        close(cap * torch.tanh(found.double() / cap), capped)


# --- what the answers and positions are -------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
def test_answers_of_each_example_and_padding(unit: Any) -> None:
    texts, right, wrong = [STORE, EIFFEL], [" John", " Paris"], [" Mary", " Rome"]
    model = demo()
    each = zip(texts, right, wrong, strict=True)
    alone = [direct_logit_attribution(model, *one, unit=unit) for one in each]
    ids = [torch.tensor([model.to_single_token(one) for one in some]) for some in (right, wrong)]
    for side in ("left", "right"):
        together = direct_logit_attribution(
            model, texts, right, wrong, unit=unit, padding_side=side
        )
        close(together.attribution[:, :1], alone[0].attribution)
        close(together.attribution[:, 1:], alone[1].attribution)
        close(together.bias, torch.cat([one.bias for one in alone]))
        by_id = direct_logit_attribution(model, texts, *ids, unit=unit, padding_side=side)
        assert torch.equal(by_id.attribution, together.attribution)


def test_answers_of_each_position() -> None:
    model, (ids, mask) = lensbridge.load(build(Shape("llama"))), left_padded()
    nexts = ids.roll(-1, dims=1)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask)
    for unit in UNITS:
        result = direct_logit_attribution(
            model, ids, nexts, unit=unit, pos=None, attention_mask=mask
        )
        wanted = logits.gather(-1, nexts[..., None])[..., 0]
        close(result.logit[mask.bool()], wanted[mask.bool()])


def test_a_cache_in_every_form() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(1)
    _, cache = model.run_with_cache(ids)
    _, bare = model.run_with_cache(ids, remove_batch_dim=True)
    _, few = model.run_with_cache(ids, names_filter=["resid_pre", "resid_post"])
    for unit in UNITS:
        wanted = direct_logit_attribution(model, ids, 3, unit=unit)
        found = direct_logit_attribution(model, answer_tokens=3, unit=unit, cache=cache)
        assert torch.equal(found.attribution, wanted.attribution)
        single = direct_logit_attribution(model, answer_tokens=3, unit=unit, cache=bare)
        close(single.attribution, wanted.attribution[:, 0])
        assert single.bias.shape == ()
    with pytest.raises(NotCachedError, match="hook_"):
        direct_logit_attribution(model, answer_tokens=3, cache=few)


def test_the_largest_first_and_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    result = direct_logit_attribution(demo(), STORE, " John", " Mary", unit="head")
    values = dict(zip(result.labels, result.attribution[:, 0].tolist(), strict=True))
    ordered = sorted(values.items(), key=lambda one: -one[1])
    ordered = [one for one in ordered if one[0] != "remainder"]
    assert [label for label, _ in result.top(3)] == [label for label, _ in ordered[:3]]
    assert len(result.top(99)) == 16
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: rows))
    lines = result.to_dataframe()
    assert [line["label"] for line in lines] == result.labels
    assert lines[5] == {"label": "L1H1", "batch": 0, "attribution": pytest.approx(values["L1H1"])}


def test_what_the_demo_model_writes() -> None:
    """The heads that ablation finds, too: attribution and intervention agree on the best one."""
    result = direct_logit_attribution(demo(), STORE, " John", " Mary", unit="head")
    logits = demo()(STORE)
    john, mary = (demo().to_single_token(name) for name in (" John", " Mary"))
    close(result.logit, logits[:, -1, john] - logits[:, -1, mary])
    assert float(result.logit) > 5


# --- what cannot be done ----------------------------------------------------------------------


def test_refusals() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"unit": "heads"}, "unit is"),
        ({"answer_tokens": None}, "Pass answer_tokens"),
        ({"answer_tokens": torch.tensor([1, 2, 3])}, "one for each of the 2 examples"),
        ({"answer_tokens": [1, 2], "incorrect_tokens": 3}, "differ in number"),
        ({"pos": 9}, "row with 7 tokens"),
    ]
    for arguments, message in wrong:
        with pytest.raises(InputError, match=message):
            direct_logit_attribution(model, ids, **{"answer_tokens": 1, **arguments})
    with pytest.raises(InputError, match="either an input"):
        direct_logit_attribution(model, answer_tokens=1)
    with pytest.raises(TokenError, match="not one"):
        direct_logit_attribution(demo(), STORE, "John Mary")
    bert, mixtral = tiny("BertForMaskedLM"), tiny("MixtralForCausalLM")
    with pytest.raises(InputError, match="transform"):
        direct_logit_attribution(bert, inputs_for(bert.hf_model), 1)
    with pytest.raises(LensbridgeError, match="cannot be read one by one"):
        direct_logit_attribution(mixtral, inputs_for(mixtral.hf_model), 1, unit="neuron")


def test_edits_that_change_the_stream_count_and_those_that_break_the_sum_are_refused() -> None:
    model = demo()

    def double(value: Tensor, hook: Any) -> Tensor:
        return 2 * value

    with model.hooks([("blocks.1.hook_attn_out", double)]):
        result = direct_logit_attribution(model, STORE, " John")
        own = model(STORE)
    close(result.logit, own[:, -1, model.to_single_token(" John")])
    with (
        model.hooks([("blocks.1.hook_resid_post", double)]),
        pytest.raises(LensbridgeError, match="differ from the model"),
    ):
        direct_logit_attribution(model, STORE, " John")
