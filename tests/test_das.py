"""Distributed alignment search on a model whose subspaces were put there by hand."""

from typing import Any

import pytest
import torch
from tiny_models import Shape, build, tokens
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import lensbridge
from lensbridge.errors import InputError
from lensbridge.interventions import DASResult, fit_das

D, VOCAB, FIRST = 16, 24, 20
"""The answers are the tokens from FIRST on: one for each value of two binary variables."""


@pytest.fixture(scope="module")
def planted() -> tuple[GPT2LMHeadModel, Tensor, Tensor]:
    """A model that answers with two variables of its last token, each in one known direction.

    Token t has the variables t & 1 and (t >> 1) & 1 along two orthonormal directions, beside what
    it shares with tokens of all values in the others. Attention and MLPs add nothing.
    """
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_embd=D, n_layer=2, n_head=2, n_positions=8)
    hf = GPT2LMHeadModel(config).eval()
    basis = torch.linalg.qr(torch.cat([torch.ones(D, 1), torch.randn(D, D - 1)], 1)).Q[:, 1:]
    first, second, rest = basis[:, 0], basis[:, 1], basis[:, 2:]
    signs = torch.tensor([[2.0 * (t & 1) - 1, 2.0 * ((t >> 1) & 1) - 1] for t in range(VOCAB)])
    head = torch.zeros(VOCAB, D)
    for value in range(4):
        a, b = 2.0 * (value & 1) - 1, 2.0 * (value >> 1) - 1
        head[FIRST + value] = 4 * (a * first + b * second)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "c_proj" in name or "wpe" in name:
                parameter.zero_()
        noise = torch.randn(VOCAB // 4, D - 3).repeat_interleave(4, dim=0) @ rest.T
        table = signs[:, :1] * first + signs[:, 1:] * second + noise
        hf.transformer.wte.weight.copy_(table)
        hf.lm_head.weight = torch.nn.Parameter(head)
    return hf, first, second


def pairs(n: int = 160) -> tuple[Tensor, Tensor, Tensor]:
    """Base and source, and the answer with the first variable from the source's last token."""
    base, source = torch.randint(0, FIRST, (2, n, 4))
    here, there = base[:, -1], source[:, -1]
    return base, source, FIRST + (there & 1) + 2 * ((here >> 1) & 1)


@pytest.fixture(scope="module")
def found(planted: tuple[GPT2LMHeadModel, Tensor, Tensor]) -> DASResult:
    torch.manual_seed(1)
    model = lensbridge.load(planted[0])
    before = {name: one.clone() for name, one in planted[0].state_dict().items()}
    result = fit_das(
        model, *pairs(), ("resid_pre", 1), -1, dim=1, epochs=30, lr=0.03, batch_size=20
    )
    assert all(torch.equal(one, before[name]) for name, one in planted[0].state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in planted[0].parameters())
    assert all(not module._forward_hooks for module in planted[0].modules())
    return result


def test_it_finds_the_direction_that_was_planted(
    planted: tuple[GPT2LMHeadModel, Tensor, Tensor], found: DASResult
) -> None:
    _, first, second = planted
    direction = found.subspace[:, 0]
    assert abs(float(direction @ first)) > 0.97
    assert abs(float(direction @ second)) < 0.2
    assert found.accuracy == found.train_accuracy == 1.0
    assert found.losses[-1] < 0.2 * found.losses[0]


def test_the_controls_do_worse(found: DASResult) -> None:
    assert set(found.controls) == {"none", "whole", "random", "norm_matched", "shuffled"}
    assert all(value < 0.8 for value in found.controls.values())


def test_its_picture_has_the_accuracy_and_every_control(found: DASResult) -> None:
    picture = found.plot()
    assert list(picture.values) == [found.accuracy, *found.controls.values()]
    assert picture.labels[:3] == ["learned subspace", "nothing interchanged", "whole vector"]


def test_held_out_accuracy_is_that_of_the_interchange_by_hand(
    planted: tuple[GPT2LMHeadModel, Tensor, Tensor], found: DASResult
) -> None:
    torch.manual_seed(1)
    base, source, labels = pairs()
    held = list(found.held_out)
    assert len(held) == 40
    hf, basis = planted[0], found.subspace
    with torch.no_grad():
        there = hf(source[held], output_hidden_states=True).hidden_states[1][:, -1]

        def edit(module: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden = args[0].clone()
            hidden[:, -1] += (there - hidden[:, -1]) @ basis @ basis.T
            return (hidden, *args[1:])

        handle = hf.transformer.h[1].register_forward_pre_hook(edit)
        right = hf(base[held]).logits[:, -1].argmax(-1) == labels[held]
        handle.remove()
        model = lensbridge.load(hf)
        _, cache = model.run_with_cache(source[held], names_filter=found.site)
        again = model.run_with_interventions(base[held], found.swap(cache))
    assert float(right.float().mean()) == found.accuracy
    assert float((again[:, -1].argmax(-1) == labels[held]).float().mean()) == found.accuracy


def test_positions_for_each_pair(planted: tuple[GPT2LMHeadModel, Tensor, Tensor]) -> None:
    """The variable is read from another column in every source."""
    model = lensbridge.load(planted[0])
    base, source, _ = pairs(64)
    places = torch.randint(0, 4, (64, 1))
    taken = source.gather(1, places)[:, 0]
    labels = FIRST + (taken & 1) + 2 * ((base[:, -1] >> 1) & 1)
    result = fit_das(
        model, base, source, labels, ("resid_post", 0), [[3]] * 64, 1,
        source_positions=places, epochs=40, lr=0.03, batch_size=12, n_random=2,
    )  # fmt: skip
    assert result.accuracy == 1.0
    assert abs(float(result.subspace[:, 0] @ planted[1])) > 0.97


def test_padding_and_a_choice_of_answers(planted: tuple[GPT2LMHeadModel, Tensor, Tensor]) -> None:
    """Columns of padding change nothing, nor do tokens that are no answer."""
    torch.manual_seed(2)
    model = lensbridge.load(planted[0])
    base, source, labels = pairs(64)
    options: dict[str, Any] = {"epochs": 4, "batch_size": 16, "n_random": 1}
    plain = fit_das(model, base, source, labels, ("resid_pre", 1), "last", 1, **options)
    padded = [
        {
            "input_ids": torch.cat([torch.zeros(64, n, dtype=torch.long), ids], dim=1),
            "attention_mask": torch.cat([torch.zeros(64, n), torch.ones(64, 4)], dim=1).long(),
        }
        for ids, n in ((base, 1), (source, 3))
    ]
    found = fit_das(model, *padded, labels, ("resid_pre", 1), "last", 1, **options)
    torch.testing.assert_close(found.subspace, plain.subspace)
    assert found.controls == plain.controls
    answers = [*range(FIRST, FIRST + 4)]
    among = fit_das(
        model, base, source, labels, ("resid_pre", 1), -1, 1, answers=answers, **options
    )
    wider = [one + 0.01 for one in plain.losses]
    assert all(one < other for one, other in zip(among.losses, wider, strict=True))
    with pytest.raises(InputError, match="are not among the answers"):
        fit_das(model, base, source, labels, ("resid_pre", 1), -1, 1, answers=[FIRST])


def test_heads() -> None:
    hf = build(Shape("gpt2"))
    model, base, source = lensbridge.load(hf), tokens(12, 5), tokens(12, 5, seed=1)
    labels = tokens(12, 5, seed=2)[:, 0]
    found = fit_das(
        model, base, source, labels, ("z", 1), -1, 2, heads=[1, 3], epochs=2, answers=[*range(61)]
    )
    assert found.subspace.shape == (6, 2)
    held = list(found.held_out)
    _, cache = model.run_with_cache(source[held], names_filter=("z", 1))
    with torch.no_grad():
        swap = found.swap(cache)
        assert swap.heads == (1, 3)
        logits: Any = model.run_with_interventions(base[held], swap)
    right = logits[:, -1].argmax(-1) == labels[held]
    assert float(right.float().mean()) == found.accuracy


def test_what_does_not_fit_is_refused(planted: tuple[GPT2LMHeadModel, Tensor, Tensor]) -> None:
    model = lensbridge.load(planted[0])
    base, source, labels = pairs(8)
    with pytest.raises(InputError, match="dim is 1 to 16"):
        fit_das(model, base, source, labels, ("resid_pre", 1), -1, dim=17)
    for wrong, message in (
        ({"epochs": 0}, "at least 1"),
        ({"answer_position": 4}, "answer_position 4 is out of range; there are 4"),
        ({"labels": [99] * 8}, "Labels are tokens"),
        ({"site": ("pattern", 1)}, "counts no dimensions"),
    ):
        call: dict[str, Any] = {"labels": labels, "site": ("resid_pre", 1), **wrong}
        with pytest.raises(InputError, match=message):
            fit_das(model, base, source, positions=-1, dim=1, **call)
    with pytest.raises(InputError, match="means 2 points"):
        fit_das(model, base, source, labels, "resid_pre", -1, dim=1)
    with pytest.raises(InputError, match="are \\[pair, pos\\]"):
        fit_das(model, base, source[:3], labels, ("resid_pre", 1), -1, dim=1)
    with pytest.raises(InputError, match="leaves none"):
        fit_das(model, base, source, labels, ("resid_pre", 1), -1, dim=1, held_out=1.0)
