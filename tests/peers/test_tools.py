"""The analyst's tools beside TransformerLens's own, on the demo model and on tiny random ones."""

from functools import cache
from typing import Any

import datasets
import pandas
import pytest
import torch
from peers.twins import twins
from transformer_lens import HookedTransformer, HookedTransformerConfig, evals, head_detector, utils
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

import lensbridge
from lensbridge import LensModel, analysis, get_act_name
from lensbridge.analysis import detect_head, direct_logit_attribution, logit_lens
from lensbridge.evals import IOIDataset, evaluate_on_dataset, ioi_eval

pytestmark = pytest.mark.peers

TEXT = "When John and Mary went to the store, Mary gave a bottle to"
KINDS = ("previous_token_head", "duplicate_token_head", "induction_head")


@cache
def ours() -> LensModel:
    return lensbridge.load("demo")


@cache
def classic() -> HookedTransformer:
    """TransformerLens's copy of the demo model."""
    hf: Any = ours().hf_model
    config = HookedTransformerConfig(
        n_layers=4,
        d_model=128,
        n_heads=4,
        d_head=32,
        d_mlp=hf.config.n_inner or 512,
        d_vocab=hf.config.vocab_size,
        n_ctx=hf.config.n_positions,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=hf.config.layer_norm_epsilon,
        device="cpu",
        init_weights=False,
        original_architecture="GPT2LMHeadModel",
    )
    model = HookedTransformer(config, tokenizer=ours().tokenizer)
    model.load_state_dict(convert_gpt2_weights(hf, config), strict=False)
    return model.eval()


def close(found: torch.Tensor, wanted: torch.Tensor, size: float = 2e-4) -> None:
    torch.testing.assert_close(found.float(), wanted.float(), rtol=size, atol=size)


@torch.no_grad()
def test_the_two_are_one_model() -> None:
    ids = ours().to_tokens(TEXT)
    assert torch.equal(classic().to_tokens(TEXT), ids)
    close(ours()(ids), classic()(ids))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("measure", ["mul", "abs"])
def test_head_detection(kind: Any, measure: Any) -> None:
    texts = [TEXT, "The store and the store, the store and the store."]
    for bos in (False, True):
        for current in (False, True):
            how: Any = {
                "exclude_bos": bos,
                "exclude_current_token": current,
                "error_measure": measure,
            }
            for text in (*texts, texts):
                wanted = head_detector.detect_head(classic(), text, kind, **how)
                close(detect_head(ours(), text, kind, **how), wanted, 6e-4)  # it rounds to 3 places
    some = {1: [0, 2], 3: [1]}
    wanted = head_detector.detect_head(classic(), TEXT, kind, heads=some)
    close(detect_head(ours(), TEXT, kind, heads=some), wanted)
    pattern = torch.eye(ours().to_tokens(TEXT).shape[1])
    wanted = head_detector.detect_head(classic(), TEXT, pattern, error_measure=measure)
    close(detect_head(ours(), TEXT, pattern, error_measure=measure), wanted, 6e-4)


def test_detection_patterns() -> None:
    ids = torch.randint(0, 5, (1, 12))
    for kind in KINDS:
        name = f"get_{kind}_detection_pattern"
        wanted = getattr(head_detector, name)(ids)
        assert torch.equal(getattr(analysis, name)(ids[0]), wanted)


@torch.no_grad()
@pytest.mark.parametrize("family", ["GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM"])
def test_the_lens_is_the_accumulated_stream_through_norm_and_head(family: str) -> None:
    hf, copy = twins(family)
    ids = torch.randint(3, 90, (2, 7))
    _, cache = copy.run_with_cache(ids)
    stack, labels = cache.accumulated_resid(return_labels=True, apply_ln=False)
    wanted = torch.stack([copy.unembed(copy.ln_final(row)) for row in stack])
    result = logit_lens(lensbridge.load(hf), ids, positions=None)
    assert result.labels == labels
    close(result.values, wanted)
    if family != "GPTNeoXForCausalLM":  # whose layers have nothing between attention and MLP
        _, labels = cache.accumulated_resid(return_labels=True, incl_mid=True)
        assert logit_lens(lensbridge.load(hf), ids, incl_mid=True).labels == labels


@torch.no_grad()
@pytest.mark.parametrize("family", ["GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM"])
def test_attribution_with_unfolded_weights_is_theirs_with_folded_ones(family: str) -> None:
    hf, copy = twins(family, fold_ln=True)
    ids = torch.randint(3, 90, (2, 7))
    right, wrong = torch.tensor([5, 8]), torch.tensor([11, 30])
    _, cache = copy.run_with_cache(ids)
    model = lensbridge.load(hf)

    def attributed(stack: torch.Tensor) -> torch.Tensor:
        return cache.logit_attrs(stack, right, incorrect_tokens=wrong, pos_slice=-1)

    heads, labels = cache.stack_head_results(return_labels=True, pos_slice=-1)
    found = direct_logit_attribution(model, ids, right, wrong, unit="head")
    assert found.labels[:-1] == labels
    # folding moves the value biases nowhere, but writes are the same; only b_U took the norm's bias
    close(found.attribution[:-1], attributed(heads), 5e-4)
    parts, labels = cache.decompose_resid(return_labels=True, pos_slice=-1)
    found = direct_logit_attribution(model, ids, right, wrong)
    assert found.labels == labels
    close(found.attribution, attributed(parts), 5e-4)
    neurons, labels = cache.stack_neuron_results(-1, return_labels=True, pos_slice=-1)
    found = direct_logit_attribution(model, ids, right, wrong, unit="neuron")
    assert found.labels[:-1] == labels
    close(found.attribution[:-1], attributed(neurons), 5e-4)


@torch.no_grad()
def test_evaluations() -> None:
    data = IOIDataset(ours().tokenizer, num_samples=30, seed=2)
    found, wanted = ioi_eval(ours(), data), evals.ioi_eval(classic(), data)
    assert found["Accuracy"] == pytest.approx(wanted["Accuracy"])
    assert found["Logit Difference"] == pytest.approx(wanted["Logit Difference"], abs=1e-3)
    names = {"names": ["John", "Mary", "Tom"], "num_samples": 10, "seed": 1}
    other = evals.IOIDataset(ours().tokenizer, **names)  # theirs, read by ours
    found, wanted = ioi_eval(ours(), other), evals.ioi_eval(classic(), other)
    assert found["Logit Difference"] == pytest.approx(wanted["Logit Difference"], abs=1e-3)
    rows = [{"tokens": torch.randint(1, 500, (3, 20))} for _ in range(4)]
    theirs = evals.evaluate_on_dataset(classic(), rows, device="cpu")
    assert evaluate_on_dataset(ours(), rows) == pytest.approx(theirs, abs=1e-4)


def test_metrics() -> None:
    logits, ids = torch.randn(3, 9, 20), torch.randint(0, 20, (3, 9))
    assert analysis.lm_accuracy(logits, ids) == utils.lm_accuracy(logits, ids)
    each = utils.lm_accuracy(logits, ids, per_token=True)
    assert torch.equal(analysis.lm_accuracy(logits, ids, per_token=True), each)
    table = analysis.logits_to_df(logits[0, 0], ours().tokenizer, top_k=5)
    wanted = utils.logits_to_df(logits[0, 0], ours().tokenizer, top_k=5)
    assert list(table.columns) == list(wanted.columns)
    assert table["token_index"].tolist() == wanted["token_index"].tolist()
    pandas.testing.assert_series_equal(
        table["probability"], wanted["probability"], check_dtype=False, rtol=1e-4, check_index=False
    )


def test_tables_are_data_frames() -> None:
    lens = logit_lens(ours(), TEXT, top_k=2).to_dataframe()
    assert isinstance(lens, pandas.DataFrame)
    assert lens.groupby("layer", sort=False).size().tolist() == [2] * 5
    parts = direct_logit_attribution(ours(), TEXT, " John")
    frame = parts.to_dataframe()
    assert frame["attribution"].sum() == pytest.approx(float(parts.attribution.sum()), abs=1e-4)


@pytest.mark.parametrize("how", [{"top_k": 3}, {"top_p": 0.6}, {"temperature": 0.3}])
def test_sampling(how: dict[str, Any]) -> None:
    logits = torch.randn(1, 8).expand(4000, 8)
    counts = [
        sample(logits, **how).bincount(minlength=8) / 4000
        for sample in (analysis.sample_logits, utils.sample_logits)
    ]
    assert torch.equal(counts[0] > 0, counts[1] > 0)
    torch.testing.assert_close(*counts, atol=0.05, rtol=0)


@pytest.mark.parametrize("bos", [True, False])
def test_rows_of_tokens(bos: bool) -> None:
    texts = [TEXT, "The Eiffel Tower is in the city of Paris."] * 40
    data = datasets.Dataset.from_dict({"text": texts, "id": list(range(80))})
    how: dict[str, Any] = {"max_length": 16, "add_bos_token": bos, "num_proc": None}
    wanted = utils.tokenize_and_concatenate(data, ours().tokenizer, **how)["tokens"][:]
    found = analysis.tokenize_and_concatenate(data, ours().tokenizer, **how)
    assert isinstance(found, datasets.Dataset)
    assert torch.equal(found["tokens"][:], wanted)
    plain = analysis.tokenize_and_concatenate(texts, ours().tokenizer, **how)
    assert torch.equal(plain["tokens"], wanted)
    lazy = analysis.tokenize_and_concatenate(
        data.to_iterable_dataset(), ours().tokenizer, streaming=True, **how
    )
    assert torch.equal(torch.stack([one["tokens"] for one in lazy]), wanted)


def test_names() -> None:
    layered = (
        "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "result",
        "pattern", "attn_scores", "rot_q", "rot_k", "pre", "post", "pre_linear", "q_input",
        "k_input", "v_input", "attn_in", "mlp_in", "attn", "attn_logits", "key", "query", "value",
        "mlp_pre", "mlp_post",
    )  # fmt: skip
    for name in layered:
        for layer in (0, 7, "3"):
            assert get_act_name(name, layer) == utils.get_act_name(name, layer)
    for kind in ("ln1", "ln2"):
        for name in ("scale", "normalized"):
            assert get_act_name(name, 2, kind) == utils.get_act_name(name, 2, kind)
            assert get_act_name(f"{name}2{kind}") == utils.get_act_name(f"{name}2{kind}")
    outside = ("embed", "pos_embed", "scale", "normalized", "blocks.3.attn.hook_q", "k6", "pre5")
    for name in outside:
        assert get_act_name(name) == utils.get_act_name(name)


def test_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    for answer in ("John", ["John", "Mary"]):
        utils.test_prompt(TEXT, answer, classic())
        printed = capsys.readouterr().out
        result = analysis.test_prompt(TEXT, answer, ours(), print_details=False)
        pairs = [(one[0].token, one[0].rank) for one in result.answers]
        assert f"{pairs}" in printed.replace("\n", "")
