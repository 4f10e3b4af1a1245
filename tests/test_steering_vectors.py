"""Steering vectors of all layers, against raw hooks and scikit-learn; files of other tools."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from test_interchange import output_of
from test_interventions import editing
from tiny_models import Layer, Shape, build, tokens
from torch import Tensor

import lensbridge
from lensbridge.errors import InputError, UnknownPointError
from lensbridge.interventions import Steer, SteeringVectors, steering_vector
from lensbridge.model import LensModel

FORMATS = Path(__file__).parent / "formats"
UP, DOWN = tokens(8, 7), tokens(8, 7, seed=3)
NAMES = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


@pytest.fixture(scope="module")
def hf() -> Any:
    return build(Shape("llama"))


@pytest.fixture(scope="module")
def model(hf: Any) -> LensModel:
    return lensbridge.load(hf)


def raw(hf: Any, layer: int) -> tuple[Tensor, Tensor]:
    """The output of a block for both sides, by a plain PyTorch hook."""
    block = Layer(hf, "llama", layer).block
    return tuple(output_of(hf, block, "output", input_ids=ids) for ids in (UP, DOWN))


def vectors_of(model: LensModel, site: Any = "resid_post", **options: Any) -> SteeringVectors:
    found = steering_vector(model, UP, DOWN, site, **options)
    assert isinstance(found, SteeringVectors)
    return found


def test_every_layer_is_read_in_one_run(hf: Any, model: LensModel) -> None:
    runs = []
    handle = hf.register_forward_pre_hook(lambda *_: runs.append(1))
    found = vectors_of(model)
    handle.remove()
    assert len(runs) == 2  # one for each side
    assert found.names == NAMES
    for layer in (0, 1):
        a, b = raw(hf, layer)
        wanted = a[:, -1].mean(0) - b[:, -1].mean(0)
        torch.testing.assert_close(found["resid_post", layer].vector, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.vector[layer], wanted, rtol=1e-4, atol=1e-5)


def test_batches_change_nothing(model: LensModel) -> None:
    per_text = [[i % 5] for i in range(len(UP))]
    for position in (-1, "mean", per_text):
        whole, parts = (vectors_of(model, position=position, batch_size=n) for n in (None, 3))
        torch.testing.assert_close(whole.vector, parts.vector, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("position", "columns"),
    [([-1, -2], [6, 5]), (slice(2, 4), [2, 3]), (lambda ids: [0, len(ids) - 1], [0, 6])],
)
def test_several_positions_are_averaged(
    hf: Any, model: LensModel, position: Any, columns: list[int]
) -> None:
    a, b = raw(hf, 1)
    wanted = a[:, columns].mean((0, 1)) - b[:, columns].mean((0, 1))
    found = steering_vector(model, UP, DOWN, ("resid_post", 1), position=position)
    torch.testing.assert_close(found.vector, wanted, rtol=1e-4, atol=1e-5)


def test_a_function_finds_the_token_in_each_text() -> None:
    model = lensbridge.load("demo")
    up = ["The Eiffel Tower is in the city of", "Where is the Louvre? The Louvre is"]
    down = ["The Galata Tower is"]

    def after_the(text: str) -> int:
        words: Any = model.to_str_tokens(text)
        return int(words.index(" is"))

    states = []
    for text in (*up, *down):
        _, cache = model.run_with_cache(text)
        states.append(cache["resid_post", 2][0, after_the(text)])
    wanted = (states[0] + states[1]) / 2 - states[2]
    found = steering_vector(model, up, down, ("resid_post", 2), position=after_the)
    torch.testing.assert_close(found.vector, wanted, rtol=1e-3, atol=1e-4)


def test_logistic_is_that_of_scikit_learn(hf: Any, model: LensModel) -> None:
    found = vectors_of(model, method="logistic")
    for layer in (0, 1):
        a, b = raw(hf, layer)
        rows = torch.cat([a[:, -1], b[:, -1]]).double().numpy()
        fitted = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
        wanted = fitted.fit(rows, [1] * len(a) + [0] * len(b)).coef_[0]
        wanted = torch.tensor(wanted / np.linalg.norm(wanted)).float()
        torch.testing.assert_close(found[layer].vector, wanted, rtol=1e-3, atol=1e-4)


def test_pca_is_that_of_scikit_learn_on_centred_pairs(hf: Any, model: LensModel) -> None:
    found = vectors_of(model, method="pca")
    for layer in (0, 1):
        a, b = (side[:, -1].double() for side in raw(hf, layer))
        middle = (a + b) / 2  # repeng's "pca_center"
        wanted = PCA(1).fit(torch.cat([a - middle, b - middle]).numpy()).components_[0]
        cosine = float(found[layer].vector.double() @ torch.tensor(wanted))
        assert abs(cosine) == pytest.approx(1.0, abs=1e-5)
        assert float((a - b).mean(0) @ found[layer].vector.double()) > 0


def test_they_steer_at_all_of_their_points(hf: Any, model: LensModel) -> None:
    found = vectors_of(model)
    first, second = (Layer(hf, "llama", layer).block for layer in (0, 1))
    with (
        torch.no_grad(),
        editing(first, "output", lambda x: x + 3 * found[0].vector),
        editing(second, "output", lambda x: x + 3 * found[1].vector),
    ):
        wanted = hf(DOWN).logits
    steered = model.run_with_interventions(DOWN, found.at(strength=3.0))
    torch.testing.assert_close(steered, wanted, rtol=1e-4, atol=1e-4)


def test_they_are_one_cell_of_a_sweep_and_can_be_pickled() -> None:
    model = lensbridge.load("demo")
    eiffel, galata = (f"The {name} Tower is in the city of" for name in ("Eiffel", "Galata"))
    found = steering_vector(model, [eiffel], [galata], "resid_post")
    cells = [found.at(strength=strength) for strength in (0.0, 0.5, 2.0)]
    written = model.sweep(galata, cells, _says_paris, generate={"max_new_tokens": 1})
    alone = [
        model.generate(galata, 1, interventions=cell, do_sample=False, verbose=False)
        for cell in cells
    ]
    assert written.values.flatten().tolist() == [_says_paris(text) for text in alone]
    assert 0.0 in written.values
    assert 1.0 in written.values
    swept = model.sweep(galata, cells, lambda logits: logits[0, -1, 5]).values.flatten()
    wanted = [model.run_with_interventions(galata, cell)[0, -1, 5] for cell in cells]
    torch.testing.assert_close(swept, torch.stack(wanted).to(swept), rtol=1e-3, atol=1e-3)
    again = pickle.loads(pickle.dumps(found))
    assert again.model_type == "gpt2"
    assert torch.equal(again.vector, found.vector)


def _says_paris(text: str) -> float:
    return float("Paris" in text)


def test_vectors_are_found_by_place_name_and_slice(model: LensModel) -> None:
    found = vectors_of(model, ["blocks.*.hook_mlp_out", ("resid_post", 1)])
    assert found.layers == [0, 1, 1]
    assert found["mlp_out", 1] is found["blocks.1.hook_mlp_out"]
    assert found[-1].site == "blocks.1.hook_resid_post"
    assert found[1:].names == found.names[1:]
    assert isinstance(steering_vector(model, UP, DOWN, "blocks.1.hook_mlp_out"), Steer)
    with pytest.raises(UnknownPointError, match="no vector of"):
        found["resid_post", 0]


def test_control_vectors_are_read_and_written(model: LensModel, tmp_path: Path) -> None:
    import gguf

    found = vectors_of(model).at(strength=2.0)
    found.save(tmp_path / "vector.gguf")
    reader = gguf.GGUFReader(tmp_path / "vector.gguf")
    assert bytes(reader.fields["controlvector.model_hint"].parts[-1]) == b"llama"
    assert int(reader.fields["controlvector.layer_count"].parts[-1][0]) == 2
    stored = {one.name: torch.tensor(one.data.copy()) for one in reader.tensors}
    torch.testing.assert_close(stored["direction.1"], 2 * found[1].vector)
    again = SteeringVectors.load(tmp_path / "vector.gguf")
    assert again.names == NAMES
    assert torch.equal(again.vector, 2 * found.vector)


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    first, third = torch.tensor([0.5, -1.25, 3.0, 0.0]), torch.tensor([1.0, 2, 3, 4]) / 8
    found = SteeringVectors.load(FORMATS / "repeng.gguf")  # by repeng 0.4.0
    assert found.names == ["blocks.1.hook_resid_post", "blocks.3.hook_resid_post"]
    assert torch.equal(found.vector, torch.stack([first, third]))
    found = SteeringVectors.load(FORMATS / "steering_vectors.pt")  # by steering-vectors 0.12.2
    assert found.names == ["blocks.1.hook_mlp_out", "blocks.3.hook_mlp_out"]
    assert torch.equal(found.vector, torch.stack([first, third]))
    found.save(tmp_path / "again.pt")
    held = torch.load(tmp_path / "again.pt", weights_only=True)
    assert held["layer_type"] == "mlp"
    assert torch.equal(held["layer_activations"][3], third)


def test_what_a_file_would_lose_is_refused(model: LensModel, tmp_path: Path) -> None:
    found = vectors_of(model)
    with pytest.raises(InputError, match="positions=-1"):
        found.at(positions=-1).save(tmp_path / "a.gguf")
    with pytest.raises(InputError, match="these are of"):
        vectors_of(model, "mlp_out").save(tmp_path / "a.gguf")
    with pytest.raises(InputError, match="ends neither"):
        found.save(tmp_path / "a.npz")
    (tmp_path / "b.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="cannot be read"):
        SteeringVectors.load(tmp_path / "b.gguf")
    for nothing in (b"nothing of the kind", b"hello", b""):
        (tmp_path / "b.pt").write_bytes(nothing)
        with pytest.raises(InputError, match="cannot be read"):
            SteeringVectors.load(tmp_path / "b.pt")
    assert not list(tmp_path.glob("a.*"))


def test_what_cannot_be_read_is_refused(model: LensModel) -> None:
    with pytest.raises(InputError, match="has 3 lists"):
        vectors_of(model, position=[[0], [1], [2]])
    with pytest.raises(InputError, match="A function of positions gives"):
        vectors_of(model, position=lambda ids: [[1], [2]])
    with pytest.raises(InputError, match="batch_size is"):
        vectors_of(model, batch_size=0)
    with pytest.raises(InputError, match="the same: nothing separates"):
        steering_vector(model, UP, UP, "resid_post", method="logistic")
