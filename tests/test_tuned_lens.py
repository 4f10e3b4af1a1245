"""Tuned lenses against a loop over plain modules; KL, entropy and ranks against formulas."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import Shape, build, final_norm_of, left_padded, tokens
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import lensbridge
from lensbridge.analysis import TunedLens, fit_tuned_lens, logit_lens
from lensbridge.demo.text import FACT_TEMPLATES, LANDMARKS
from lensbridge.errors import InputError
from lensbridge.interventions import Add
from lensbridge.model import LensModel
from lensbridge.viz import Heatmap, Lines

FORMATS = Path(__file__).parent / "formats"
EIFFEL = "The Eiffel Tower is"


def fitted_by_hand(hf: Any, family: str, batches: list[Tensor], lr: float) -> list[nn.Linear]:
    """What tuned-lens does: a linear module for each hidden state, added to it, and its loss."""
    norm, head, config = final_norm_of(hf, family), hf.get_output_embeddings(), hf.config
    maps = [nn.Linear(config.hidden_size, config.hidden_size) for _ in range(2)]
    for one in maps:
        nn.init.zeros_(one.weight)
        nn.init.zeros_(one.bias)
    search = torch.optim.Adam([p for one in maps for p in one.parameters()], lr=lr)
    for number, ids in enumerate(batches):
        with torch.no_grad():
            out = hf(ids, output_hidden_states=True)
        for layer, one in enumerate(maps):
            stream = out.hidden_states[layer]
            found = head(norm(stream + one(stream))).log_softmax(-1)
            wanted = out.logits.log_softmax(-1)
            (wanted.exp() * (wanted - found)).sum(-1).mean().backward()
        search.param_groups[0]["lr"] = lr * (1 - number / len(batches))
        search.step()
        search.zero_grad()
    return maps


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_fit_is_that_of_a_plain_loop(family: str) -> None:
    hf = build(Shape(family))
    ids = tokens(9, 6)
    before = {name: one.clone() for name, one in hf.state_dict().items()}
    wanted = fitted_by_hand(hf, family, [ids[:4], ids[4:8], ids[8:]], lr=0.01)
    hf.zero_grad()
    model = lensbridge.load(hf)
    tuned = fit_tuned_lens(model, list(ids), batch_size=4, lr=0.01)
    for layer, one in enumerate(wanted):
        torch.testing.assert_close(tuned.weight[layer], one.weight.detach(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(tuned.bias[layer], one.bias.detach(), rtol=1e-3, atol=1e-5)
    assert all(torch.equal(one, before[name]) for name, one in hf.state_dict().items())
    assert all(one.grad is None for one in hf.parameters())
    assert tuned.losses is not None
    assert tuned.losses.shape == (3, 2)


def test_the_first_loss_is_the_divergence_of_the_logit_lens() -> None:
    model = lensbridge.load(build(Shape("gpt2")))
    ids, mask = left_padded(3, 7)
    given = {"input_ids": ids, "attention_mask": mask}
    result = logit_lens(model, given, positions=None, kl=True)
    real = result.where.real
    wanted = torch.stack([row[real].mean() for row in result.kl[:-1]])
    texts = [row[own.bool()] for row, own in zip(ids, mask, strict=True)]
    losses = [fit_tuned_lens(model, [text], steps=1).losses for text in texts]
    sizes = torch.tensor([len(text) for text in texts])
    found = sum(one[0] * n for one, n in zip(losses, sizes, strict=True) if one is not None)
    torch.testing.assert_close(found / sizes.sum(), wanted, rtol=1e-3, atol=1e-4)


def test_a_tuned_lens_is_nearer_to_what_the_model_says() -> None:
    model = lensbridge.load("demo")
    every = [text.format(landmark=name) for name in [*LANDMARKS][:9] for text in FACT_TEMPLATES]
    texts, held_out = every[:-6], every[-1]
    tuned = fit_tuned_lens(model, texts, steps=20, batch_size=12, lr=2e-3)
    before = model.logit_lens(held_out, positions=None, kl=True).kl.mean((1, 2))
    after = model.logit_lens(held_out, positions=None, kl=True, lens=tuned).kl.mean((1, 2))
    assert bool((after[:-1] < before[:-1]).all())
    assert float(after[-1]) < 1e-6
    more = fit_tuned_lens(model, iter(texts), batch_size=12, start=tuned, optimizer="sgd")
    assert more.losses is not None
    assert tuned.losses is not None
    assert bool((more.losses[0] < tuned.losses[0]).all())


def test_lenses_of_the_package_are_read_and_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=8, n_head=2, vocab_size=11, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    hf = GPT2LMHeadModel(config).eval()
    model = lensbridge.load(hf)
    tuned = TunedLens.load(FORMATS / "tuned-lens", model)  # by tuned-lens 0.2.0
    W, b = torch.arange(64.0).reshape(8, 8) / 64, torch.arange(8.0) / 64
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        states = hf(ids, output_hidden_states=True).hidden_states
        wanted = [hf.lm_head(hf.transformer.ln_f(h + h @ W.T + b)) for h in states[:2]]
        wanted.append(hf(ids).logits)
    result = model.logit_lens(ids, positions=None, lens=tuned)
    torch.testing.assert_close(result.values, torch.stack(wanted), rtol=1e-4, atol=1e-5)
    second = model.logit_lens(ids, positions=None, layers=[1], lens=tuned)
    torch.testing.assert_close(second.values[0], wanted[1], rtol=1e-4, atol=1e-5)
    listed = model.logit_lens(ids, positions=None, lens=[tuned[0], tuned[1]])
    assert torch.equal(listed.values, result.values)
    tuned.save(tmp_path / "lens")
    again = TunedLens.load(tmp_path / "lens")
    assert torch.equal(again.weight, tuned.weight)
    state = torch.load(tmp_path / "lens" / "params.pt", weights_only=True)
    translators = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
    translators.load_state_dict(state)  # as tuned-lens does


def test_what_is_no_lens_of_this_model_is_refused(tmp_path: Path) -> None:
    model = lensbridge.load("demo")
    with pytest.raises(InputError, match="2 layers of width 8; the model has 4 layers"):
        TunedLens.load(FORMATS / "tuned-lens", model)
    with pytest.raises(InputError, match=r"has no config\.json and no params\.pt"):
        TunedLens.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "params.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as a tuned lens"):
        TunedLens.load(tmp_path)
    lens = TunedLens(torch.zeros(4, 128, 128), torch.zeros(4, 128))
    with pytest.raises(InputError, match="no map for 0_mid"):
        model.logit_lens(EIFFEL, incl_mid=True, lens=lens)
    with pytest.raises(InputError, match="no texts"):
        fit_tuned_lens(model, [])
    with pytest.raises(InputError, match="steps is None or a number"):
        fit_tuned_lens(model, [EIFFEL], steps=0)
    with pytest.raises(InputError, match="optimizer is"):
        fit_tuned_lens(model, [EIFFEL], optimizer="adamw")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="A tuned lens has weights"):
        TunedLens(torch.zeros(4, 128, 127), torch.zeros(4, 128))


# --- KL divergence, entropy and rank by layer -------------------------------------------------


@pytest.mark.parametrize("positions", [None, -1, [0, 2]])
def test_divergences_are_those_of_the_whole_distributions(positions: Any) -> None:
    model = lensbridge.load(build(Shape("llama")))
    ids = tokens(3, 5)
    result = logit_lens(model, ids, positions=positions, kl=True, return_type="log_probs")
    whole, own = result.values.double(), result.values[-1].double()
    torch.testing.assert_close(
        result.kl.double(), (own.exp() * (own - whole)).sum(-1), rtol=1e-3, atol=1e-5
    )
    some = logit_lens(
        model, ids, positions=positions, kl=True, layers=[1, 0], chunk_size=2, top_k=1
    )
    torch.testing.assert_close(some.kl, result.kl[[1, 0]], rtol=1e-3, atol=1e-5)
    one = logit_lens(model, ids, positions=positions, kl=True, batch_slice=[2])
    torch.testing.assert_close(one.kl, result.kl[:, [2]], rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match="pass kl=True"):
        _ = logit_lens(model, ids).kl


def test_pictures_by_layer_have_the_numbers() -> None:
    model = lensbridge.load("demo")
    result = model.logit_lens(EIFFEL, targets=[" in", " Rome"], kl=True)
    for quantity, wanted in (("kl", result.kl), ("entropy", result.entropy)):
        drawn = result.plot(quantity=quantity)  # type: ignore[arg-type]
        assert isinstance(drawn, Lines)
        (line,) = drawn.series.values()
        assert line == wanted[:, 0].tolist()
    ranks = result.plot(quantity="rank")
    assert isinstance(ranks, Lines)
    assert list(ranks.series) == ["·in", "·Rome"]
    assert list(ranks.series.values())[1] == result.rank_trajectory(" Rome")[:, 0].tolist()
    every = model.logit_lens(EIFFEL, positions=None, kl=True).plot(quantity="kl")
    assert isinstance(every, Heatmap)
    with pytest.raises(InputError, match="quantity is"):
        result.plot(quantity="surprise")  # type: ignore[arg-type]


# --- while the model writes -------------------------------------------------------------------


def written(model: LensModel, text: str, count: int) -> list[int]:
    ids = model.to_tokens(text)
    for _ in range(count):
        ids = torch.cat([ids, model.hf_model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, -count:].tolist()


def test_the_lens_reads_what_predicted_each_new_token() -> None:
    model = lensbridge.load("demo")
    new = written(model, EIFFEL, 5)
    result = model.logit_lens(EIFFEL, generate={"max_new_tokens": 5}, return_type="probs", kl=True)
    assert result.ids is not None
    assert result.ids[-1, 0, :, 0].tolist() == new
    assert result.rank_trajectory()[-1, 0].tolist() == [0] * 5
    whole = torch.cat([model.to_tokens(EIFFEL), torch.tensor([new])], dim=1)
    plain = model.logit_lens(whole, positions=slice(-6, -1), return_type="probs", kl=True)
    wanted = plain.values.gather(-1, torch.tensor(new).expand(5, 1, 5)[..., None])
    torch.testing.assert_close(result.values, wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(result.kl, plain.kl, rtol=1e-3, atol=1e-4)
    texts = [EIFFEL, "To visit the Louvre Museum, you should travel to"]
    both = model.logit_lens(texts, generate={"max_new_tokens": 3}, top_k=1)
    for row, text in enumerate(texts):
        assert both.ids is not None
        assert both.ids[-1, row, :, 0].tolist() == written(model, text, 3)


def test_interventions_act_while_the_lens_reads() -> None:
    model = lensbridge.load("demo")
    add = Add(("resid_post", 1), 0.5 * model.W_U[:, model.to_single_token(" Rome")].detach())
    how = {"max_new_tokens": 2, "interventions": [add]}
    result = model.logit_lens(EIFFEL, generate=how, targets=" Rome")
    ids = model.to_tokens(EIFFEL)
    for _ in range(2):
        logits = model.run_with_interventions(ids, [add])
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    edited = model.run_with_interventions(ids, [add])[0, -3:-1]
    wanted = edited[:, model.to_single_token(" Rome")]
    torch.testing.assert_close(result.values[-1, 0, :, 0], wanted, rtol=1e-3, atol=1e-3)


def test_what_a_generation_does_not_have_is_refused() -> None:
    model = lensbridge.load("demo")
    with pytest.raises(InputError, match="leave out positions"):
        model.logit_lens(EIFFEL, generate={}, positions=[0])
    with pytest.raises(InputError, match="return_type"):
        model.logit_lens(EIFFEL, generate={"return_type": "str"})
    _, cache = model.run_with_cache(EIFFEL)
    with pytest.raises(InputError, match="an input is needed"):
        model.logit_lens(cache, generate={})  # type: ignore[arg-type]
