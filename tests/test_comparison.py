"""`lensbridge.compare`: against the bare models' own parameters, streams and predictions."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from raw import record
from tiny_models import Shape, build, tokens
from torch import Tensor
from transformers import JambaConfig, JambaForCausalLM, MixtralConfig, MixtralForCausalLM
from word_tokenizer import words

import lensbridge
from lensbridge import LensModel, compare
from lensbridge.demo.text import eiffel_tower
from lensbridge.errors import InputError, WeightError

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["The Eiffel Tower is in the city of", "John and Mary went to the store"]


@cache
def demo() -> LensModel:
    return lensbridge.load("demo")


def tuned(**scales: float) -> LensModel:
    """The demo model with some parameters of its layers multiplied."""
    model = copy.deepcopy(demo())
    for name, scale in scales.items():
        model.hf_model.get_parameter(name.replace("__", ".")).data.mul_(scale)
    return model


def relative(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double(), other.detach().double()
    return float((other - one).norm() / one.norm())


def test_changes_are_those_of_the_parameters() -> None:
    base, other = demo(), copy.deepcopy(demo())
    for parameter in other.hf_model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    found = compare(base, other).weights
    for layer in range(4):
        one, two = (m.hf_model.transformer.h[layer] for m in (base, other))
        width = base.cfg.d_model
        for name, a, b in (
            ("attn.W_O", one.attn.c_proj.weight, two.attn.c_proj.weight),
            ("attn.W_K", *(x.attn.c_attn.weight[:, width : 2 * width] for x in (one, two))),
            ("attn.b_V", *(x.attn.c_attn.bias[2 * width :] for x in (one, two))),
            ("mlp.W_in", one.mlp.c_fc.weight, two.mlp.c_fc.weight),
            ("ln1.w", one.ln_1.weight, two.ln_1.weight),
        ):
            row = found[f"blocks.{layer}.{name}"]
            assert row.change == pytest.approx(relative(a, b), rel=1e-4)
            assert (row.layer, row.kind) == (layer, name)
        flat = [
            torch.cat([p.flatten().double() for p in block.parameters()]) for block in (one, two)
        ]
        assert found.by_layer[layer] == pytest.approx(relative(*flat), rel=1e-4)
    embed = [m.hf_model.transformer.wte.weight for m in (base, other)]
    assert found["embed.W_E"].change == pytest.approx(relative(*embed), rel=1e-4)
    changes = [row.change for row in found.rows]
    assert changes == sorted(changes, reverse=True)
    kind = [
        torch.cat([b.attn.c_proj.weight.flatten() for b in m.hf_model.transformer.h])
        for m in (base, other)
    ]
    assert found.by_kind["attn.W_O"] == pytest.approx(relative(*kind), rel=1e-4)
    assert not found.only_a
    assert not found.only_b


def test_only_what_was_changed_differs() -> None:
    found = compare(demo(), tuned(transformer__h__2__mlp__c_fc__weight=1.5)).weights
    assert [row.name for row in found.rows if row.change] == ["blocks.2.mlp.W_in"]
    assert found.rows[0].change == pytest.approx(0.5, rel=1e-5)
    with pytest.raises(WeightError, match="Did you mean"):
        _ = found["blocks.2.mlp.W_ni"]


def test_prompts_compare_streams_and_predictions() -> None:
    other = tuned(transformer__h__1__attn__c_proj__weight=3.0)
    found = compare(demo(), other, PROMPTS, top_k=3, batch_size=1).outputs
    tokenizer = demo().tokenizer
    for row, text in enumerate(PROMPTS):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
        size = ids.shape[1]
        with torch.no_grad():
            a, b = (record(m.hf_model, input_ids=ids) for m in (demo(), other))
        for layer in range(4):
            one, two = (
                r.outputs[m.hf_model.transformer.h[layer]][0].double()
                for r, m in ((a, demo()), (b, other))
            )
            wanted = torch.nn.functional.cosine_similarity(one, two, dim=-1)
            torch.testing.assert_close(
                found.cosine[layer + 1, row, :size], wanted, atol=1e-5, rtol=0
            )
            wanted = (one - two).norm(dim=-1) / one.norm(dim=-1)
            torch.testing.assert_close(
                found.relative[layer + 1, row, :size], wanted, atol=1e-4, rtol=1e-3
            )
        p, q = (r.logits[0].double().softmax(-1) for r in (a, b))
        kl = (p * (p / q).log()).sum(-1).float()
        torch.testing.assert_close(found.kl[row, :size], kl, atol=1e-4, rtol=1e-3)
        assert bool(found.kl[row, size:].isnan().all())
        for place in (0, size - 1):
            best = (q - p)[place].abs().topk(3).indices.tolist()
            one = found.changed(row, place)
            assert [token.id for token in one.tokens] == best
            for token in one.tokens:
                assert token.a == pytest.approx(float(p[place, token.id]), abs=1e-4)
                assert token.b == pytest.approx(float(q[place, token.id]), abs=1e-4)
                assert token.token == demo().to_single_str_token(token.id)
    most = found.relative.nan_to_num().amax((1, 2))
    assert float(most[:2].max()) == 0 < float(most[2])
    assert found.texts[0][1:] == demo().to_str_tokens(PROMPTS[0])[1:]
    first = found.most_changed(1)[0]
    assert first.kl == pytest.approx(float(found.kl.nan_to_num(-1).max()))
    every = found.most_changed(10**6)
    assert [one.kl for one in every] == sorted((one.kl for one in every), reverse=True)
    assert len(every) == sum(len(demo().to_tokens(text)[0]) for text in PROMPTS)
    for layer in range(5):  # of all tokens alike, however long their prompt is
        real = [found.relative[layer, row, : len(t)] for row, t in enumerate(found.texts)]
        mean = torch.cat(real).mean()
        torch.testing.assert_close(found.relative_by_layer[layer], mean)
    torch.testing.assert_close(found.cosine_by_layer[0], torch.ones(()).double())


def test_batches_and_prompt_objects_give_the_same() -> None:
    other = tuned(transformer__h__0__mlp__c_proj__weight=2.0)
    one, two = (compare(demo(), other, PROMPTS, batch_size=n).outputs for n in (1, 2))
    torch.testing.assert_close(one.kl, two.kl, equal_nan=True, atol=1e-5, rtol=1e-3)
    single = compare(demo(), other, eiffel_tower(), weights=False)
    assert single.weights is None
    text = single.outputs.texts[0]
    torch.testing.assert_close(single.outputs.kl[0], one.kl[0, : len(text)], atol=1e-5, rtol=1e-3)


# --- adapters ---------------------------------------------------------------------------------


def lora(hf_model: Any) -> Any:
    torch.manual_seed(3)
    config = LoraConfig(target_modules=["v_proj", "down_proj"], r=2, init_lora_weights=False)
    return get_peft_model(hf_model, config).eval()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads a name that transformers retires
@pytest.mark.parametrize("way", ["apart", "shared", "same"])
def test_adapters_count_as_they_act(way: str) -> None:
    bare = build(Shape("llama"))
    untouched = copy.deepcopy(bare)
    base = lensbridge.load(untouched if way == "apart" else bare)
    adapted = lensbridge.load(lora(bare))
    found = compare(adapted if way == "same" else base, adapted, tokens())
    merged = copy.deepcopy(adapted.hf_model).merge_and_unload()
    changed = {row.name for row in found.weights.rows if row.change > 1e-5}
    assert changed == {f"blocks.{i}.{w}" for i in range(2) for w in ("attn.W_V", "mlp.W_out")}
    for layer in range(2):
        one, two = (m.model.layers[layer] for m in (untouched, merged))
        wanted = relative(one.self_attn.v_proj.weight, two.self_attn.v_proj.weight)
        row = found.weights[f"blocks.{layer}.attn.W_V"]
        assert row.change == pytest.approx(wanted, rel=1e-3)
    assert not found.weights.only_a
    assert not found.weights.only_b
    with torch.no_grad():
        p, q = (m(tokens()).logits.double().softmax(-1) for m in (untouched, merged))
    torch.testing.assert_close(
        found.outputs.kl, (p * (p / q).log()).sum(-1).float(), atol=1e-4, rtol=1e-2
    )
    if way == "shared":
        turned = compare(adapted, base, tokens())
        assert (turned.a, turned.b) == ("adapted", "base")
        with torch.no_grad():
            torch.testing.assert_close(
                turned.outputs.kl, (q * (q / p).log()).sum(-1).float(), atol=1e-4, rtol=1e-2
            )


# --- weights that not both have ---------------------------------------------------------------


def test_a_larger_vocabulary_is_compared_where_both_have_it() -> None:
    base = build(Shape("llama"))
    other = copy.deepcopy(base)
    other.resize_token_embeddings(VOCABULARY := 70)
    other.model.embed_tokens.weight.data[:30] *= 2
    found = compare(lensbridge.load(base), lensbridge.load(other), tokens())
    row = found.weights["embed.W_E"]
    assert row.shapes == ((61, base.config.hidden_size), (VOCABULARY, base.config.hidden_size))
    table = base.model.embed_tokens.weight.detach()
    wanted = float(table[:30].norm() / table.norm())
    assert row.change == pytest.approx(wanted, rel=1e-5)
    assert any("first 61" in note for note in found.weights.notes)
    assert found.outputs.kl is not None


def test_ties_and_missing_weights_are_said() -> None:
    tied, free = demo(), copy.deepcopy(demo())
    free.hf_model.lm_head.weight = torch.nn.Parameter(free.W_E.detach().clone() * 2)
    found = compare(tied, free).weights
    assert found["unembed.W_U"].change == pytest.approx(1.0, rel=1e-5)
    assert any("(tied) in a" in note for note in found.notes)
    assert any("both models (tied)" in note for note in compare(tied, tuned()).weights.notes)
    base, other = build(Shape("llama")), build(Shape("gpt2"))
    with pytest.raises(InputError, match="'llama' and b as 'gpt2'"):
        compare(lensbridge.load(base), lensbridge.load(other))


def test_parameters_without_a_name_are_compared_too() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 20,
    }  # fmt: skip
    mixtral = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=3)).eval()
    other = copy.deepcopy(mixtral)
    name = next(n for n, _ in mixtral.named_parameters() if "layers.1" in n and "gate.weight" in n)
    other.get_parameter(name).data.mul_(1.25)
    found = compare(lensbridge.load(mixtral), lensbridge.load(other)).weights
    assert [row.name for row in found.rows if row.change] == [name]
    assert found[name].change == pytest.approx(0.25, rel=1e-5)
    assert found[name].layer == 1
    jamba = JambaConfig(
        **sizes, num_experts=1, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False,
        mamba_d_state=4, mamba_expand=1, mamba_dt_rank=2,
    )  # fmt: skip
    first = JambaForCausalLM(jamba).eval()
    second = copy.deepcopy(first)
    for parameter in second.parameters():
        parameter.data.mul_(1.5)
    rows = compare(lensbridge.load(first), lensbridge.load(second)).weights.rows
    assert {round(row.change, 4) for row in rows} == {0.5}
    total = sum(row.size**2 for row in rows)  # each parameter is counted once
    wanted = sum(float(p.detach().double().norm() ** 2) for p in first.parameters())
    assert total == pytest.approx(wanted)


# --- tables, pictures, messages ---------------------------------------------------------------


def test_tables_pictures_and_text() -> None:
    other = tuned(transformer__h__2__attn__c_attn__weight=1.5)
    found = compare(demo(), other, PROMPTS)
    weights = found.to_dataframe()
    assert len(weights) == len(found.weights.rows)
    assert weights["name"][0].startswith("blocks.2.attn.W_")
    stream = found.to_dataframe("stream")
    assert len(stream) == 5 * sum(map(len, found.outputs.texts))
    assert bool((stream["relative"] >= 0).all())
    changes = found.to_dataframe("tokens")
    assert len(changes) == 5 * sum(map(len, found.outputs.texts))
    text = str(found)
    for part in ("3 of", "blocks.2.attn.W_Q", "0.5", "On 2 prompts", "KL", "tied"):
        assert part in text
    picture = found.plot()
    assert picture.values[2][picture.columns.index("attn.W_Q")] == pytest.approx(0.5, rel=1e-5)
    (line,) = found.plot("stream").series.values()
    assert line == found.outputs.relative_by_layer.tolist()
    assert len(found.plot("tokens").values) == 5
    assert "<svg" in found._repr_html_()
    with pytest.raises(InputError, match="'weights', 'stream' or 'tokens'"):
        found.plot("heads")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no prompts"):
        compare(demo(), other).to_dataframe("tokens")
    with pytest.raises(InputError, match="no prompt 2"):
        found.outputs.changed(2)
    with pytest.raises(InputError, match="no position 30"):
        found.outputs.changed(0, 30)


def test_what_cannot_be_compared_says_why() -> None:
    with pytest.raises(InputError, match="same model object"):
        compare(demo(), demo())
    small, large = (lensbridge.load(build(Shape("llama", layers=n))) for n in (1, 2))
    with pytest.raises(InputError, match="n_layers 1 and 2"):
        compare(small, large)
    with pytest.raises(InputError, match="nothing to compare"):
        compare(demo(), tuned(), weights=False)
    with pytest.raises(InputError, match="1 or more"):
        compare(demo(), tuned(), top_k=0)


def test_other_tokenizers_are_refused_for_prompts_alone() -> None:
    hf_model = build(Shape("gpt2"))
    one = lensbridge.load(hf_model, tokenizer=words("w1", "w2", "w3"))
    more = lensbridge.load(copy.deepcopy(hf_model), tokenizer=words("w1", "w2", "w3", "w4"))
    turned = lensbridge.load(copy.deepcopy(hf_model), tokenizer=words("w2", "w1", "w3"))
    assert float(compare(one, more, "w1 w2").outputs.kl.max()) == 0
    assert compare(one, turned).outputs is None
    with pytest.raises(InputError, match="'w1' is 1 and 2"):
        compare(one, turned, "w1 w2")
    apart = lensbridge.load(copy.deepcopy(hf_model), tokenizer=words("x", "y", "z"))
    with pytest.raises(InputError, match="only 1 tokens"):
        compare(one, apart, "w1 w2")


def test_names_are_loaded() -> None:
    found = compare("demo", tuned(transformer__ln_f__weight=2.0), PROMPTS[0])
    assert found.a == "demo"
    assert found.weights.rows[0].name == "ln_final.w"
    assert found.weights.rows[0].layer is None
    assert "ln_final.w" in repr(found)
