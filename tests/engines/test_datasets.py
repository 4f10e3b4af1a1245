"""Datasets of the library `datasets`, and Parquet files: read from anywhere, and written."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

import lensbridge
from lensbridge import Activations, Harvest, Rows
from lensbridge.errors import InputError
from lensbridge.harvest.opening import open_source
from lensbridge.harvest.source import Place

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = [pytest.mark.engines, pytest.mark.filterwarnings("ignore:::datasets")]

TEXT = "The Eiffel Tower is in the city of Paris and the Galata Tower is in Istanbul"
WORDS = TEXT.split(" ")
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + i % 9] * (1 + i % 3)) for i in range(60)]
POINT = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> Any:
    return lensbridge.load("demo")


def asked(model: Any, data: Any, **settings: Any) -> Harvest:
    given = {"points": [POINT], "rows": Rows(length=16), "batch": 3, "shard_tokens": 100}
    return Harvest(**{"model": model, "data": data, **given, **settings})


def hashes(folder: Path) -> list[str]:
    found = sorted(folder.glob("shard-*.safetensors"))
    return [hashlib.sha256(one.read_bytes()).hexdigest() for one in found]


@pytest.fixture(scope="module")
def whole(model: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("whole")
    asked(model, TEXTS).run(out)
    return hashes(out)


def written(folder: Path, counts: list[int], group: int) -> list[Path]:
    """Parquet files of so many texts each, in groups of rows."""
    paths, at = [], 0
    for number, count in enumerate(counts):
        table = pyarrow.table({"id": range(count), "body": TEXTS[at : at + count]})
        paths.append(folder / f"{number}.parquet")
        parquet.write_table(table, paths[-1], row_group_size=group)
        at += count
    return paths


def sources(folder: Path) -> dict[str, tuple[Any, str]]:
    """The same texts in every form, with the field in which they are."""
    table = datasets.Dataset.from_dict({"text": TEXTS})
    files = written(folder, [13, 40, 7], group=6)
    streamed = datasets.load_dataset(
        "parquet",
        data_files=[str(one) for one in files],
        split="train",
        streaming=True,
        cache_dir=str(folder / "cache"),
    )
    return {
        "map style": (table, "text"),
        "iterable": (table.to_iterable_dataset(num_shards=4), "text"),
        "streamed from files": (streamed, "body"),
        "files": (files, "body"),
        "folder": (str(folder), "body"),
    }


FORMS = ("map style", "iterable", "streamed from files", "files", "folder")


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_shards(
    model: Any, whole: list[str], name: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    data, field = sources(tmp_path / "data")[name]
    for part in ("1/2", "0/2"):  # so that it is read from the middle, too
        report = asked(model, data, field=field).run(tmp_path / "out", part=part)
    assert report.complete
    assert hashes(tmp_path / "out") == whole
    again = asked(model, data, field=field)
    assert again.run(tmp_path / "out", resume=True).made == ()


@pytest.mark.parametrize("name", FORMS[:4])
def test_a_place_is_found_again(name: str, tmp_path: Path) -> None:
    data, field = sources(tmp_path)[name]
    source = open_source(data, field)
    documents = list(source.documents(Place()))
    assert [one.content for one in documents] == TEXTS
    for number in (0, 5, 6, 13, 59):
        again = list(source.documents(documents[number].place))
        assert [one.content for one in again] == TEXTS[number:]
        assert again == documents[number:]


def test_empty_files_and_groups_are_passed_over(tmp_path: Path) -> None:
    source = open_source(written(tmp_path, [0, 13, 0, 0, 47], group=5), "body")
    documents = list(source.documents(Place()))
    assert [one.content for one in documents] == TEXTS
    assert source.share(documents[30].place) == 0.5
    for number in (0, 13, 14, 59):
        assert list(source.documents(documents[number].place)) == documents[number:]


def test_other_data_is_refused(model: Any, tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"text": TEXTS})
    asked(model, table.to_iterable_dataset()).run(tmp_path / "out")
    other = datasets.Dataset.from_dict({"text": ["Another", *TEXTS[1:]]})
    with pytest.raises(InputError, match=r"data\.sha256_of_first"):
        asked(model, other.to_iterable_dataset()).run(tmp_path / "out", resume=True)
    with pytest.raises(InputError, match=r"no field 'text'; its fields are body"):
        asked(model, table.rename_column("text", "body")).run(tmp_path / "fields")
    with pytest.raises(InputError, match=r"data\['train'\]"):
        asked(model, datasets.DatasetDict(train=table)).run(tmp_path / "splits")
    files = written(tmp_path, [60], group=60)
    with pytest.raises(InputError, match=r"no column 'text'; it has id, body"):
        asked(model, files).run(tmp_path / "columns")
    (tmp_path / "texts.txt").write_text("Paris")
    with pytest.raises(InputError, match="two kinds"):
        asked(model, [*files, tmp_path / "texts.txt"]).run(tmp_path / "kinds")


def test_ids_in_columns(model: Any, tmp_path: Path) -> None:
    ids = torch.randint(3, 500, (9, 16)).tolist()
    table = datasets.Dataset.from_dict({"input_ids": ids})
    parquet.write_table(pyarrow.table({"input_ids": ids}), tmp_path / "ids.parquet")
    rows = Rows(16, "pad")
    for name, data in {
        "lists": ids,
        "python": table,
        "torch": table.with_format("torch"),
        "parquet": tmp_path / "ids.parquet",
    }.items():
        asked(model, data, rows=rows, field="input_ids").run(tmp_path / name)
        assert hashes(tmp_path / name) == hashes(tmp_path / "lists"), name


def test_exports_have_every_value(model: Any, tmp_path: Path) -> None:
    ids = torch.randint(3, 500, (9, 16))
    asked(model, ids, rows=Rows(16, "pad"), dtype="bfloat16").run(tmp_path / "out")
    acts = Activations(tmp_path / "out")
    table = acts.to_datasets().with_format("torch")
    assert torch.equal(table["token_ids"][:].long(), ids)
    assert torch.equal(table[POINT][:].flatten(0, 1).float(), acts[POINT][:].float())
    read = parquet.read_table(acts.to_parquet(tmp_path / "all.parquet"))
    assert read.column("tokens").to_pylist() == ids.flatten().tolist()
    assert torch.equal(torch.tensor(read.column(POINT).to_pylist()), acts[POINT][:].float())


def test_rows_of_joined_documents_that_lost_tokens_are_cut_again(
    model: Any, tmp_path: Path
) -> None:
    keep = lensbridge.Keep(bos=False, special=False, positions=slice(1, None))
    asked(model, TEXTS, keep=keep).run(tmp_path / "concat")
    acts = Activations(tmp_path / "concat")
    lengths = acts.rows[:].unique_consecutive(return_counts=True)[1]
    assert len(lengths[:-1].unique()) > 1
    table = acts.to_datasets().with_format("torch")
    found, kept = table["token_ids"][:], len(table) * int(lengths.max())
    assert found.shape[1] == lengths.max()
    assert torch.equal(found.flatten().int(), acts.tokens[:kept])
    assert torch.equal(table[POINT][:].flatten(0, 1), acts[POINT][:kept])
    asked(model, TEXTS, keep=keep, rows=Rows(16, "pad")).run(tmp_path / "pad")
    with pytest.raises(InputError, match="different lengths"):
        Activations(tmp_path / "pad").to_datasets()
