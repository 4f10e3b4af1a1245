"""Steering vectors against plain hooks that add the same vector, in runs and in generation."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from real.trained import Trained, at
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lensbridge.interventions import Steer, steering_vector

PRAISE = ["I love this. It is wonderful", "What a great and happy day"]
BLAME = ["I hate this. It is terrible", "What a sad and awful day"]
FILM = "I think that the film was"


@pytest.fixture(scope="module")
def layer(trained: Trained) -> int:
    return 2 * trained.lens.cfg.n_layers // 3


@pytest.fixture(scope="module")
def steer(trained: Trained, layer: int) -> Steer:
    return steering_vector(trained.lens, PRAISE, BLAME, ("resid_post", layer))


@contextmanager
def adding(module: nn.Module, vector: Tensor, where: slice) -> Iterator[None]:
    """A plain hook that adds a vector to a module's output at some positions."""

    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        steered = output.clone()
        steered[:, where] = steered[:, where] + vector
        return steered

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_the_vector_is_the_difference_of_means(trained: Trained, layer: int, steer: Steer) -> None:
    place = trained.places(layer)["hook_resid_post"]

    def mean(texts: list[str]) -> Tensor:
        rows = [trained.ids(text)[0] for text in texts]
        padded = pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        stream = at(trained.record(padded, attention_mask=mask), place)
        return stream[torch.arange(len(rows)), lengths - 1].mean(0)

    torch.testing.assert_close(steer.vector, mean(PRAISE) - mean(BLAME))


@pytest.mark.parametrize("where", [slice(None), slice(-1, None)], ids=["everywhere", "last"])
def test_a_steered_run_is_a_run_with_a_hook(
    trained: Trained, layer: int, steer: Steer, where: slice
) -> None:
    ids = trained.ids(FILM)
    positions = None if where == slice(None) else -1
    with torch.no_grad():
        found = trained.lens.run_with_interventions(ids, [steer.at(positions=positions)])
        with adding(trained.hf.model.layers[layer], steer.vector, where):
            wanted = trained.hf(ids).logits
    assert torch.equal(found, wanted)


def test_steered_generation_is_that_of_a_hook(trained: Trained, layer: int, steer: Steer) -> None:
    ids = trained.ids(FILM)
    settings = {"max_new_tokens": 5, "do_sample": False}
    twice = steer.at(strength=2.0)
    found = trained.lens.generate(ids, interventions=[twice], verbose=False, **settings)
    with adding(trained.hf.model.layers[layer], 2 * steer.vector, slice(None)):
        wanted = trained.hf.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert torch.equal(found, wanted)
    plain = trained.hf.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert not torch.equal(found, plain)


def test_steering_turns_the_opinion(trained: Trained, steer: Steer) -> None:
    """The stronger, the likelier is praise in place of blame."""
    great, terrible = trained.token(" great"), trained.token(" terrible")
    leanings = []
    for strength in (-2.0, 0.0, 2.0):
        with torch.no_grad():
            logits = trained.lens.run_with_interventions(
                trained.ids(FILM + " a"), [steer.at(strength=strength)]
            )
        leanings.append((logits[0, -1, great] - logits[0, -1, terrible]).item())
    assert leanings[0] + 1 < leanings[1] < leanings[2] - 1
