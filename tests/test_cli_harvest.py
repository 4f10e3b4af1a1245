"""Harvests: what shards hold, how they are resumed, and what they take."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import run
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM
from word_tokenizer import words

import lensbridge
from lensbridge.errors import InputError
from lensbridge.harvest import Harvest, Options, harvest
from lensbridge.harvest.shards import Gathered
from lensbridge.harvest.texts import TextFile
from lensbridge.loading import demo_folder

TEXT = "The Eiffel Tower is in the city of Paris and the Galata Tower is in Istanbul"
WORDS = TEXT.split(" ")
POINTS = ["blocks.1.hook_resid_post", "blocks.2.attn.hook_z"]


@pytest.fixture(scope="module")
def model() -> Any:
    return lensbridge.load("demo")


@pytest.fixture(scope="module")
def bare() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_folder(), dtype="auto").eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_folder())


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Forty lines of unlike lengths, some of them blank."""
    path = tmp_path / "texts.txt"
    lines = [" ".join(WORDS[i % 5 : i % 5 + i % 9]) for i in range(40)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def joined(folder: Path) -> dict[str, Tensor]:
    """All shards, read without lensbridge."""
    shards = [load_file(one) for one in sorted(folder.glob("*.safetensors"))]
    return {name: torch.cat([one[name] for one in shards]) for name in shards[0]}


def bare_streams(bare: Any, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Of one row: the stream after layer 1, and what the heads of layer 2 give."""
    kept: dict[str, Tensor] = {}
    layers = bare.transformer.h
    handles = [
        layers[2].register_forward_pre_hook(lambda _, a: kept.update(stream=a[0])),
        layers[2].attn.c_proj.register_forward_pre_hook(lambda _, a: kept.update(z=a[0])),
    ]
    with torch.no_grad():
        bare(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return kept["stream"][0], kept["z"][0].unflatten(-1, (bare.config.n_head, -1))


def test_lines_have_the_activations_of_the_bare_model(
    bare: Any, tokenizer: Any, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    points = [word for name in POINTS for word in ("--point", name)]
    argv = ["harvest", "demo", texts, *points, "--out", out, "--batch", 7, "--shard-mb", 0.05]
    told = run(capsys, *argv, "--json").json
    rows = [
        (i, [tokenizer.bos_token_id, *tokenizer(line)["input_ids"]])
        for i, line in enumerate(texts.read_text().splitlines())
        if line.strip()
    ]
    found = joined(out)
    assert found["tokens"].tolist() == [one for _, ids in rows for one in ids]
    assert found["lines"].tolist() == [i for i, ids in rows for _ in ids]
    assert found["positions"].tolist() == [i for _, ids in rows for i in range(len(ids))]
    streams, heads = zip(*(bare_streams(bare, ids) for _, ids in rows), strict=True)
    torch.testing.assert_close(found[POINTS[0]], torch.cat(streams), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[POINTS[1]], torch.cat(heads), rtol=1e-4, atol=1e-4)
    assert told["tokens"] == len(found["tokens"])
    assert told["complete"] is True
    assert len(told["shards"]) == len(list(out.glob("*.safetensors"))) > 2
    assert told["bytes"] == sum(one.stat().st_size for one in out.glob("*.safetensors"))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["points"] == {POINTS[0]: "m", POINTS[1]: "h d"}


def test_packed_rows_lose_no_token(
    model: Any, bare: Any, tokenizer: Any, texts: Path, tmp_path: Path
) -> None:
    harvest(model, texts, POINTS, tmp_path / "out", Options("packed", length=16, batch=3))
    found = joined(tmp_path / "out")
    eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    stream = [
        one
        for line in texts.read_text().splitlines()
        if line.strip()
        for one in (*tokenizer(line)["input_ids"], eos)
    ]
    rows = [[bos, *stream[i : i + 15]] for i in range(0, len(stream), 15)]
    assert found["tokens"].tolist() == [one for row in rows for one in row]
    assert found["lines"][found["positions"] == 0].eq(-1).all()
    streams = torch.cat([bare_streams(bare, row)[0] for row in rows])
    torch.testing.assert_close(found[POINTS[0]], streams, rtol=1e-4, atol=1e-4)


class PowerCut(Exception):  # noqa: N818
    """The power is gone."""


@pytest.mark.parametrize("layout", ["lines", "packed"])
def test_an_interrupted_harvest_goes_on_where_it_stopped(
    layout: Any, model: Any, texts: Path, tmp_path: Path
) -> None:
    options = Options(layout, length=16, batch=2, shard_bytes=20_000)
    harvest(model, texts, POINTS, tmp_path / "whole", options)
    out, runs = tmp_path / "parts", 0
    for stop_after in range(3, 60, 4):
        steps = 0

        def told(tokens: int, offset: int, limit: int = stop_after) -> None:
            nonlocal steps
            steps += 1
            if steps == limit:
                raise PowerCut

        runs += 1
        try:
            done = harvest(model, texts, POINTS, out, options, told)
        except PowerCut:
            continue
        assert done.complete
        break
    assert runs > 2
    assert Harvest.open(out).manifest == Harvest.open(tmp_path / "whole").manifest
    whole, parts = joined(tmp_path / "whole"), joined(out)
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_finished_shards_are_not_run_again(
    model: Any, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(batch=2, shard_bytes=20_000)
    harvest(model, texts, POINTS, tmp_path / "out", options)
    before = {one: one.stat().st_mtime_ns for one in (tmp_path / "out").iterdir()}
    calls: list[int] = []
    harvest(model, texts, POINTS, tmp_path / "out", options, lambda *told: calls.append(1))
    assert calls == []
    assert before == {one: one.stat().st_mtime_ns for one in (tmp_path / "out").iterdir()}


def test_a_shard_cut_short_by_a_crash_is_written_again(
    model: Any, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, out = Options(batch=2, shard_bytes=20_000), tmp_path / "out"
    harvest(model, texts, POINTS, tmp_path / "whole", options)
    real, written = Gathered.write, 0

    def crash(self: Gathered, folder: Path, number: int) -> Any:
        nonlocal written
        written += 1
        if written == 2:
            (folder / "shard-00001.safetensors").write_bytes(b"half a file")
            raise OSError("No space left on device")
        return real(self, folder, number)

    monkeypatch.setattr(Gathered, "write", crash)
    with pytest.raises(OSError, match="No space"):
        harvest(model, texts, POINTS, out, options)
    assert len(Harvest.open(out)) == 1  # the manifest names only what is whole
    monkeypatch.undo()
    harvest(model, texts, POINTS, out, options)
    assert torch.equal(joined(out)[POINTS[0]], joined(tmp_path / "whole")[POINTS[0]])


def test_memory_holds_one_shard_however_long_the_file_is(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("\n".join([TEXT] * 300), encoding="utf-8")
    held: list[int] = []
    real = Gathered.add

    def add(self: Gathered, tensors: Any, rows: int) -> None:
        real(self, tensors, rows)
        held.append(self.bytes)

    monkeypatch.setattr(Gathered, "add", add)
    harvest(model, path, POINTS, tmp_path / "out", Options(batch=2, shard_bytes=50_000))
    assert len(Harvest.open(tmp_path / "out")) > 20
    assert max(held) < 50_000 + 2 * 20 * (128 + 128 + 8) * 4


def test_it_can_stop_after_some_tokens_and_go_on_later(
    model: Any, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    some = harvest(model, texts, POINTS, out, Options(batch=2, max_tokens=50))
    assert 50 <= some.tokens < 80
    assert harvest(model, texts, POINTS, out, Options(batch=2, max_tokens=50)).tokens == some.tokens
    harvest(model, texts, POINTS, out, Options(batch=2))
    harvest(model, texts, POINTS, tmp_path / "whole", Options(batch=2))
    assert torch.equal(joined(out)["tokens"], joined(tmp_path / "whole")["tokens"])


def test_another_harvest_in_the_folder_is_refused(
    model: Any, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    harvest(model, texts, POINTS, out)
    argv = ["harvest", "demo", texts, "--out", out, "--point"]
    ran = run(capsys, *argv, "mlp_out")
    assert ran.status == 1
    assert "another harvest" in ran.err
    assert "blocks.0.hook_mlp_out" in ran.err
    ran = run(capsys, *argv, POINTS[0], "--point", POINTS[1], "--length", 5)
    assert "length 128, not 5" in ran.err
    with texts.open("a") as file:
        file.write("one more line\n")
    with pytest.raises(InputError, match="source bytes"):
        harvest(model, texts, POINTS, out)


def test_jsonl_and_other_dtypes(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"id": i, "body": f"The Eiffel Tower {i}"}) for i in range(5)]
    path.write_text("\n".join(lines), encoding="utf-8")
    options = Options(field="body", dtype=torch.float16)
    harvest(model, path, POINTS, tmp_path / "out", options)
    found = joined(tmp_path / "out")
    assert found[POINTS[0]].dtype == torch.float16
    assert found["lines"].unique().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match=r"Line 1 .* no text in a field 'bodi'.*'body'"):
        harvest(model, path, POINTS, tmp_path / "other", Options(field="bodi"))
    path.write_text("{oops\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"Line 1 .* is not JSON"):
        harvest(model, path, POINTS, tmp_path / "third")


def test_what_is_not_of_each_token_is_refused(model: Any, texts: Path, tmp_path: Path) -> None:
    for wrong in ("pattern", "hook_pos_embed"):
        axes = model.explain(model.vocabulary.select(wrong)[0]).axes
        if axes.startswith("b p"):
            continue
        with pytest.raises(InputError, match="value for each token"):
            harvest(model, texts, [wrong], tmp_path / "out")
    with pytest.raises(InputError, match="at least one point"):
        harvest(model, texts, [], tmp_path / "out")
    with pytest.raises(InputError, match="longer than the context"):
        harvest(model, texts, POINTS, tmp_path / "out", Options(length=10_000))
    with pytest.raises(InputError, match="Did you mean 'packed'"):
        Options("pakced")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_harvest_is_no_harvest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no manifest\.json"):
        Harvest.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="not the manifest"):
        Harvest.open(tmp_path)


def test_shards_are_read_one_at_a_time(model: Any, texts: Path, tmp_path: Path) -> None:
    harvest(model, texts, POINTS, tmp_path / "out", Options(batch=2, shard_bytes=20_000))
    shards = Harvest.open(tmp_path / "out")
    assert len(shards) > 2
    read = torch.cat([one[POINTS[0]] for one in shards])
    assert torch.equal(read, joined(tmp_path / "out")[POINTS[0]])
    assert all(
        len(one["tokens"]) == s.tokens
        for one, s in zip(shards, shards.manifest.shards, strict=True)
    )


def test_lines_know_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("eins\r\nzwölf\n\nlast".encode())
    lines = list(TextFile(path).lines())
    assert [one.text for one in lines] == ["eins", "zwölf", "", "last"]
    again = list(TextFile(path).lines(lines[1].offset, 1))
    assert again == lines[1:]
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match=r"Line 1 .* is not UTF-8"):
        list(TextFile(path).lines())


def test_padding_does_not_reach_the_tokens_of_an_encoder(texts: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=40, num_hidden_layers=2, **sizes)
    encoder = BertForMaskedLM(config).eval()
    model = lensbridge.load(encoder, tokenizer=words(*dict.fromkeys(WORDS)))
    point = "blocks.0.hook_resid_post"
    harvest(model, texts, [point], tmp_path / "out", Options(batch=8))
    found = joined(tmp_path / "out")
    rows = [found["tokens"][found["lines"] == line] for line in found["lines"].unique()]
    assert len({len(ids) for ids in rows}) > 3  # so that some were padded
    with torch.no_grad():
        alone = [encoder(ids[None], output_hidden_states=True).hidden_states[1][0] for ids in rows]
    torch.testing.assert_close(found[point], torch.cat(alone), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="no EOS token"):
        harvest(model, texts, [point], tmp_path / "packed", Options("packed"))
