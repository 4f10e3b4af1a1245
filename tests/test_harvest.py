"""Harvests: what shards hold, whoever computes them and however often they are interrupted."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import bare_harvest
import pytest
import torch
from command import run
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM
from word_tokenizer import words

import lensbridge
from lensbridge import Activations, Harvest, Keep, Rows
from lensbridge.errors import InputError
from lensbridge.harvest import encoding
from lensbridge.harvest import folder as folder_module
from lensbridge.harvest.computing import Computer
from lensbridge.harvest.encoding import Encoder
from lensbridge.harvest.folder import Folder
from lensbridge.harvest.job import Job
from lensbridge.harvest.opening import open_source
from lensbridge.harvest.source import Place
from lensbridge.loading import demo_folder

TEXT = "The Eiffel Tower is in the city of Paris and the Galata Tower is in Istanbul"
WORDS = TEXT.split(" ")
POINT = "blocks.1.hook_resid_post"
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + i % 9] * (1 + i % 3)) for i in range(40)]
"""Of unlike lengths; some are blank."""


@pytest.fixture(scope="module")
def model() -> Any:
    return lensbridge.load("demo")


@pytest.fixture(scope="module")
def bare() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_folder(), dtype="auto").eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_folder())


def asked(model: Any, packing: Any = "concat", data: Any = TEXTS, **settings: Any) -> Harvest:
    """A small harvest of several shards."""
    rows = Rows(length=16, packing=packing)
    given = {"points": [POINT], "rows": rows, "batch": 3, "shard_tokens": 100}
    return Harvest(model=model, data=data, **{**given, **settings})


def hashes(folder: Path) -> dict[str, str]:
    """The hash of every shard; nothing else may lie there but the spec and the manifests."""
    names = sorted(one.name for one in folder.iterdir())
    assert [one for one in names if not one.startswith("shard-")] == [
        "manifest",
        "spec.json",
        "tokenizer",
    ]
    assert all(one.suffix == ".jsonl" for one in (folder / "manifest").iterdir())
    found = {one.name: one.read_bytes() for one in folder.glob("shard-*.safetensors")}
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(found.items())}


def read(folder: Path) -> dict[str, Tensor]:
    """All shards joined, read without lensbridge."""
    shards = [load_file(one) for one in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([one[name] for one in shards]) for name in shards[0]}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("packing", ["concat", "pad", "document"])
def test_shards_have_the_values_of_the_bare_model(
    model: Any, bare: Any, tokenizer: Any, packing: Any, dtype: Any, tmp_path: Path
) -> None:
    report = asked(model, packing, dtype=dtype).run(tmp_path)
    rows = bare_harvest.PACKINGS[packing](TEXTS, tokenizer, 16)
    found, sizes = read(tmp_path), [one.rows for one in report.shards.values()]
    assert found["tokens"].tolist() == [one for ids, _ in rows for one in ids]
    assert found["document"].tolist() == [one for _, docs in rows for one in docs]
    assert found["row"].tolist() == [i for i, (ids, _) in enumerate(rows) for _ in ids]
    assert found["position"].tolist() == [i for ids, _ in rows for i in range(len(ids))]
    expected = bare_harvest.streams(bare, rows, 3, sizes, 1)
    assert torch.equal(found[POINT], expected.to(found[POINT].dtype))
    assert found[POINT].dtype == (torch.bfloat16 if dtype else torch.float32)
    assert report.complete
    assert report.tokens == len(found["tokens"])
    assert len(report.shards) > 3
    assert all(one.run <= 100 for one in report.shards.values())
    shard = load_file(tmp_path / "shard-000001.safetensors")
    assert shard["offsets"].diff().tolist() == [
        int((shard["row"] == row).sum()) for row in shard["row"].unique()
    ]


@pytest.mark.parametrize("packing", ["concat", "pad", "document"])
def test_the_bytes_do_not_depend_on_who_computes_a_shard(
    model: Any, packing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = asked(model, packing)
    spec.run(tmp_path / "alone")
    whole = hashes(tmp_path / "alone")
    for part in ("1/3", "0/3", (2, 3)):
        report = spec.run(tmp_path / "parts", part=part)
    assert report.complete
    assert hashes(tmp_path / "parts") == whole
    for world in (2, 4):
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(world))
            spec.run(tmp_path / f"ranks{world}")
        assert hashes(tmp_path / f"ranks{world}") == whole
    monkeypatch.undo()
    spec.run(tmp_path / "claimed", claim=True)
    assert hashes(tmp_path / "claimed") == whole


@pytest.mark.parametrize("packing", ["concat", "pad", "document"])
def test_parts_of_an_indexed_folder_read_their_own_documents(
    model: Any, packing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = Encoder._texts

    def counted(self: Any, texts: list[str], documents: Any) -> Any:
        read.extend(texts)
        return real(self, texts, documents)

    monkeypatch.setattr(encoding, "_TOGETHER", 1)  # so that nothing is read ahead
    monkeypatch.setattr(Encoder, "_texts", counted)
    spec, texts = asked(model, packing), [f"{i} {one}" for i, one in enumerate(TEXTS) if one]
    spec = replace(spec, data=texts)
    spec.run(tmp_path / "alone")
    shards = spec.index(tmp_path / "out")
    assert spec.index(tmp_path / "out") == shards == len(hashes(tmp_path / "alone"))
    counts = []
    for part in range(3):
        read.clear()
        report = spec.run(tmp_path / "out", part=(part, 3))
        made = [report.shards[one] for one in report.made]
        counts.append(len(read))
        own = sum(last - first + 1 for first, last in (one.documents for one in made))
        assert len(read) <= own + 2 * len(made)  # and the one with which the next shard begins
    assert sum(counts) < 2 * len(texts)
    (tmp_path / "out" / "cuts.jsonl").unlink()
    assert hashes(tmp_path / "out") == hashes(tmp_path / "alone")


def test_every_cut_is_found_whichever_are_known(model: Any) -> None:
    def rows() -> Any:
        return Job.of(asked(model)).shard_rows()

    whole = rows().all_cuts()
    count = len(whole)
    assert count > 4
    for known in ([2], [2, 4], [count - 1], [1, 2, 3]):
        some = rows()
        for number in known:
            some.know(number, whole[number])
        assert some.all_cuts() == whole
    ended = rows()
    ended.know(count, None)
    ended.know(2, whole[2])
    assert ended.all_cuts() == whole


def test_a_dead_part_is_done_by_who_resumes(model: Any, tmp_path: Path) -> None:
    spec = asked(model)
    spec.run(tmp_path / "alone")
    report = spec.run(tmp_path / "out", part="1/2")
    assert not report.complete
    assert report.missing[0] == 0
    report = spec.run(tmp_path / "out", resume=True)
    assert report.complete
    assert set(report.made) == set(range(0, len(report.shards), 2))
    assert hashes(tmp_path / "out") == hashes(tmp_path / "alone")
    assert spec.run(tmp_path / "out", resume=True).made == ()


def killed_at(spec: Harvest, out: Path, step: str, shards: int) -> bool:
    """Run in a process of its own that kills itself at a step of writing; whether it did."""
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        begun = 0

        def dying(name: str) -> Any:
            real = getattr(folder_module, name)

            def call(*given: Any, **named: Any) -> Any:
                nonlocal begun
                begun += name == "save_file"
                if step == f"before {name}" and begun == shards + 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                found = real(*given, **named)
                if step == f"after {name}" and begun == shards + 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            return call

        for name in ("save_file", "checksum", "finish", "note"):
            setattr(folder_module, name, dying(name))
        spec.run(out, resume=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_runs_killed_at_any_step_go_on_as_if_nothing_had_been(model: Any, tmp_path: Path) -> None:
    spec, out = asked(model), tmp_path / "out"
    spec.run(tmp_path / "whole")
    steps = [
        f"{when} {name}"
        for name in ("save_file", "checksum", "finish", "note")
        for when in ("before", "after")
    ]
    for number, step in enumerate(steps):
        assert killed_at(spec, out, step, int(number == 3)), step
    assert spec.run(out, resume=True).complete
    assert hashes(out) == hashes(tmp_path / "whole")
    lines = [json.loads(one) for one in (out / "manifest/main.jsonl").read_text().splitlines()]
    assert sorted(one["number"] for one in lines) == list(range(len(hashes(out))))


def test_a_line_cut_off_by_a_crash_is_made_again(model: Any, tmp_path: Path) -> None:
    spec, out = asked(model), tmp_path / "out"
    spec.run(out)
    whole, manifest = hashes(out), out / "manifest" / "main.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    report = spec.run(out, resume=True)
    assert len(report.made) == 1
    assert report.complete
    assert hashes(out) == whole


def test_shards_that_were_damaged_are_made_again(model: Any, tmp_path: Path) -> None:
    spec = asked(model)
    spec.run(tmp_path)
    whole, shard = hashes(tmp_path), tmp_path / "shard-000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"000001.safetensors has \d+ bytes, not \d+.*resume=True"):
        Activations(tmp_path)
    assert spec.run(tmp_path, resume=True).made == (1,)
    assert hashes(tmp_path) == whole
    changed = bytearray(shard.read_bytes())
    changed[-1] ^= 1
    shard.write_bytes(bytes(changed))
    with pytest.raises(InputError, match="other bytes than were written"):
        Activations(tmp_path, check=True)


def test_a_full_disk_loses_nothing(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, real, written = asked(model), folder_module.note, []

    def full(path: Path, shard: Any) -> None:
        written.append(shard)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        real(path, shard)

    spec.run(tmp_path / "whole")
    monkeypatch.setattr(folder_module, "note", full)
    with pytest.raises(InputError, match=r"Shard 2 could not be written.*No space left"):
        spec.run(tmp_path / "out")
    monkeypatch.undo()
    assert len(Activations(tmp_path / "out").stored) == 2
    spec.run(tmp_path / "out", resume=True)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_an_interrupt_ends_after_the_shard_under_way(model: Any, tmp_path: Path) -> None:
    def told(state: Any) -> None:
        if state.shard == 1 and not sent:
            sent.append(state)
            os.kill(os.getpid(), signal.SIGINT)

    sent: list[Any] = []
    before = signal.getsignal(signal.SIGINT)
    report = asked(model).run(tmp_path, told=told)
    assert report.interrupted
    assert report.made == (0, 1)
    assert "stopped by an interrupt" in str(report)
    assert signal.getsignal(signal.SIGINT) is before
    assert asked(model).run(tmp_path, resume=True).complete


def test_two_processes_of_one_name_do_not_write_together(model: Any, tmp_path: Path) -> None:
    spec = asked(model)
    spec.run(tmp_path)
    with (
        Folder(tmp_path).writing("main"),
        pytest.raises(InputError, match="Another process writes to"),
    ):
        spec.run(tmp_path, resume=True)
    spec.run(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"points": ["blocks.2.hook_resid_post"]}, "points are blocks.1.*there and blocks.2"),
        ({"batch": 4}, "stored.batch is 3 there and 4 here"),
        ({"data": [*TEXTS, "more"]}, "data.documents is 40 there and 41 here"),
        ({"keep": Keep(bos=False)}, "keep.bos is true there and false here"),
        ({"reduce": "mean"}, "reduce"),
    ],
    ids=["points", "batch", "data", "keep", "reduce"],
)
def test_another_harvest_is_not_continued(
    model: Any, tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    asked(model).run(tmp_path)
    with pytest.raises(InputError, match=told):
        asked(model, **changed).run(tmp_path, resume=True)


def test_a_folder_is_not_continued_by_mistake(model: Any, tmp_path: Path) -> None:
    asked(model).run(tmp_path)
    with pytest.raises(InputError, match="resume=True"):
        asked(model).run(tmp_path)
    native = AutoModelForCausalLM.from_pretrained(demo_folder())
    with torch.no_grad():
        native.transformer.h[0].mlp.c_fc.bias += 1
    other = lensbridge.load(native, tokenizer=model.tokenizer)
    with pytest.raises(InputError, match="sha256_of_some_weights"):
        asked(other).run(tmp_path, resume=True)


@settings(max_examples=12, deadline=None)
@given(
    keep=st.builds(
        Keep,
        bos=st.booleans(),
        special=st.booleans(),
        positions=st.sampled_from([None, slice(1, None), slice(-3, None), slice(0, 9, 2), [0, -1]]),
    ),
    packing=st.sampled_from(["concat", "pad", "document"]),
)
def test_what_is_kept_is_a_part_of_all(
    model: Any, tokenizer: Any, tmp_path_factory: Any, keep: Keep, packing: Any
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    asked(model, packing).run(folder / "all")
    spec = asked(model, packing, keep=keep)
    report = spec.run(folder / "some")
    every, some = read(folder / "all"), read(folder / "some")
    lengths = every["row"].bincount()[every["row"]]
    wanted = []
    for i, (token, place, length) in enumerate(
        zip(every["tokens"].tolist(), every["position"].tolist(), lengths.tolist(), strict=True)
    ):
        first = place == 0 and token == tokenizer.bos_token_id
        inside = range(length)
        chosen = keep.positions if keep.positions is not None else slice(None)
        places = inside[chosen] if isinstance(chosen, slice) else [inside[one] for one in chosen]
        special = token in tokenizer.all_special_ids and not first
        if place in places and (keep.bos or not first) and (keep.special or not special):
            wanted.append(i)
    for name in ("tokens", "position", "row", "document", POINT):
        assert torch.equal(some[name], every[name][wanted]), name
    assert spec.plan().tokens == report.tokens == len(wanted)


@pytest.mark.parametrize("reduce", ["mean", "last", "norm"])
def test_reductions_are_computed_in_float32(model: Any, reduce: Any, tmp_path: Path) -> None:
    asked(model, "pad").run(tmp_path / "all")
    report = asked(model, "pad", reduce=reduce, dtype="bfloat16").run(tmp_path / "some")
    every, some = read(tmp_path / "all"), read(tmp_path / "some")
    rows = [every[POINT][every["row"] == row] for row in every["row"].unique()]
    formula = {
        "mean": lambda: torch.stack([one.mean(0) for one in rows]),
        "last": lambda: torch.stack([one[-1] for one in rows]),
        "norm": lambda: every[POINT].square().sum(-1).sqrt(),
    }[reduce]()
    assert some[POINT].dtype == torch.bfloat16
    torch.testing.assert_close(some[POINT].float(), formula, rtol=2**-8, atol=1e-6)
    if reduce != "norm":
        ends = [int((every["row"] == row).nonzero().max()) for row in every["row"].unique()]
        assert torch.equal(some["tokens"], every["tokens"][ends])
    assert report.tokens == len(formula)


def test_wide_reductions(model: Any, tmp_path: Path) -> None:
    from lensbridge.harvest import Features, Projection, TopK

    asked(model).run(tmp_path / "all")
    every = read(tmp_path / "all")[POINT]
    matrix = torch.randn(128, 5)
    asked(model, reduce=Projection(matrix)).run(tmp_path / "projected")
    torch.testing.assert_close(read(tmp_path / "projected")[POINT], every @ matrix)
    asked(model, reduce=TopK(4, by_magnitude=True)).run(tmp_path / "top")
    top = read(tmp_path / "top")
    assert torch.equal(top[f"{POINT}.values"].abs(), every.abs().topk(4).values)
    assert torch.equal(every.gather(1, top[f"{POINT}.indices"].long()), top[f"{POINT}.values"])
    sae = torch.nn.Linear(128, 30)
    sae.encode = lambda x: sae(x).relu()  # type: ignore[assignment]
    asked(model, reduce=Features(sae)).run(tmp_path / "features")
    torch.testing.assert_close(
        read(tmp_path / "features")[POINT], sae(every).relu().detach(), rtol=1e-4, atol=1e-5
    )
    with torch.no_grad():
        sae.weight += 1
    with pytest.raises(InputError, match=r"reduce\.sha256"):
        asked(model, reduce=Features(sae)).run(tmp_path / "features", resume=True)
    acts = Activations(tmp_path / "top")
    assert torch.equal(acts[f"{POINT}.indices"][3:5], top[f"{POINT}.indices"][3:5])
    assert torch.equal(acts["resid_post.values", 1][3:5], top[f"{POINT}.values"][3:5])


class Streamed:
    """An iterable that begins anew each time, without a length."""

    def __iter__(self) -> Any:
        return iter({"text": one} for one in TEXTS)


def test_data_of_every_kind_gives_the_same(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    lines, records = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    lines.write_text("\n".join(TEXTS), encoding="utf-8")
    records.write_text("\n".join(json.dumps({"body": one}) for one in TEXTS), encoding="utf-8")
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("\n".join(TEXTS[:13]) + "\n", encoding="utf-8")
    second.write_text("\n".join(TEXTS[13:]) + "\n", encoding="utf-8")
    asked(model).run(tmp_path / "list")
    whole = hashes(tmp_path / "list")
    given = {
        "lines": {"data": str(lines)},
        "records": {"data": records, "field": "body"},
        "files": {"data": [str(first), str(second)]},
        "mappings": {"data": [{"text": one} for one in TEXTS]},
        "stream": {"data": Streamed()},
        "function": {"data": lambda: iter(TEXTS)},
        "ids": {"data": [tokenizer(t)["input_ids"] for t in TEXTS], "rows": Rows(16, bos=True)},
    }
    for name, settings_ in given.items():
        spec = asked(model, **settings_)
        for part in ("1/2", "0/2"):  # so that it is read from the middle, too
            spec.run(tmp_path / name, part=part)
        assert hashes(tmp_path / name) == whole, name


def test_ids_are_taken_at_face_value(model: Any, bare: Any, tmp_path: Path) -> None:
    ids = torch.randint(0, 500, (7, 11))
    asked(model, "pad", data=ids).run(tmp_path)
    found = read(tmp_path)
    assert found["tokens"].tolist() == ids.flatten().tolist()
    with pytest.raises(InputError, match="Document 1 has the id 99999"):
        asked(model, data=[[1, 2], [99999]]).run(tmp_path / "other")


def test_chats_go_through_the_template(model: Any, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_folder())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    )
    chat = [{"role": "user", "content": "The Eiffel Tower"}, {"role": "bot", "content": "is tall"}]
    lens = lensbridge.load(model.hf_model, tokenizer=tokenizer)
    asked(lens, "pad", data=[chat, chat]).run(tmp_path)
    ids = tokenizer("user: The Eiffel Tower bot: is tall ")["input_ids"][:16]
    assert read(tmp_path)["tokens"].tolist() == ids + ids
    with pytest.raises(InputError, match="Document 0 is a chat"):
        asked(model, "pad", data=[chat]).run(tmp_path / "other")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (iter(TEXTS), "can be read only once"),
        ([*TEXTS, 3.5], "Document 40 is 3.5"),
        ([*TEXTS, {"body": "x"}], "Document 40 has no field 'text'; its fields are body"),
        ("no-such.txt", "There is no file no-such.txt"),
        (7, "of type int"),
    ],
    ids=["iterator", "number", "field", "file", "object"],
)
def test_data_that_cannot_be_read(model: Any, tmp_path: Path, data: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        asked(model, data=data).run(tmp_path)


def test_data_that_have_become_shorter(model: Any, tmp_path: Path) -> None:
    long = [f"{i} {TEXT}" for i in range(100)]  # what a stream is recognised by is its beginning
    asked(model, data=lambda: iter(long)).run(tmp_path / "out", part="0/2")
    shorter = asked(model, data=lambda: iter(long[:70]))
    with pytest.raises(InputError, match=r"end before document \d+, with which shard \d+ began"):
        shorter.run(tmp_path / "out", resume=True)
    assert asked(model, data=lambda: iter(long)).run(tmp_path / "out", resume=True).complete


def test_a_broken_document_loses_no_finished_shard(model: Any, tmp_path: Path) -> None:
    data = tmp_path / "texts.txt"
    data.write_bytes("\n".join(TEXTS).encode() + b"\n\xff\xfe\n" + b"more\n" * 3)
    with pytest.raises(InputError, match=r"Document 40 .* is not UTF-8"):
        asked(model, data=data).run(tmp_path / "out")
    assert len(Activations(tmp_path / "out").stored) > 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not tell the peak")
def test_memory_does_not_depend_on_the_length_of_the_data(tmp_path: Path) -> None:
    script = [sys.executable, str(Path(__file__).parent / "harvest_memory.py"), str(tmp_path)]
    ran = subprocess.run(script, capture_output=True, text=True, check=True)
    short, long = (json.loads(line) for line in ran.stdout.splitlines())
    more, shard = long["bytes"] - short["bytes"], short["shard_bytes"]
    assert short["shards"] > 3  # as many as are in memory at once
    assert more > 20 * shard
    # that which the allocator does not give back is a few shards, whatever the length
    assert long["peak"] - short["peak"] < 6 * shard


def test_what_waits_to_be_written_is_bounded(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, write = Computer.compute, folder_module.Writer.write
    held: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def computed(self: Any, *given: Any) -> Any:
        found = compute(self, *given)
        held.append(weakref.ref(found[POINT]))
        alive.append(sum(one() is not None for one in held))
        return found

    def slow(self: Any, *given: Any) -> Any:
        time.sleep(0.1)  # so that computing is ahead
        return write(self, *given)

    monkeypatch.setattr(Computer, "compute", computed)
    monkeypatch.setattr(folder_module.Writer, "write", slow)
    assert len(asked(model).run(tmp_path).shards) > 4
    assert max(alive) == 3  # one computed, one waiting, one written: what a plan counts


def test_it_stops_after_some_tokens(model: Any, tmp_path: Path) -> None:
    report = asked(model, max_tokens=130).run(tmp_path)
    assert report.complete
    assert 130 <= sum(one.run for one in report.shards.values()) < 130 + 16
    assert asked(model, max_tokens=130).plan().run_tokens == report.run_tokens


def test_a_plan_is_what_comes(model: Any, tmp_path: Path) -> None:
    spec = asked(model, "document", points=["resid_post", ("z", 0)], layers=[0, 1])
    plan, report = spec.plan(), spec.run(tmp_path)
    assert (plan.rows, plan.shards, plan.run_tokens) == (
        report.rows,
        len(report.shards),
        report.run_tokens,
    )
    assert plan.documents == sum(bool(one.strip()) for one in TEXTS)
    assert plan.last_layer == 2
    headers = sum(
        8 + int.from_bytes(one.read_bytes()[:8], "little") for one in tmp_path.glob("*.s*")
    )
    offsets = sum(8 * (one.rows + 1) for one in report.shards.values())
    assert plan.bytes == report.bytes - headers - offsets


def test_a_run_stops_after_the_last_layer(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
        for i, layer in enumerate(model.hf_model.transformer.h)
    ]
    asked(model).run(tmp_path)
    for handle in handles:
        handle.remove()
    assert set(calls) == {0, 1}


@pytest.mark.parametrize(
    ("points", "layers"),
    [
        (["hook_embed"], 0),
        (["hook_pos_embed", ("resid_pre", 1)], 1),
        ([("resid_pre", 0)], 0),
        ([("resid_pre", 2), ("resid_post", 1)], 2),
        ([("resid_pre", 2), ("mlp_out", 2)], 3),
        (["ln_final.hook_out"], 4),
    ],
)
def test_no_layer_runs_that_no_point_needs(
    model: Any, bare: Any, points: Any, layers: int, tmp_path: Path
) -> None:
    calls: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
        for i, layer in enumerate(model.hf_model.transformer.h)
    ]
    spec = asked(model, points=points)
    spec.run(tmp_path)
    for handle in handles:
        handle.remove()
    found, core = read(tmp_path), bare.transformer
    assert set(calls) <= set(range(layers))
    assert spec.plan().last_layer == (layers if layers < 4 else None)
    ids, rows = found["tokens"].long(), found["row"]
    with torch.no_grad():
        whole = [bare(ids[rows == row][None], output_hidden_states=True) for row in rows.unique()]
    for name in found:
        if name.endswith("hook_resid_pre"):
            streams = [one.hidden_states[int(name.split(".")[1])][0] for one in whole]
            torch.testing.assert_close(found[name], torch.cat(streams), rtol=1e-4, atol=1e-5)
    if points[0] == "hook_embed":
        assert torch.equal(found["hook_embed"], core.wte(found["tokens"].long()).detach())
    if points[0] == "hook_pos_embed":
        assert torch.equal(found["hook_pos_embed"], core.wpe(found["position"].long()).detach())


def test_json_round_trip(tmp_path: Path) -> None:
    spec = Harvest(
        model="demo",
        data="texts.txt",
        points=["resid_post", ("mlp_out", 3)],
        layers=[1],
        rows=Rows(length=64, packing="pad"),
        keep=Keep(bos=False, positions=slice(1, None)),
        reduce="mean",
        dtype=torch.bfloat16,
    )
    again = Harvest.from_json(spec.to_json())
    assert again.to_json() == spec.to_json()
    assert again.keep == spec.keep
    assert again.rows == spec.rows
    assert again.points == spec.points
    with pytest.raises(InputError, match=r"'bacth'.*Did you mean 'batch'"):
        Harvest.from_json('{"model": "demo", "data": "x", "points": ["z"], "bacth": 3}')
    with pytest.raises(InputError, match="name or a path"):
        Harvest(model=object(), data="x", points=["z"]).to_json()


def test_wrong_settings(model: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one point"):
        asked(model, points=[])
    with pytest.raises(InputError, match="longer than the context"):
        asked(model, rows=Rows(length=10_000)).run(tmp_path)
    with pytest.raises(InputError, match="Did you mean 'concat'"):
        Rows(packing="conact")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"rows is lensbridge\.Rows\(\.\.\.\), not str"):
        asked(model, rows="pad")
    with pytest.raises(InputError, match=r"keep is lensbridge\.Keep\(\.\.\.\), not dict"):
        asked(model, keep={"bos": False})
    with pytest.raises(InputError, match="not 'last'"):
        Keep(positions="last")
    with pytest.raises(InputError, match="value for each token"):
        asked(model, points=["pattern"]).run(tmp_path)
    with pytest.raises(InputError, match="3/3"):
        asked(model).run(tmp_path, part="3/3")
    with pytest.raises(InputError, match="floating dtype"):
        asked(model, dtype="int8").run(tmp_path)
    assert not list(tmp_path.glob("shard*"))


def test_padding_does_not_reach_the_tokens_of_an_encoder(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=40, num_hidden_layers=2, **sizes)
    encoder = BertForMaskedLM(config).eval()
    model = lensbridge.load(encoder, tokenizer=words(*dict.fromkeys(WORDS)))
    point = "blocks.0.hook_resid_post"
    asked(model, "pad", points=[point], batch=8, rows=Rows(30, "pad")).run(tmp_path / "out")
    found = read(tmp_path / "out")
    rows = [found["tokens"][found["row"] == row].long() for row in found["row"].unique()]
    assert len({len(ids) for ids in rows}) > 3  # so that some were padded
    with torch.no_grad():
        alone = [encoder(ids[None], output_hidden_states=True).hidden_states[1][0] for ids in rows]
    torch.testing.assert_close(found[point], torch.cat(alone), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="no eos token"):
        asked(model, points=[point]).run(tmp_path / "concat")


def test_lines_know_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("eins\r\nzwölf\n\nlast".encode())
    documents = list(open_source(path, "text").documents(Place()))
    assert [one.content for one in documents] == ["eins", "zwölf", "", "last"]
    again = list(open_source(path, "text").documents(documents[1].place))
    assert again == documents[1:]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Any) -> None:
    data, out = tmp_path / "texts.txt", tmp_path / "out"
    data.write_text("\n".join(TEXTS), encoding="utf-8")
    argv = ["harvest", "demo", data, out, "--point", POINT, "--length", 16, "--batch", 3]
    argv += ["--shard-tokens", 100]
    assert "in 5 shards" in run(capsys, *argv, "--plan").out
    assert not out.exists()
    told = run(capsys, *argv, "--json").json
    asked(model).run(tmp_path / "python")
    assert hashes(out) == hashes(tmp_path / "python")
    assert told["complete"] is True
    assert told["bytes"] == sum(one.stat().st_size for one in out.glob("shard*"))
    ran = run(capsys, *argv)
    assert ran.status == 1
    assert "--resume" in ran.err
    assert "0 of them made now" in run(capsys, *argv, "--resume").out
    spec = tmp_path / "spec.json"
    spec.write_text(asked("demo", data=str(data)).to_json(), encoding="utf-8")
    assert "5 shards begin" in run(capsys, "harvest", spec, tmp_path / "spec-out", "--index").out
    for part in ("0/2", "1/2"):
        run(capsys, "harvest", spec, tmp_path / "spec-out", "--part", part)
    (tmp_path / "spec-out" / "cuts.jsonl").unlink()
    assert hashes(tmp_path / "spec-out") == hashes(out)
    assert "at least one point" in run(capsys, "harvest", "demo", data, out).err
    refused = run(capsys, "harvest", spec, tmp_path / "other", "--length", 8, "--batch", 2)
    assert "not --length, --batch" in refused.err
    assert "not data" in run(capsys, "harvest", spec, data, tmp_path / "other").err


def test_progress_tells_tokens_and_the_share_of_the_data(model: Any, tmp_path: Path) -> None:
    states: list[Any] = []
    began = time.monotonic()
    report = asked(model).run(tmp_path, told=states.append)
    assert states[-1].tokens == report.run_tokens
    assert [one.share for one in states] == sorted(one.share for one in states)
    assert states[-1].share == 1.0
    assert 0 < states[-1].seconds <= time.monotonic() - began


@pytest.mark.parametrize("reduce", ["mean", "last", "norm", lensbridge.harvest.TopK(3)])
def test_a_shard_that_keeps_nothing_has_its_tensors(
    model: Any, reduce: Any, tmp_path: Path
) -> None:
    keep = Keep(positions=slice(6, None))
    data = ["Paris", TEXT]  # a shard each; the first has no position 6
    spec = asked(model, "pad", data=data, reduce=reduce, keep=keep, shard_tokens=1)
    report = spec.run(tmp_path)
    assert [one.tokens > 0 for one in report.shards.values()] == [False, True]
    acts = Activations(tmp_path)
    shapes = [(one.shape, one.dtype) for one in acts[acts.points[0]].shards()]
    assert shapes[0][0] == (0, *shapes[1][0][1:])
    assert shapes[0][1] == shapes[1][1]
    first, second = (load_file(tmp_path / one.file) for one in report.shards.values())
    assert first.keys() == second.keys()


@pytest.mark.parametrize(
    ("packing", "wanted"),
    [
        ("concat", [0, 5, 6, 7, 0, 8, 9, 0, 0, 5]),
        ("document", [0, 5, 6, 7, 0, 8, 9, 0, 5]),
        ("pad", [0, 5, 6, 7, 0, 5]),
    ],
)
def test_rows_of_ids_begin_with_one_bos(
    model: Any, packing: Any, wanted: list[int], tmp_path: Path
) -> None:
    rows = Rows(4, packing, separator=None, bos=True)
    asked(model, data=[[0, 5, 6, 7, 8, 9], [0, 5]], rows=rows).run(tmp_path)
    assert read(tmp_path)["tokens"].tolist() == wanted


def test_the_config_names_bos_where_there_is_no_tokenizer(bare: Any, tmp_path: Path) -> None:
    bos, model = bare.config.bos_token_id, lensbridge.load(bare)
    keep, rows = Keep(bos=False), Rows(8, "pad", separator=None)
    asked(model, data=[[bos, 5, 6], [5, bos]], rows=rows, keep=keep).run(tmp_path)
    assert read(tmp_path)["tokens"].tolist() == [5, 6, 5, bos]


def test_ranks_that_begin_at_once_leave_each_others_files(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = folder_module.finish

    def late(new: Path, path: Path) -> None:
        if path.name == "spec.json":  # another rank comes first, and cleans up
            monkeypatch.setattr(folder_module, "finish", finish)
            monkeypatch.setattr(folder_module, "gethostname", lambda: "another")
            asked(model).run(tmp_path, part="1/2")
            monkeypatch.undo()
        finish(new, path)

    monkeypatch.setattr(folder_module, "finish", late)
    assert asked(model).run(tmp_path, part="0/2").complete
    hashes(tmp_path)


def test_a_folder_that_cannot_be_written(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder_module, "finish", refused)
    with pytest.raises(InputError, match="cannot be written"):
        asked(model).run(tmp_path)


def test_claims_are_given_back(model: Any, tmp_path: Path) -> None:
    def broken(state: Any) -> None:
        if state.shard == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asked(model).run(tmp_path, claim=True, told=broken)
    report = asked(model).run(tmp_path, claim=True)
    assert report.complete
    hashes(tmp_path)  # no lock is left


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"train": TEXTS, "test": TEXTS}, "data\\['train'\\]"),
        ("Paris is a city. " * 100, "single text"),
    ],
)
def test_what_is_taken_for_documents_by_mistake(model: Any, data: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        asked(model, data=data).plan()


def test_one_layer_and_one_position(model: Any, tmp_path: Path) -> None:
    keep = Keep(positions=-1)  # type: ignore[arg-type]
    spec = asked(model, "pad", points=["resid_post"], layers=1, keep=keep)
    report = spec.run(tmp_path)
    assert Activations(tmp_path).points == (POINT,)
    assert report.tokens == report.rows
    with pytest.raises(InputError, match="'3/64'"):
        spec.run(tmp_path, part=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [[], ["", "  "]])
def test_data_without_a_token(model: Any, data: list[str], tmp_path: Path) -> None:
    for part in (None, "1/2"):
        with pytest.raises(InputError, match="no tokens"):
            asked(model, data=data).run(tmp_path, part=part)
