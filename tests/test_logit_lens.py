"""The logit lens, held against the bare model with its last layer's output replaced."""

import sys
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from described import of_class
from raw import record, run_replacing
from tiny_models import FAMILIES, VOCAB, Layer, Shape, build, final_norm_of, left_padded, tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lensbridge
from lensbridge import LensModel
from lensbridge.analysis import LogitLensResult, logit_lens, logit_readout
from lensbridge.errors import AbsentPointError, InputError, LensbridgeError, TokenError
from lensbridge.inputs.random import inputs_for

pytestmark = pytest.mark.usefixtures("one_thread")
tiny = of_class

EIFFEL = "The Eiffel Tower is in the city of"
BESIDE = ["The Eiffel Tower is in the city of", "To visit the Louvre Museum, you should travel to"]


@cache
def demo() -> LensModel:
    return lensbridge.load("demo")


def close(found: Tensor, wanted: Tensor, size: float = 1e-4) -> None:
    torch.testing.assert_close(found.float(), wanted.float(), rtol=size, atol=size)


# --- every row is what the bare model makes of that stream ------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_native_norm_and_head_on_the_native_streams(family: str) -> None:
    shape = Shape(family, layers=3)
    hf = build(shape)
    ids = tokens()
    bare = record(hf, input_ids=ids)
    blocks = [Layer(hf, family, i).block for i in range(3)]
    streams = [*(bare.inputs[block] for block in blocks), bare.outputs[blocks[-1]]]
    norm, head = final_norm_of(hf, family), hf.get_output_embeddings()
    by_hand = torch.stack([head(norm(stream)) for stream in streams])
    result = logit_lens(lensbridge.load(hf), ids, positions=None)
    assert result.labels == ["0_pre", "1_pre", "2_pre", "final_post"]
    assert result.layers == [0, 1, 2, 3]
    close(result.values, by_hand)
    close(result.values[-1], bare.logits)
    single = logit_lens(lensbridge.load(hf), ids)
    close(single.values, by_hand[:, :, -1])
    close(result.target_values(5), by_hand[..., 5])
    named = logit_lens(lensbridge.load(hf), ids, targets=[9, 5], positions=None)
    close(named.target_values(5), by_hand[..., 5])


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "Gemma2ForCausalLM",  # soft-cap
        "GraniteForCausalLM",  # multipliers
        "CohereForCausalLM",  # scaled logits
        "BertForMaskedLM",  # a transform before the head
        "RobertaForMaskedLM",  # one that is several modules
        "OPTForCausalLM",
        "MambaForCausalLM",
        "MixtralForCausalLM",
        "FalconH1ForCausalLM",
        "DeepseekV3ForCausalLM",
        "T5ForConditionalGeneration",  # the decoder, scaled
        "BartForConditionalGeneration",  # a bias outside the head
        "LlavaForConditionalGeneration",
    ],
)
def test_every_kind_of_head(name: str) -> None:
    model = tiny(name)
    hf: Any = model.hf_model
    given = inputs_for(hf)
    last = model.native.blocks[-1].module
    stream = record(hf, **given).inputs[model.native.blocks[1].module]
    wanted = run_replacing(hf, last, "output", stream, **given)
    result = logit_lens(model, given, positions=None)
    close(result.values[1], wanted, 3e-4)
    close(result.values[-1], hf(**given).logits, 3e-4)


def test_what_stands_between_attention_and_mlp() -> None:
    model = lensbridge.load(build(Shape("llama")))
    ids = tokens()
    _, cache = model.run_with_cache(ids)
    result = logit_lens(model, cache=cache, incl_mid=True, layers=[1, -1])
    assert result.labels == ["1_pre", "1_mid", "final_post"]
    assert result.layers == [1, 1, 2]
    with torch.no_grad():
        close(result.values[1], model.unembed(model.ln_final(cache["resid_mid", 1][:, -1])))
    with pytest.raises(AbsentPointError, match="parallel"):
        logit_lens(lensbridge.load(build(Shape("neox"))), ids, incl_mid=True)


# --- what is read off the logits --------------------------------------------------------------


@torch.no_grad()
def test_probabilities_ranks_and_entropy_by_hand() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens()
    logits = logit_lens(model, ids, positions=None).values.double()
    probs = logits.softmax(-1)
    wanted = -(probs * probs.log()).sum(-1)
    close(logit_lens(model, ids, positions=None, return_type="probs").values, probs)
    close(logit_lens(model, ids, positions=None, return_type="log_probs").values, probs.log())
    order = logits.argsort(-1, descending=True).argsort(-1)
    targets = [5, 40]
    result = logit_lens(model, ids, positions=None, targets=targets, return_type="log_probs")
    close(result.entropy, wanted)
    close(result.values, probs.log()[..., targets])
    assert result.ranks is not None
    assert torch.equal(result.ranks, order[..., targets])
    assert torch.equal(result.rank_trajectory(target=40), order[..., 40])
    assert torch.equal(result.rank_trajectory([40, 5]), order[..., [40, 5]])
    everything = logit_lens(model, ids, positions=None)
    assert torch.equal(everything.rank_trajectory(7), order[..., 7])
    top = logit_lens(model, ids, positions=None, top_k=3)
    values, found = logits.topk(3)
    close(top.values, values)
    assert torch.equal(top.ids, found)
    part = logit_lens(model, ids, positions=None, vocab=[9, 3], return_type="probs")
    close(part.values, probs[..., [9, 3]])


@torch.no_grad()
def test_targets_of_each_position() -> None:
    model, ids = lensbridge.load(build(Shape("llama"))), tokens()
    everything = logit_lens(model, ids, positions=slice(0, -1)).values
    result = logit_lens(model, ids, positions=slice(0, -1), targets=ids[:, 1:])
    index = ids[None, :, 1:, None].expand(3, -1, -1, 1)
    close(result.values, everything.gather(-1, index))
    assert torch.equal(result.rank_trajectory(), (everything > result.values).sum(-1))
    each = logit_lens(model, ids, targets=ids[:, 0])
    assert each.values.shape == (3, 2, 1)
    close(each.values[:, 1, 0], logit_lens(model, ids).values[:, 1, int(ids[1, 0])])


def test_text_in_and_out() -> None:
    result = logit_lens(demo(), EIFFEL, top_k=2)
    assert result.top_tokens()["final_post"][0][0] == " Paris"
    assert result.decode()[-1][0][0] == " Paris"
    assert list(result.top_tokens(k=1)) == result.labels
    full = logit_lens(demo(), EIFFEL, layers=-1)
    assert full.top_tokens(k=2) == {"final_post": result.top_tokens()["final_post"]}
    asked = logit_lens(demo(), EIFFEL, targets=[" Paris", " Rome"])
    assert asked.rank_trajectory(" Paris")[-1].item() == 0
    assert asked.decode() == [" Paris", " Rome"]
    assert logit_lens(demo(), EIFFEL, targets=" Rome").rank_trajectory().shape == (5, 1)


# --- positions and padding --------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_read(side: str) -> None:
    texts = [EIFFEL, "The Louvre Museum can be found in"]
    alone = torch.cat([logit_lens(demo(), text).values for text in texts], dim=1)
    result = logit_lens(demo(), texts, padding_side=side)
    close(result.values, alone)
    first = torch.cat([logit_lens(demo(), text, positions=1).values for text in texts], dim=1)
    close(logit_lens(demo(), texts, positions=1, padding_side=side).values, first)
    two = logit_lens(demo(), texts, positions=[-2, -1], padding_side=side)
    assert two.values.shape[:3] == (5, 2, 2)
    close(two.values[:, :, 1], alone)
    with pytest.raises(InputError, match="example 1 has 8 tokens"):
        logit_lens(demo(), texts, positions=8, padding_side=side)


def test_positions_in_every_form() -> None:
    model = lensbridge.load(build(Shape("llama")))
    ids, mask = left_padded()
    every = logit_lens(model, ids, positions=None, attention_mask=mask)
    assert every.values.shape == (3, 3, 7, VOCAB)
    assert every.where.real.tolist() == mask.bool().tolist()
    each = logit_lens(model, ids, positions=torch.tensor([[0], [1], [-1]]), attention_mask=mask)
    assert each.positions.tolist() == [[0], [2], [6]]
    rows = torch.arange(3)
    close(each.values[:, rows, 0], every.values[:, rows, each.positions[:, 0]])
    run: dict[str, Any] = {"attention_mask": mask}
    some = logit_lens(model, ids, positions=slice(2, 5), count="columns", **run)
    close(some.values, every.values[:, :, 2:5])
    close(logit_lens(model, ids, positions=(2, 5), count="columns", **run).values, some.values)
    tokens_2_to_4 = logit_lens(model, ids, positions=slice(2, 5), **run)
    assert tokens_2_to_4.positions.tolist() == [[2, 3, 4], [3, 4, 5], [4, 5, 6]]
    close(tokens_2_to_4.values, logit_lens(model, ids, positions=[2, 3, 4], **run).values)
    one = logit_lens(model, ids, positions=None, batch_slice=[2, 0], attention_mask=mask)
    close(one.values, every.values[:, [2, 0]])


def test_a_cache_in_every_form() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens(1)
    wanted = logit_lens(model, ids).values
    _, cache = model.run_with_cache(ids)
    _, small = model.run_with_cache(ids, names_filter=["resid_pre", "resid_post"])
    _, bare = model.run_with_cache(ids, remove_batch_dim=True)
    _, cut = model.run_with_cache(ids, pos_slice=-1)
    for one in (cache, small, bare, cut):
        close(logit_lens(model, cache=one).values, wanted)
    close(logit_lens(cache).values, wanted)
    close(cache.logit_lens(top_k=1).values, wanted.max(-1, keepdim=True).values)


# --- what it costs ----------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [one.numel() for one in tree_leaves(out) if isinstance(one, Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def test_logits_exist_for_a_chunk_of_vectors_at_a_time() -> None:
    model, ids = lensbridge.load(build(Shape("llama", layers=3))), tokens(4, 9)
    _, cache = model.run_with_cache(ids)
    vectors = 4 * 4 * 9
    with Largest() as seen:
        small = logit_lens(model, cache=cache, positions=None, targets=[3], chunk_size=5)
    stack = vectors * model.cfg.d_model
    assert seen.numel <= max(stack, 5 * VOCAB) < vectors * VOCAB
    close(small.values, logit_lens(model, cache=cache, positions=None, targets=[3]).values)
    top = logit_lens(model, cache=cache, positions=None, top_k=2, chunk_size=7)
    assert torch.equal(top.ids, logit_lens(model, cache=cache, positions=None, top_k=2).ids)


def test_nothing_is_left_attached_and_no_parameter_gets_a_gradient() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    result = logit_lens(model, tokens())
    assert not result.values.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf_model.modules())


def test_a_lens_of_ones_own_gets_gradients() -> None:
    model, ids = lensbridge.load(build(Shape("gpt2"))), tokens()
    turn = torch.eye(model.cfg.d_model, requires_grad=True)
    seen = []

    def lens(stream: Tensor, row: int) -> Tensor:
        seen.append((row, tuple(stream.shape)))
        return stream @ turn

    result = logit_lens(model, ids, lens=lens, enable_grad=True, targets=[4])
    assert seen == [(i, (2, 1, model.cfg.d_model)) for i in range(3)]
    close(result.values.detach(), logit_lens(model, ids, targets=[4]).values)
    result.values.sum().backward()
    assert turn.grad is not None
    assert turn.grad.abs().sum() > 0
    through = logit_lens(model, ids, enable_grad=True, targets=[4])
    (grad,) = torch.autograd.grad(through.values[-1].sum(), [model.hf_model.lm_head.weight])
    assert grad.abs().sum() > 0


# --- vectors of any kind ----------------------------------------------------------------------


def test_vectors_are_read_as_if_they_stood_behind_the_last_layer() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    hf: Any = model.hf_model
    vectors = torch.randn(3, 2, model.cfg.d_model)
    with torch.no_grad():
        wanted = hf.lm_head(hf.transformer.ln_f(vectors))
        plain = hf.lm_head(vectors)
    found = logit_readout(model, vectors)
    close(found.values, wanted)
    close(logit_readout(model, vectors, apply_ln=False).values, plain)
    assert logit_readout(model, vectors[0, 0], top_k=4).values.shape == (4,)
    ranked = logit_readout(model, vectors, targets=torch.tensor([3, 5]))
    assert torch.equal(ranked.ids, torch.tensor([[3], [5]]).expand(3, 2, 1))
    close(ranked.values[:, 1, 0], wanted[:, 1, 5])


def test_half_precision_models() -> None:
    model = lensbridge.load(build(Shape("llama", dtype=torch.bfloat16)))
    result = logit_lens(model, tokens(), return_type="log_probs")
    assert result.values.dtype == torch.float32
    close(result.values.exp().sum(-1), torch.ones(3, 2))
    assert logit_readout(model, torch.randn(2, model.cfg.d_model)).values.shape == (2, VOCAB)


# --- what cannot be done ----------------------------------------------------------------------


def test_an_edit_of_the_head_in_force_is_refused() -> None:
    model = demo()

    def double(logits: Tensor, hook: Any) -> Tensor:
        return 2 * logits

    with model.hooks([("hook_logits", double)]), pytest.raises(LensbridgeError, match="differ"):
        logit_lens(model, EIFFEL)
    with model.hooks([("blocks.2.hook_resid_post", double)]):
        edited = logit_lens(model, EIFFEL)
        own = model(EIFFEL)
    close(edited.values[-1], own[:, -1])


def test_a_description_that_leaves_something_out_is_refused(monkeypatch: Any) -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    _, kept = model.run_with_cache(tokens(), names_filter=["resid_pre", "resid_post"])
    object.__setattr__(model.native, "logit_scale", 1.1)
    for given in ({"input": tokens()}, {"cache": kept}):
        with pytest.raises(LensbridgeError, match="leaves out"):
            logit_lens(model, **given)
    with pytest.raises(LensbridgeError, match="leaves out"):
        logit_readout(model, torch.randn(1, model.cfg.d_model))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ViTForImageClassification", "one vector for the whole input"),
        ("Gemma3nForCausalLM", "several residual streams"),
        ("T5EncoderModel", "no language-model head"),
    ],
)
def test_models_without_logits_of_a_stream(name: str, reason: str) -> None:
    model = tiny(name)
    with pytest.raises(LensbridgeError, match=reason):
        logit_lens(model, inputs_for(model.hf_model))


def test_wrong_arguments() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    ids = tokens()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"layers": [3]}, "rows are 0 to 2"),
        ({"layers": []}, "layers is empty"),
        ({"targets": [1], "top_k": 2}, "one of targets, top_k and vocab"),
        ({"top_k": 99}, "1 to 61"),
        ({"targets": [61]}, "0 to 60"),
        ({"targets": torch.tensor([[1, 2, 3]])}, "one id for each vector"),
        ({"return_type": "logit"}, "return_type is"),
        ({"chunk_size": 0}, "chunk_size is 1 or more"),
        ({"positions": 7}, "row with 7 tokens"),
        ({"positions": torch.tensor([0.5])}, "positions is None"),
    ]
    for arguments, message in wrong:
        with pytest.raises(InputError, match=message):
            logit_lens(model, ids, **arguments)
    with pytest.raises(InputError, match="either an input"):
        logit_lens(model)
    with pytest.raises(InputError, match=r"are \[\.\.\., 24\]"):
        logit_readout(model, torch.randn(2, 5))
    with pytest.raises(TokenError, match="not one"):
        logit_lens(demo(), EIFFEL, targets="Eiffel Tower")
    with pytest.raises(InputError, match="not one of the targets"):
        logit_lens(model, ids, targets=[1, 2]).rank_trajectory(5)
    with pytest.raises(InputError, match="Only targets have ranks"):
        logit_lens(model, ids, top_k=2).rank_trajectory()
    with pytest.raises(InputError, match="no ids to decode"):
        logit_lens(model, ids).decode()
    bert = tiny("BertForMaskedLM")
    with pytest.raises(LensbridgeError, match="apply_ln=False"):
        logit_readout(bert, torch.randn(2, bert.cfg.d_model), apply_ln=False)


# --- tables -----------------------------------------------------------------------------------


def lines_of(monkeypatch: pytest.MonkeyPatch, result: LogitLensResult, **how: Any) -> list[Any]:
    """The lines of a data frame, whether pandas is installed or not."""
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: rows))
    return result.to_dataframe(**how)  # type: ignore[no-any-return]


def test_a_table_has_a_line_for_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    result = logit_lens(demo(), BESIDE, targets=[" Rome", " Paris"], return_type="probs")
    lines = lines_of(monkeypatch, result)
    assert len(lines) == 5 * 2 * 2
    assert lines[-2]["token_string"] == " Paris"
    last = lines[-1]
    assert (last["layer"], last["batch"], last["token_string"]) == ("final_post", 1, " Rome")
    assert last["pos"] == int(result.positions[1, 0])
    assert last["rank"] == int(result.rank_trajectory(" Rome")[-1, 1])
    assert last["probability"] == pytest.approx(float(result.values[-1, 1, 0]))
    assert last["entropy"] == pytest.approx(float(result.entropy[-1, 1]))
    several = logit_lens(demo(), BESIDE, positions=None, layers=[-1])
    lines = lines_of(monkeypatch, several, top_k=1)
    assert len(lines) == int(several.where.real.sum()) < several.positions.numel()
    numbers = lines_of(monkeypatch, logit_lens(lensbridge.load(build(Shape("gpt2"))), tokens()))
    assert "token_string" not in numbers[0]
    assert len(numbers) == 3 * 2 * VOCAB


def test_a_table_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LensbridgeError, match="pip install pandas"):
        logit_lens(demo(), EIFFEL, top_k=1).to_dataframe()


# --- what is passed ------------------------------------------------------------------------------


def test_a_lens_for_each_row_is_applied_to_that_row() -> None:
    hf = build(Shape("llama"))
    model, ids = lensbridge.load(hf), tokens()
    width = hf.config.hidden_size
    translators = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(3)])
    with torch.no_grad():
        _, cache_ = model.run_with_cache(ids, ["resid_pre", "resid_post"])
        streams = [cache_["resid_pre", 0], cache_["resid_pre", 1], cache_["resid_post", 1]]
        wanted = [
            hf.lm_head(hf.model.norm(translator(stream)))
            for translator, stream in zip(translators, streams, strict=True)
        ]
        for lens in (translators, list(translators), lambda stream, row: translators[row](stream)):
            found = model.logit_lens(ids, positions=None, lens=lens)
            close(found.values, torch.stack(wanted))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lens": [1, 2, 3, 4, 5]}, "item 0 is 1"),
        ({"lens": ["a"]}, "item 0 is 'a'"),
        ({"lens": [lambda x: x, None]}, "item 1 is None"),
        ({"lens": [lambda x: x]}, "list of 1, and 5 rows"),
        ({"lens": []}, "list of 0, and 5 rows"),
        ({"lens": "tuned"}, r"function f\(stream, row\)"),
        ({"lens": {0: 1}}, r"function f\(stream, row\)"),
        ({"lens": 3}, r"function f\(stream, row\)"),
        ({"lens": lambda x: x}, r"function f\(stream, row\)"),
        ({"lens": lambda x, i: None}, "gave None for row 0"),
        ({"lens": lambda x, i: x[..., :3]}, r"gave shape \[1, 1, 3\]"),
        ({"layers": "all"}, "layers is a layer's number"),
        ({"layers": [1.5]}, "layers is a layer's number"),
        ({"layers": [None]}, "layers is a layer's number"),
        ({"layers": True}, "layers is a layer's number"),
        ({"positions": ["a"]}, "positions is None"),
        ({"targets": 1.5}, "single tokens"),
        ({"targets": [1.5]}, "single tokens"),
        ({"targets": [None]}, "single tokens"),
        ({"targets": []}, "empty"),
        ({"top_k": "3"}, "top_k is 1 to"),
        ({"top_k": 2.5}, "top_k is 1 to"),
        ({"vocab": "abc"}, "token ids"),
        ({"chunk_size": 1.5}, "chunk_size is 1 or more"),
        ({"chunk_size": "a"}, "chunk_size is 1 or more"),
        ({"batch_slice": 99}, "of which there are 1"),
        ({"batch_slice": [99]}, "of which there are 1"),
        ({"batch_slice": "a"}, "of which there are 1"),
        ({"batch_slice": slice(5, 9)}, "is no example; there are 1"),
    ],
)
def test_wrong_arguments_say_what_there_is(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        demo().logit_lens(EIFFEL, **options)
    _, cache_ = demo().run_with_cache(EIFFEL)
    with pytest.raises(InputError, match=message):
        cache_.logit_lens(**options)
    assert not any(m._forward_hooks for m in demo().hf_model.modules())


def test_a_cache_in_the_place_of_an_input_is_read() -> None:
    _, cache_ = demo().run_with_cache(EIFFEL)
    found, wanted = demo().logit_lens(cache_), demo().logit_lens(EIFFEL)
    close(found.values, wanted.values)
    assert torch.equal(demo().logit_lens(EIFFEL, batch_slice=0).values, wanted.values)


def test_tokens_of_a_readout_are_the_tokens_that_it_reports() -> None:
    model = demo()
    readout = logit_readout(model, model.W_U[:, model.to_single_token(" Rome")], top_k=1)
    assert readout.tokens == readout.decode() == [" Rome"]
    assert readout.tokenizer.tokenizer is model.tokenizer
    result = logit_lens(model, EIFFEL, top_k=2)
    assert result.readout.tokens == result.decode()
    with pytest.raises(InputError, match="whole vocabulary"):
        _ = logit_lens(model, EIFFEL).readout.tokens
