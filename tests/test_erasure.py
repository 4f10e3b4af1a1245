"""Affine erasure: the closed form by another formula, and all layers by plain PyTorch hooks."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_interchange import output_of
from test_interventions import editing
from tiny_models import Layer, Shape, build, tokens
from torch import Tensor

import lensbridge
from lensbridge.errors import InputError, ShapeError
from lensbridge.interventions import Erase, fit_erasure, from_json, leace, to_json
from lensbridge.model import LensModel

IDS = tokens(60, 6)
CLASSES = [i % 3 for i in range(60)]


def by_formula(x: Tensor, z: Tensor) -> Tensor:
    """What is left of `x`: with `S = cov(x)`, `C = cov(x, z)` that is less its regression on
    `C^T S^-1 x`, mapped by C."""
    x, z = x.double(), z.double()
    centred, concept = x - x.mean(0), z - z.mean(0)
    S, C = centred.T @ centred, centred.T @ concept
    whitened = torch.linalg.solve(S, C)
    return x - centred @ whitened @ torch.linalg.pinv(C.T @ whitened, rtol=1e-9) @ C.T


def test_the_closed_form_is_that_of_another_formula() -> None:
    x, z = torch.randn(200, 9, dtype=torch.float64), torch.randn(200, 2, dtype=torch.float64)
    x[:, :2] += 3 * z
    erased = leace(x, z)(x)
    torch.testing.assert_close(erased, by_formula(x, z), rtol=1e-8, atol=1e-8)
    left = (erased - erased.mean(0)).T @ (z - z.mean(0)) / 200
    assert float(left.abs().max()) < 1e-10
    torch.testing.assert_close(erased.mean(0), x.mean(0))
    classes = torch.nn.functional.one_hot(torch.tensor([i % 4 for i in range(200)])).double()
    torch.testing.assert_close(leace(x, classes)(x), by_formula(x, classes), rtol=1e-7, atol=1e-7)


def test_few_examples_are_erased_within_their_span() -> None:
    x = torch.randn(12, 40)
    z = torch.tensor([0.0] * 6 + [1.0] * 6)
    erased = leace(x, z)(x)
    torch.testing.assert_close(erased[:6].mean(0), erased[6:].mean(0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(erased, x.mean(0).expand_as(x), atol=0.1)


def test_rounding_is_no_concept() -> None:
    """Rows that are the same state, computed twice, differ in their last digits alone."""
    torch.manual_seed(0)
    states = torch.randn(20, 40, dtype=torch.float64)
    rows = states[torch.randint(20, (300,))]
    z = torch.randint(2, (300,)).double() + 3 * rows[:, 0]
    noisy = (rows * (1 + 2e-7 * torch.randn(300, 40, dtype=torch.float64))).float()
    erased = leace(noisy, z)(rows)
    torch.testing.assert_close(erased, leace(rows, z)(rows), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def opened() -> tuple[Any, LensModel]:
    hf = build(Shape("gpt2"))
    return hf, lensbridge.load(hf)


def scrubbed_by_hand(hf: Any, z: Tensor, columns: list[int]) -> list[Tensor]:
    """What is left at each layer if layers are erased one after the other, by plain hooks."""
    found: list[Tensor] = []
    edits: list[Any] = []
    for layer in range(2):
        block = Layer(hf, "gpt2", layer).block
        with torch.no_grad(), ExitStack() as stack:
            for edit in edits:
                stack.enter_context(editing(*edit))
            value = output_of(hf, block, "output", input_ids=IDS)
        rows = value[:, columns].flatten(0, 1)
        left = by_formula(rows, z.repeat_interleave(len(columns), 0)).to(value.dtype)
        new = value.clone()
        new[:, columns] = left.unflatten(0, (len(value), -1))
        edits.append((block, "output", lambda old, new=new: new))
        found.append(new)
    return found


@pytest.mark.parametrize("positions", [-1, [2, 4], None])
def test_all_layers_are_erased_in_one_run(opened: Any, positions: Any) -> None:
    hf, model = opened
    z = torch.nn.functional.one_hot(torch.tensor(CLASSES)).double()
    columns = {-1: [5]}.get(positions, positions or [*range(6)]) if positions != [2, 4] else [2, 4]
    wanted = scrubbed_by_hand(hf, z, columns)
    runs: list[int] = []
    handle = hf.transformer.wte.register_forward_hook(lambda *_: runs.append(1))
    erasers = fit_erasure(model, IDS, CLASSES, positions=positions, exclude_special_tokens=False)
    handle.remove()
    assert len(runs) == 1
    with model.intervene(erasers):
        _, cache = model.run_with_cache(IDS, "resid_post")
    for layer, own in enumerate(wanted):
        torch.testing.assert_close(cache["resid_post", layer], own, rtol=1e-3, atol=1e-3)
    parts = fit_erasure(
        model, IDS, CLASSES, positions=positions, exclude_special_tokens=False, batch_size=25
    )
    for one, other in zip(erasers, parts, strict=True):
        given = cache["resid_post", 0]
        torch.testing.assert_close(one.eraser(given), other.eraser(given), rtol=1e-3, atol=1e-3)


def test_clean_activations_are_those_of_the_model(opened: Any) -> None:
    hf, model = opened
    numbers = [float(i) ** 0.5 for i in range(60)]
    found = fit_erasure(model, IDS, numbers, positions=-1, upstream="clean", batch_size=16)
    for layer in range(2):
        own = output_of(hf, Layer(hf, "gpt2", layer).block, "output", input_ids=IDS)[:, -1]
        wanted = by_formula(own, torch.tensor(numbers)[:, None])
        erased = found[layer].eraser(own).double()
        torch.testing.assert_close(erased, wanted, rtol=1e-3, atol=1e-3)


def test_a_classifier_finds_nothing_in_padded_texts() -> None:
    model = lensbridge.load("demo")
    names = ["Eiffel Tower", "Louvre", "Galata Tower", "Colosseum", "Brandenburg Gate"]
    texts = [f"{start} {name} is" for name in names for start in ("The", "We know that the")]
    labels = [text.startswith("The") for text in texts]
    erasers = fit_erasure(model, texts, labels, positions=-1)

    def score() -> float:
        _, cache = model.run_with_cache(texts, "resid_post")
        rows = cache.last_token("resid_post", 3).double().numpy()
        return LogisticRegression(C=1e3, max_iter=10_000).fit(rows, labels).score(rows, labels)

    assert score() == 1.0
    with model.intervene(erasers):
        assert score() < 0.8


def test_tokens_have_labels_of_their_own(opened: Any) -> None:
    hf, model = opened
    each = [[(i + j) % 2 for j in range(6)] for i in range(60)]
    found = fit_erasure(model, IDS, each, ("resid_post", 0), exclude_special_tokens=False)
    own = output_of(hf, Layer(hf, "gpt2", 0).block, "output", input_ids=IDS)
    wanted = by_formula(own.flatten(0, 1), torch.tensor(each).double().reshape(-1, 1))
    erased = found[0].eraser(own).flatten(0, 1).double()
    torch.testing.assert_close(erased, wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="more tokens than labels"):
        fit_erasure(model, IDS, [[0, 1]] * 60, exclude_special_tokens=False)


@dataclass
class Foreign:
    """An eraser with the attributes of concept-erasure's."""

    proj_left: Tensor
    proj_right: Tensor
    bias: Tensor | None


def test_erasers_of_another_library_and_files(opened: Any) -> None:
    _, model = opened
    left, right, bias = torch.randn(24, 2), torch.randn(2, 24), torch.randn(24)
    made = fit_erasure(
        model, IDS, CLASSES, ("resid_post", 1), fit=lambda x, z: Foreign(left, right, bias)
    )
    (again,) = from_json(to_json(made))
    x = torch.randn(3, 24)
    assert isinstance(again, Erase)
    wanted = x - (x - bias) @ right.T @ left.T
    torch.testing.assert_close(again.eraser(x), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="fit gives an eraser"):
        fit_erasure(model, IDS, CLASSES, fit=lambda x, z: x)


def test_what_cannot_be_erased_is_refused(opened: Any) -> None:
    _, model = opened
    with pytest.raises(InputError, match="60 texts and 2 labels"):
        fit_erasure(model, IDS, [0, 1])
    with pytest.raises(InputError, match="nothing to tell apart"):
        fit_erasure(model, IDS, ["one"] * 60)
    with pytest.raises(InputError, match="no texts to fit"):
        fit_erasure(model, [], [])
    with pytest.raises(InputError, match="finite numbers, not nan"):
        fit_erasure(model, IDS, [float("nan")] * 60)
    with pytest.raises(InputError, match="needs a point with"):
        fit_erasure(model, IDS, CLASSES, ("z", 0))
    with pytest.raises(InputError, match="upstream is"):
        fit_erasure(model, IDS, CLASSES, upstream="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size is"):
        fit_erasure(model, IDS, CLASSES, batch_size=0)
    with pytest.raises(ShapeError, match="as many examples"):
        leace(torch.ones(3, 2), torch.ones(4))
    with pytest.raises(InputError, match="two examples"):
        leace(torch.ones(1, 2), torch.ones(1))
    with pytest.raises(InputError, match="left, right and mean"):
        Erase(("resid_post", 0), torch.ones(3, 1), torch.ones(1, 4), torch.ones(3))
