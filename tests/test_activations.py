"""Activations of a harvest, read: columns, documents, shuffled epochs, exports."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

import lensbridge
from lensbridge import Activations, Harvest, Rows
from lensbridge.analysis import fit_probe
from lensbridge.errors import InputError
from lensbridge.harvest import columns
from lensbridge.harvest.shuffling import Permutation
from lensbridge.saes.trained import Config, Metadata, TrainedSAE

TEXT = "The Eiffel Tower is in the city of Paris and the Galata Tower is in Istanbul"
TEXTS = [" ".join(TEXT.split(" ")[: 2 + i % 9]) for i in range(40)]
NAME = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("harvest")
    Harvest(
        model="demo",
        data=TEXTS,
        points=["resid_post", ("z", 0)],
        layers=[1],
        rows=Rows(length=16),
        shard_tokens=80,
    ).run(out)
    return out


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Tensor]:
    """All shards joined, read without lensbridge."""
    shards = [load_file(one) for one in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([one[name] for one in shards]) for name in shards[0]}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_column_is_indexed_like_a_tensor(
    folder: Path, whole: dict[str, Tensor], data: st.DataObject
) -> None:
    acts = Activations(folder)
    count = len(acts)
    place = st.integers(-count, count - 1)
    edge = st.none() | st.integers(-count - 5, count + 5)
    step = st.sampled_from([None, 1, 2, 7])
    index = data.draw(
        place
        | st.builds(slice, edge, edge, step)
        | st.lists(place, max_size=20)
        | st.lists(place, min_size=1, max_size=20).map(torch.tensor)
        | st.lists(st.booleans(), min_size=count, max_size=count).map(torch.tensor)
    )
    for name in (NAME, "blocks.0.attn.hook_z", "tokens", "row"):
        column = acts.column(name)
        expected = whole[name][torch.tensor(index, dtype=torch.long) if index == [] else index]
        assert torch.equal(column[index], expected)
    assert torch.equal(acts[NAME][3:9, 5], whole[NAME][3:9, 5])


def test_iterating_over_a_column_gives_its_entries(
    folder: Path, whole: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_BLOCK", 7)
    acts, sizes = Activations(folder), list[int]()
    column = replace(acts[NAME], reader=lambda *given: counted(acts.read(*given), sizes))
    found = list(column)
    assert len(found) == len(column)
    assert all(torch.equal(one, acts[NAME][i]) for i, one in enumerate(found))
    assert torch.equal(torch.stack(found), whole[NAME])
    assert max(sizes) == 7  # so much is in memory at once
    found[0].zero_()
    assert torch.equal(acts[NAME][0], whole[NAME][0])
    assert [len(one) for one in column.shards()] == [one.shard.tokens for one in acts.stored]


def counted(values: Tensor, sizes: list[int]) -> Tensor:
    sizes.append(len(values))
    return values


def test_points_by_any_of_their_names(folder: Path, whole: dict[str, Tensor]) -> None:
    acts = Activations(folder)
    for name in (NAME, ("resid_post", 1), "resid_post1", ("resid_post", -3)):
        assert torch.equal(acts[name][:], whole[NAME])
    assert acts[NAME].shape == whole[NAME].shape
    assert acts[NAME].dtype == whole[NAME].dtype
    assert torch.equal(acts.tokens[:], whole["tokens"])
    assert set(acts.points) == {NAME, "blocks.0.attn.hook_z"}
    with pytest.raises(InputError, match=r"was not harvested.*There are"):
        acts["resid_post", 2]
    with pytest.raises(InputError, match="There is no entry"):
        acts[NAME][len(acts)]


def test_a_document_has_its_entries(folder: Path, whole: dict[str, Tensor]) -> None:
    acts = Activations(folder)
    for number in (0, 7, 39):
        mask = whole["document"] == number
        found = acts.document(number)
        assert torch.equal(found[NAME], whole[NAME][mask])
        assert torch.equal(found["tokens"], whole["tokens"][mask])
    with pytest.raises(InputError, match=r"document 40 .* 0 to 39"):
        acts.document(40)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 5000), seed=st.integers(0, 2**40))
def test_a_permutation_is_one(count: int, seed: int) -> None:
    order = Permutation(count, seed)
    found = order(torch.arange(count))
    assert torch.equal(found.sort().values, torch.arange(count))
    assert torch.equal(order(torch.arange(count)[count // 2 :]), found[count // 2 :])


def test_a_permutation_mixes_well() -> None:
    """Neighbours are as far from each other as in a random order: a third of the length."""
    found = Permutation(100_000, 3)(torch.arange(100_000)).double()
    assert abs(float(found.diff().abs().mean()) / 100_000 - 1 / 3) < 0.01
    assert (
        abs(float(torch.corrcoef(torch.stack([found, torch.arange(100_000.0).double()]))[0, 1]))
        < 0.02
    )
    assert not torch.equal(found, Permutation(100_000, 4)(torch.arange(100_000)).double())


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 200),
    window=st.none() | st.integers(1, 500),
    stop=st.integers(0, 400),
    drop=st.booleans(),
)
def test_a_shuffled_epoch_has_each_entry_once_and_can_be_resumed(
    folder: Path, whole: dict[str, Tensor], size: int, window: int | None, stop: int, drop: bool
) -> None:
    acts = Activations(folder)
    loop = acts.shuffled(size, seed=5, window=window, drop_last=drop)
    batches = list(loop)
    assert len(batches) == len(loop)
    where = torch.cat([one["row"] * 100 + one["position"] for one in batches])
    everything = (whole["row"] * 100 + whole["position"]).sort().values
    if drop:
        assert len(where) == len(acts) // size * size
        assert len(where.unique()) == len(where)
    else:
        assert torch.equal(where.sort().values, everything)
    at = whole["row"] * 100 + whole["position"]
    places = torch.stack([(at == one).nonzero()[0, 0] for one in where[:50]])
    assert torch.equal(torch.cat([one[NAME] for one in batches])[:50], whole[NAME][places])
    assert len(where) < 30 or not torch.equal(
        where, torch.cat([one["row"] * 100 + one["position"] for one in loop])
    )
    first = acts.shuffled(size, seed=5, window=window, drop_last=drop)
    given = iter(first)
    taken = [next(given) for _ in range(min(stop, len(first)))]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    again = acts.shuffled(size, seed=5, window=window, drop_last=drop)
    again.load_state_dict(state)
    rest = [] if len(taken) == len(batches) else list(again)
    for one, other in zip([*taken, *rest], batches, strict=True):
        assert torch.equal(one[NAME], other[NAME])


def test_a_state_of_another_order_is_refused(folder: Path) -> None:
    acts = Activations(folder)
    state = acts.shuffled(8, seed=1).state_dict()
    with pytest.raises(InputError, match="seed=1, and this is 2"):
        acts.shuffled(8, seed=2).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_loader_reads_it(folder: Path, whole: dict[str, Tensor], workers: int) -> None:
    context = None if workers == 0 else "spawn"
    loader = DataLoader(
        Activations(folder).torch(),
        batch_size=64,
        num_workers=workers,
        multiprocessing_context=context,
    )
    found = torch.cat([one[NAME] for one in loader])
    assert torch.equal(found, whole[NAME])


def test_folders_are_joined(folder: Path, whole: dict[str, Tensor], tmp_path: Path) -> None:
    twice = Activations.merge([Activations(folder), Activations([folder])])
    assert len(twice) == 2 * len(whole["tokens"])
    assert torch.equal(twice[NAME][len(whole["tokens"]) :], whole[NAME])
    Harvest(model="demo", data=TEXTS, points=["resid_pre"], layers=[1]).run(tmp_path)
    with pytest.raises(InputError, match="cannot be joined"):
        Activations([folder, tmp_path])
    with pytest.raises(InputError, match="no harvest"):
        Activations(tmp_path / "nothing")


def test_a_part_opens_by_itself(folder: Path, tmp_path: Path) -> None:
    spec = Harvest(
        model="demo", data=TEXTS, points=["resid_post"], layers=[1], rows=Rows(16), shard_tokens=80
    )
    spec.run(tmp_path, part="1/2")
    acts = Activations(tmp_path)
    assert [one.shard.number for one in acts.stored] == [1, 3]
    assert len(acts) == sum(one.shard.tokens for one in acts.stored)


def test_tops_are_the_largest_with_their_text(folder: Path, whole: dict[str, Tensor]) -> None:
    acts = Activations(folder)
    direction = torch.randn(128)
    expected = whole[NAME] @ direction
    found = acts.top(("resid_post", 1), direction, k=5, context=3)
    torch.testing.assert_close(torch.tensor([one.value for one in found]), expected.topk(5).values)
    tokenizer = lensbridge.load("demo").tokenizer
    for one in found:
        row = whole["row"] == whole["row"][one.entry]
        places = [i for i in row.nonzero().flatten().tolist() if abs(i - one.entry) <= 3]
        assert one.tokens == tuple(tokenizer.decode([int(whole["tokens"][i])]) for i in places)
        torch.testing.assert_close(torch.tensor(one.values), expected[places])
        assert places[one.at] == one.entry
        assert one.document == int(whole["document"][one.entry])
    neuron = acts.top(NAME, 7, k=3)
    assert [one.entry for one in neuron] == whole[NAME][:, 7].topk(3).indices.tolist()
    head = acts.top("blocks.0.attn.hook_z", (1, 2), k=3)
    assert [one.entry for one in head] == whole["blocks.0.attn.hook_z"][:, 1, 2].topk(
        3
    ).indices.tolist()
    assert neuron[0].token in str(neuron)
    assert "<svg" in neuron.plot().svg()
    with pytest.raises(InputError, match="There is no 128"):
        acts.top(NAME, 128)


def test_means_and_their_differences(folder: Path, whole: dict[str, Tensor]) -> None:
    acts, mask = Activations(folder), whole["position"] < 4
    values = whole[NAME].double()
    torch.testing.assert_close(acts.mean(NAME), values.mean(0))
    difference = values[mask].mean(0) - values[~mask].mean(0)
    torch.testing.assert_close(acts.mean_difference(NAME, mask), difference)
    with pytest.raises(InputError, match="no such entries"):
        acts.mean(NAME, torch.zeros(len(acts), dtype=torch.bool))


def test_a_probe_is_fitted_to_shards(folder: Path, whole: dict[str, Tensor]) -> None:
    acts = Activations(folder)
    labels = (whole["tokens"] == int(whole["tokens"].mode().values)).tolist()
    result = fit_probe(acts.by_layer("resid_post"), labels, validation=0.3)
    again = fit_probe({1: whole[NAME]}, labels, validation=0.3)
    assert result.layers == [1]
    assert torch.equal(result.scores, again.scores)


def test_parquet_has_every_entry(folder: Path, whole: dict[str, Tensor], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(Activations(folder).to_parquet(tmp_path / "acts.parquet"))
    assert table["tokens"].to_pylist() == whole["tokens"].tolist()
    assert torch.equal(torch.tensor(table[NAME].to_pylist()), whole[NAME])


def test_indices_of_every_form(folder: Path, whole: dict[str, Tensor]) -> None:
    acts = Activations(folder)
    column, every = acts[NAME], whole[NAME]
    for index in (torch.tensor(3), whole["tokens"].argmax().numpy()[()], (..., 5), (2, 7), (3,)):
        assert torch.equal(column[index], every[index]), index
    assert torch.equal(column[[1, 2], 4:6], every[[1, 2], 4:6])
    for wrong in (torch.tensor([1.5]), None, "a"):
        with pytest.raises(InputError, match="index"):
            column[wrong]


def test_rows_and_shards_that_are_not_there(folder: Path) -> None:
    acts = Activations(folder)
    for shard, row, told in ((0, 99, "no row 99"), (0, -1, "no row -1"), (99, 0, "no shard 99")):
        with pytest.raises(InputError, match=told):
            acts.row(shard, row)


def test_tops_do_not_mix_rows_of_two_folders(tmp_path: Path) -> None:
    texts = ["The Eiffel Tower", "in the city of Paris"]
    for number, text in enumerate(texts):
        spec = Harvest(model="demo", data=[text], points=[NAME], rows=Rows(16, "pad"))
        spec.run(tmp_path / str(number))
    alone = [Activations(tmp_path / str(number)) for number in range(2)]
    joined = Activations.merge(alone)
    found = sorted(joined.top(NAME, 0, k=len(joined)), key=lambda one: one.entry)
    assert len(found) == sum(map(len, alone))
    for one in found:
        of = alone[one.entry >= len(alone[0])]
        assert "".join(one.tokens) == of.to_string(of.tokens[:])


def test_values_that_tops_cannot_be_of(folder: Path) -> None:
    acts, sae = Activations(folder), TrainedSAE(Config("topk", 128, 8, 2, Metadata(NAME)))
    with pytest.raises(InputError, match="not one number"):
        acts.top(NAME, sae)
    for number in (8, -1):
        with pytest.raises(InputError, match="0 to 7"):
            acts.top(NAME, (sae, number))
    assert len(acts.top(NAME, (sae, 7), k=3)) == 3


def test_rows_of_a_dataset_that_cannot_be_made(folder: Path) -> None:
    acts = Activations(folder)
    for context, told in ((0, "context=0"), (10**6, "too few for a row of 1000000")):
        with pytest.raises(InputError, match=told):
            acts.to_datasets(context)
