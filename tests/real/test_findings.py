"""What papers found in other models is found in these: induction heads, and names that move."""

import pytest
import torch
from real.conftest import Pair
from real.trained import STORY, TOWER, Trained
from torch import Tensor

from lensbridge.analysis import detect_head, direct_logit_attribution, logit_lens
from lensbridge.cache import ActivationCache
from lensbridge.evals import IOIDataset, ioi_eval
from lensbridge.interventions import Zero
from lensbridge.patching import PatchingResult, get_act_patch_attn_head_v_by_pos


def test_the_tower_is_in_paris(trained: Trained) -> None:
    assert trained.answer(TOWER) == " Paris"
    lens = logit_lens(trained.lens, trained.ids(TOWER), targets=[" Paris"])
    ranks = lens.rank_trajectory(" Paris")[:, 0]
    assert ranks[-1] == 0
    assert (ranks[: len(ranks) // 3] > 1000).all()  # late layers find it


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (STORY.format("Mary"), " John"),
        (STORY.format("John"), " Mary"),
        ("When John and Mary went to the store, Mary gave a bottle of milk to", " John"),
        ("When Mary and John went to the store, John gave a bottle of milk to", " Mary"),
    ],
)
def test_the_indirect_object_is_the_answer(trained: Trained, prompt: str, answer: str) -> None:
    assert trained.answer(prompt) == answer
    with torch.no_grad():
        assert trained.lens.to_single_str_token(trained.lens(prompt)[0, -1].argmax()) == answer


def test_the_indirect_object_is_preferred_in_other_sentences(trained: Trained) -> None:
    data = IOIDataset(trained.tokenizer, num_samples=12, seed=0)
    assert ioi_eval(trained.lens, data)["Accuracy"] > 0.8


# --- induction (Olsson et al. 2022) -------------------------------------------------------------


@pytest.fixture(scope="module")
def repeated(trained: Trained) -> Tensor:
    """BOS, then random tokens twice. Shapes: `[2, 41]`"""
    drawn = torch.randint(1000, 20000, (2, 20), generator=torch.Generator().manual_seed(0))
    first = torch.full((2, 1), trained.tokenizer.bos_token_id)
    return torch.cat([first, drawn, drawn], dim=1)


def second_loss(logits: Tensor, ids: Tensor) -> float:
    """The loss on the second copy, from its second token on."""
    likely = logits.float().log_softmax(-1)[:, 21:-1].gather(-1, ids[:, 22:, None])
    return -likely.mean().item()


def test_induction_heads_are_found_and_matter(trained: Trained, repeated: Tensor) -> None:
    lens, heads = trained.lens, trained.lens.cfg.n_heads
    with torch.no_grad():
        logits, cache = lens.run_with_cache(repeated, names_filter="pattern")
        scores = detect_head(lens, repeated, "induction_head", cache=cache)
    best = [divmod(int(flat), heads) for flat in scores.flatten().topk(3).indices]

    rows = torch.arange(21, 40)
    for layer, head in best:  # from the second copy to the token after the first copy
        pattern = cache["pattern", layer][:, head].float()
        assert pattern[:, rows, rows - 19].mean() > 0.4  # chance is 1 in 30
        assert (pattern[:, rows].argmax(-1) == rows - 19).float().mean() > 0.5
    assert scores.max() > 10 * scores.median()

    first = -logits.float().log_softmax(-1)[:, :20].gather(-1, repeated[:, 1:21, None]).mean()
    plain = second_loss(logits, repeated)
    assert plain < first / 2

    def without(chosen: list[tuple[int, int]]) -> float:
        zeros = [Zero(("z", layer), heads=[head]) for layer, head in chosen]
        with torch.no_grad():
            return second_loss(lens.run_with_interventions(repeated, zeros), repeated)

    worst = [(layer, int(scores[layer].argmin())) for layer, _ in best]
    assert without(best) - plain > 4 * abs(without(worst) - plain)


# --- indirect object identification (Wang et al. 2022) ------------------------------------------


def handover(pair: Pair, heat: Tensor) -> range:
    """The layers that move the name: from the last one before which it is at the second subject
    to the first one before which it is at the last position."""
    at_subject, at_end = heat[:, pair.subject] > 0.9, heat[:, -1] > 0.9
    return range(int(at_subject.nonzero().max()), int(at_end.nonzero().min()))


@pytest.fixture
def recovered(trained: Trained, pair: Pair, heat: PatchingResult) -> Tensor:
    """The heatmap from 0, corrupted, to 1, clean."""
    with torch.no_grad():
        return heat.normalized(pair.mean_margin(trained.hf(pair.clean).logits)).float()


def test_the_name_moves_from_the_second_subject_to_the_end(
    trained: Trained, pair: Pair, recovered: Tensor
) -> None:
    moving = handover(pair, recovered)
    layers = trained.lens.cfg.n_layers
    assert layers // 2 <= moving.start < moving.stop < layers
    early, late = recovered[: moving.start], recovered[moving.stop :]
    assert (early[:, pair.subject] > 0.9).all()
    assert (late[:, -1] > 0.9).all()
    elsewhere = [pos for pos in range(pair.clean.shape[1] - 1) if pos != pair.subject]
    assert recovered[:, elsewhere].abs().max() < 0.1
    assert early[:, -1].abs().max() < 0.1
    assert late[:, pair.subject].abs().max() < 0.15


def test_heads_between_read_the_second_subject_from_the_end(
    trained: Trained,
    pair: Pair,
    recovered: Tensor,
    clean_cache: ActivationCache,
) -> None:
    """The values of the second subject matter in the layers that move the name, and there a head
    of the last position attends to it."""
    lens, moving = trained.lens, handover(pair, recovered)
    layers, kv = lens.cfg.n_layers, lens.cfg.n_key_value_heads
    cells = [(layer, pair.subject, head) for layer in range(layers) for head in range(kv)]
    found = get_act_patch_attn_head_v_by_pos(
        lens, pair.corrupted, clean_cache, pair.mean_margin, index_df=cells, baseline=True
    )
    effects = found.effect().float()
    strongest = [cells[i] for i in effects.topk(2).indices.tolist()]
    attended = []
    for layer, _, head in strongest:
        assert layer in moving
        group = slice(head * lens.cfg.n_heads // kv, (head + 1) * lens.cfg.n_heads // kv)
        attended.append(clean_cache["pattern", layer][0, group, -1, pair.subject].max())
    assert max(attended) > 0.3


def test_a_head_that_writes_the_name_attends_to_it(
    trained: Trained, pair: Pair, clean_cache: ActivationCache
) -> None:
    """A name mover: large direct contribution, attention to the indirect object above all names."""
    lens = trained.lens
    shares = direct_logit_attribution(
        lens, None, " John", " Mary", unit="head", cache=clean_cache
    ).attribution[:-1, 0]
    names = [int(place) for name in (pair.mary, pair.john) for place in _places(pair, name)]
    movers = []
    for flat in shares.topk(4).indices.tolist():
        layer, head = divmod(flat, lens.cfg.n_heads)
        attention = clean_cache["pattern", layer][0, head, -1, names].float()
        movers.append(attention.argmax() == len(names) - 1 and attention.max() > 0.3)
    assert any(movers)


def _places(pair: Pair, name: int) -> Tensor:
    return (pair.clean[0] == name).nonzero().flatten()
