"""GGUF: what is loaded is what transformers loads, and what llama.cpp's converter was given."""

import json
import os
import sys
from pathlib import Path
from shutil import copy
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from command import run
from gguf_files import FAMILIES, Kind, tiny, write
from test_tokens import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import lensbridge
from lensbridge.errors import LoadError, TokenizerMissingError
from lensbridge.loading.gguf import converting
from lensbridge.loading.gguf.naming import parts_of
from lensbridge.loading.gguf.reader import FastReader, fast_reading

KINDS = (Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_0)
IDS = torch.arange(3, 23)[None]
TEXT = "the quick  brown fox, 12 of them"


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny models."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of every layout and quantization."""
    found = tmp_path_factory.mktemp("gguf")
    tokenizer = byte_level()
    for family in FAMILIES:
        for kind in KINDS:
            write(tiny(family), found / f"{family}-{kind.name}.gguf", kind, tokenizer)
    return found


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def assert_same_weights(one: Any, other: Any) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


# --- what is loaded ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_the_one_that_transformers_reads(
    folder: Path, family: str, kind: Kind
) -> None:
    name = f"{family}-{kind.name}.gguf"
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype="auto")
    mine = lensbridge.load(folder / name)
    assert type(mine.hf_model) is type(theirs)
    assert_same_weights(mine.hf_model, theirs)
    assert torch.equal(mine(IDS), logits(theirs))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_quantization_it_is_the_model_that_was_converted(folder: Path, family: str) -> None:
    model = lensbridge.load(str(folder / f"{family}-F32.gguf"))
    assert torch.equal(model(IDS), logits(tiny(family)))


def test_a_folder_and_a_file_of_it(folder: Path) -> None:
    one = lensbridge.load(folder, gguf_file="llama-Q8_0.gguf", dtype="bfloat16")
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="llama-Q8_0.gguf", dtype=torch.bfloat16
    )
    assert_same_weights(one.hf_model, theirs)


def test_a_repository_on_the_hub_and_a_file_of_it(folder: Path, tmp_path: Path) -> None:
    commit = "c0ffee" * 6 + "c0ff"
    there = tmp_path / "models--someone--something"
    (there / "refs").mkdir(parents=True)
    (there / "refs" / "main").write_text(commit)
    (there / "snapshots" / commit).mkdir(parents=True)
    copy(folder / "llama-Q8_0.gguf", there / "snapshots" / commit)
    found = lensbridge.load(
        "someone/something", gguf_file="llama-Q8_0.gguf", cache_dir=tmp_path, local_files_only=True
    )
    assert_same_weights(found.hf_model, lensbridge.load(folder / "llama-Q8_0.gguf").hf_model)
    assert found.to_tokens(TEXT, prepend_bos=False).tolist()[0] == byte_level()(TEXT).input_ids
    with pytest.raises(LoadError, match="Pass a folder"):
        lensbridge.load(
            "someone/something",
            gguf_file="llama-Q8_0.gguf",
            cache_dir=tmp_path,
            local_files_only=True,
            save_converted=True,
        )


def test_the_tokenizer_comes_from_the_file(folder: Path) -> None:
    model = lensbridge.load(folder / "llama-F32.gguf")
    ids = byte_level()(TEXT).input_ids
    assert model.to_tokens(TEXT, prepend_bos=False).tolist()[0] == ids
    theirs = AutoTokenizer.from_pretrained(folder, gguf_file="llama-F32.gguf")
    assert model.tokenizer(TEXT) == theirs(TEXT)


def test_the_model_is_plain_so_that_it_is_processed_and_saved(folder: Path, tmp_path: Path) -> None:
    model = lensbridge.load(folder / "llama-Q4_0.gguf")
    before = model(IDS)
    model.hf_model.save_pretrained(tmp_path)
    assert torch.equal(lensbridge.load(tmp_path)(IDS), before)
    folded = lensbridge.load(folder / "llama-Q4_0.gguf", fold_ln=True)
    torch.testing.assert_close(folded(IDS), before, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        model.W_Q[1, 0].zero_()
    assert not torch.allclose(model(IDS), before)


def test_parts_of_a_file_are_one_model(tmp_path: Path) -> None:
    model = tiny("llama")
    write(model, tmp_path / "m.gguf", Kind.F32, byte_level(), split_max_tensors=9)
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert parts == parts_of(parts[0])
    assert len(parts) == 3
    opened = lensbridge.load(tmp_path / parts[0])
    assert_same_weights(opened.hf_model, model)
    with pytest.raises(LoadError, match=r"Name the first: 'm-00001-of-00003\.gguf'"):
        lensbridge.load(tmp_path / parts[1])
    (tmp_path / parts[1]).unlink()
    with pytest.raises(LoadError, match=r"has no file 'm-00002-of-00003\.gguf'"):
        lensbridge.load(tmp_path / parts[0])


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    path = write(tiny("llama"), tmp_path / "m.gguf")
    model = lensbridge.load(path)
    assert model(IDS).shape == (1, 20, 320)
    with pytest.raises(TokenizerMissingError, match="Pass one"):
        model.to_tokens(TEXT)
    byte_level().save_pretrained(tmp_path)
    beside = lensbridge.load(path)
    assert beside.to_tokens(TEXT, prepend_bos=False).tolist()[0] == byte_level()(TEXT).input_ids


def test_a_file_that_tells_the_size_of_the_vocabulary_only_by_its_embedding(
    tmp_path: Path,
) -> None:
    class Untold(gguf.GGUFWriter):
        def add_vocab_size(self, size: int) -> None:
            pass

    model = tiny("qwen2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gguf_files.GGUFWriter", Untold)
        path = write(model, tmp_path / "m.gguf")
    assert torch.equal(lensbridge.load(path)(IDS), logits(model))


# --- rotary scaling, which transformers leaves out -----------------------------------------------


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def divisors(factor: float = 32.0, count: int = 8) -> np.ndarray:
    """`rope_freqs.weight` as the converter of llama.cpp computes it, number by number."""
    found = []
    for index in range(count):
        wavelength = 2 * np.pi * 500000.0 ** (index / count)
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


def stated(architecture: str, kind: str, factor: float, context: int | None = None) -> Any:
    found = {
        f"{architecture}.rope.scaling.type": kind,
        f"{architecture}.rope.scaling.factor": factor,
    }
    key = f"{architecture}.rope.scaling.original_context_length"
    return found if context is None else {**found, key: context}


def test_the_scaling_of_llama_3(tmp_path: Path) -> None:
    model = tiny("llama", rope_parameters=LLAMA3)
    path = write(model, tmp_path / "m.gguf", tensors={"rope_freqs.weight": divisors()})
    assert torch.equal(lensbridge.load(path)(IDS), logits(model))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert not torch.allclose(logits(theirs), logits(model))  # the day it does not, drop our code


def test_linear_scaling_and_yarn(tmp_path: Path) -> None:
    base = {"rope_theta": 10000.0, "factor": 4.0}
    for rope, says in (
        ({"rope_type": "linear", **base}, stated("llama", "linear", 4.0)),
        (
            {"rope_type": "yarn", "original_max_position_embeddings": 32, **base},
            stated("llama", "yarn", 4.0, 32),
        ),
    ):
        model = tiny("llama", rope_parameters=rope)
        path = write(model, tmp_path / f"{rope['rope_type']}.gguf", extra=says)
        assert torch.equal(lensbridge.load(path)(IDS), logits(model))


def test_linear_scaling_of_the_global_layers_of_gemma_3(tmp_path: Path) -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    kinds = ["sliding_attention", "full_attention"] * 3
    model = tiny("gemma3", rope_parameters=rope, num_hidden_layers=6)
    model_layers = model.config.layer_types
    assert set(model_layers) == set(kinds)
    path = write(model, tmp_path / "m.gguf", extra=stated("gemma3", "linear", 8.0))
    assert torch.equal(lensbridge.load(path)(IDS), logits(model))


@pytest.mark.parametrize(
    ("extra", "tensors"),
    [
        (stated("llama", "longrope", 4.0), {}),
        ({}, {"rope_freqs.weight": 2 * divisors()}),
        ({}, {"rope_factors_long.weight": divisors()}),
        ({**stated("llama", "yarn", 4.0, 32), "llama.rope.scaling.yarn_beta_fast": 8.0}, {}),
    ],
    ids=["kind", "divisors", "lists", "settings"],
)
def test_other_scaling_is_refused(tmp_path: Path, extra: Any, tensors: Any) -> None:
    path = write(tiny("llama"), tmp_path / "m.gguf", extra=extra, tensors=tensors)
    with pytest.raises(LoadError, match="scales its rotary positions"):
        lensbridge.load(path)


def test_scaling_by_one_is_none(tmp_path: Path) -> None:
    model = tiny("llama")
    ones = {"rope_freqs.weight": np.ones(8, dtype=np.float32)}
    path = write(model, tmp_path / "m.gguf", tensors=ones)
    assert torch.equal(lensbridge.load(path)(IDS), logits(model))


# --- fields of the config that transformers leaves out --------------------------------------------


@pytest.mark.parametrize(("family", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemmas_scale_attention_by_another_width(
    tmp_path: Path, family: str, layers: int
) -> None:
    model = tiny(family, num_hidden_layers=layers, query_pre_attn_scalar=64 // 4)
    path = write(model, tmp_path / "m.gguf")
    assert torch.equal(lensbridge.load(path)(IDS), logits(model))


def test_the_window_of_phi_3(tmp_path: Path) -> None:
    model = tiny("phi3", sliding_window=5)
    path = write(model, tmp_path / "m.gguf", extra={"tokenizer.ggml.padding_token_id": 0})
    assert torch.equal(lensbridge.load(path)(IDS), logits(model))


def test_t5_has_its_own_activation(tmp_path: Path) -> None:
    model = tiny("t5")
    path = write(model, tmp_path / "m.gguf")
    found = lensbridge.load(path).hf_model
    asked = {"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}
    with torch.no_grad():
        assert torch.equal(found(**asked).logits, model(**asked).logits)
    found.save_pretrained(tmp_path / "saved")
    again = lensbridge.load(tmp_path / "saved").hf_model
    with torch.no_grad():
        assert torch.equal(again(**asked).logits, model(**asked).logits)


# --- reading once --------------------------------------------------------------------------------


def test_the_reader_reads_what_that_of_gguf_reads(folder: Path) -> None:
    for path in (folder / "gemma3-Q4_0.gguf", folder / "gpt2-F16.gguf"):
        mine, theirs = FastReader(path), gguf.GGUFReader(path)
        assert list(mine.fields) == list(theirs.fields)
        for name, field in theirs.fields.items():
            found = mine.fields[name]
            assert (found.data, found.types) == (field.data, field.types), name
            assert found.contents() == field.contents(), name
            assert len(found.parts) == len(field.parts), name
        for one, other in zip(mine.tensors, theirs.tensors, strict=True):
            assert (one.name, one.tensor_type) == (other.name, other.tensor_type)
            assert np.array_equal(one.data, other.data)


def test_a_header_is_read_once_and_a_table_of_names_is_built_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    built: list[int] = []
    init, table = FastReader.__init__, gguf.get_tensor_name_map

    def counted(self: Any, path: Any, *rest: Any) -> None:
        read.append(str(path))
        init(self, path, *rest)

    monkeypatch.setattr(FastReader, "__init__", counted)
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda *key: built.append(1) or table(*key))
    lensbridge.load(folder / "llama-F32.gguf")
    assert read == [str(folder / "llama-F32.gguf")]
    assert len(built) == 1


def test_what_was_lent_to_transformers_is_given_back(folder: Path) -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with fast_reading():
        assert gguf.GGUFReader is not before[0]
        with pytest.raises(LoadError):
            lensbridge.load(folder / "llama-F32.gguf", gguf_file="x")
        assert gguf.GGUFReader is not before[0]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
    lensbridge.load(folder / "llama-F32.gguf")
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


# --- a converted copy ----------------------------------------------------------------------------


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose weights are dequantized."""
    found: list[str] = []
    unpack = gguf.dequantize

    def counted(data: Any, kind: Any) -> Any:
        found.append(kind.name)
        return unpack(data, kind)

    monkeypatch.setattr(gguf, "dequantize", counted)
    return found


def test_a_converted_copy_is_opened_instead(
    folder: Path, tmp_path: Path, readings: list[str]
) -> None:
    path = Path(copy(folder / "qwen2-Q8_0.gguf", tmp_path / "m.gguf"))
    first = lensbridge.load(path, save_converted=True)
    count = len(readings)
    assert count
    again = lensbridge.load(path, save_converted=True)
    assert len(readings) == count
    assert (tmp_path / "m.gguf.converted" / "model.safetensors").is_file()
    plain = lensbridge.load(path)
    for one in (first, again):
        assert_same_weights(one.hf_model, plain.hf_model)
        assert torch.equal(one(IDS), plain(IDS))
        assert one.to_tokens(TEXT).tolist() == plain.to_tokens(TEXT).tolist()


def test_a_copy_is_made_again_when_the_file_or_the_dtype_is_another(
    folder: Path, tmp_path: Path, readings: list[str]
) -> None:
    path, kept = Path(copy(folder / "llama-Q8_0.gguf", tmp_path / "m.gguf")), tmp_path / "kept"
    kept.mkdir()
    lensbridge.load(path, save_converted=kept)
    count = len(readings)
    half = lensbridge.load(path, save_converted=kept, dtype="bfloat16")
    assert len(readings) == 2 * count
    assert half.hf_model.dtype == torch.bfloat16
    os.utime(path, ns=(0, 0))
    lensbridge.load(path, save_converted=kept, dtype="bfloat16")
    assert len(readings) == 3 * count
    said = json.loads((kept / "converted-from.json").read_text())
    assert said["parts"][0][:3] == ["m.gguf", path.stat().st_size, 0]


def test_a_copy_is_offloaded_to_disk(folder: Path, tmp_path: Path) -> None:
    path, kept = folder / "llama-Q8_0.gguf", tmp_path / "kept"
    places = {"model.layers.1": "disk", "lm_head": "cpu", "model.norm": "cpu"}
    places |= {f"model.{part}": "cpu" for part in ("embed_tokens", "layers.0", "rotary_emb")}
    with pytest.raises(LoadError, match="save_converted=True"):
        lensbridge.load(path, device_map=places, offload_folder=tmp_path / "off")
    model = lensbridge.load(
        path, device_map=places, offload_folder=tmp_path / "off", save_converted=kept
    )
    assert model.hf_model.model.layers[1].mlp.up_proj.weight.is_meta
    assert torch.equal(model(IDS), lensbridge.load(path)(IDS))


def test_a_copy_replaces_nothing_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LoadError, match="holds no converted model"):
        lensbridge.load(folder / "llama-F32.gguf", save_converted=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(LoadError, match="save_converted is for GGUF files"):
        lensbridge.load("demo", save_converted=True)
    with pytest.raises(LoadError, match="save_converted can be passed only when"):
        lensbridge.load(tiny("llama"), save_converted=True)


def test_a_copy_that_the_disk_has_no_room_for_is_not_begun(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, kept = folder / "llama-Q8_0.gguf", tmp_path / "kept"
    model = lensbridge.load(path).hf_model
    needed = sum(one.nbytes for one in (*model.parameters(), *model.buffers()))
    free = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(converting, "disk_usage", lambda where: free)
    with pytest.raises(LoadError, match=r"converted model takes .* GB are free .*another disk"):
        lensbridge.load(path, save_converted=kept)
    assert not any(tmp_path.iterdir())
    free.free = needed
    lensbridge.load(path, save_converted=kept)


# --- what is refused -----------------------------------------------------------------------------


def test_tensors_that_find_no_place_are_refused(tmp_path: Path) -> None:
    model = tiny("llama", attention_bias=True)
    path = write(model, tmp_path / "m.gguf")
    with pytest.raises(LoadError, match=r"blk\.0\.attn_\w+\.bias.* and 5 more, for which"):
        lensbridge.load(path)


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    path = write(tiny("llama"), tmp_path / "m.gguf", drop=("blk.1.ffn_up.weight",))
    with pytest.raises(LoadError, match=r"lacks 1 weights .*layers\.1\.mlp\.up_proj"):
        lensbridge.load(path)


def test_a_damaged_file(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "llama-Q8_0.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    for content, said in (
        (b"<html>not found", r"not a GGUF file: it begins with b'<htm'"),
        (b"", "not a GGUF file: it begins with b''"),
        (whole[:5], "damaged or cut short"),
        (whole[:2000], "damaged or cut short"),
        (whole[:-5000], "damaged or cut short"),
    ):
        path.write_bytes(content)
        with pytest.raises(LoadError, match=said):
            lensbridge.load(path)


def test_an_architecture_that_transformers_does_not_read(folder: Path, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "rwkv7")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(LoadError, match=r"architecture rwkv7 .*reads from GGUF: .*llama"):
        lensbridge.load(tmp_path / "m.gguf")


def test_a_quantization_that_gguf_does_not_unpack(tmp_path: Path) -> None:
    writing = gguf.GGUFWriter

    class Odd(writing):  # type: ignore[misc, valid-type]
        def add_tensor(self, name: str, tensor: Any, raw_dtype: Any = None, **rest: Any) -> None:
            if name == "blk.0.ffn_up.weight":
                tensor, raw_dtype = np.zeros((96, 2 * 40), dtype=np.uint8), Kind.Q8_1
            super().add_tensor(name, tensor, raw_dtype=raw_dtype, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gguf_files.GGUFWriter", Odd)
        path = write(tiny("llama"), tmp_path / "m.gguf")
    with pytest.raises(LoadError, match=r"cannot be read by transformers.*Q8_1"):
        lensbridge.load(path)


def test_a_file_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r'load\("owner/name", gguf_file=.m.gguf.\)'):
        lensbridge.load(tmp_path / "m.gguf")
    with pytest.raises(LoadError, match=r"has no file 'x\.gguf'\. It has GGUF.*gemma3-F16"):
        lensbridge.load(folder, gguf_file="x.gguf")
    with pytest.raises(LoadError, match=r"no config\.json.*gguf_file='gemma3-F16\.gguf' or"):
        lensbridge.load(folder)
    with pytest.raises(LoadError, match=r"Both .* name a file"):
        lensbridge.load(folder / "llama-F32.gguf", gguf_file="llama-F32.gguf")


def test_without_the_package_gguf(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for keep in (False, True):
        with pytest.raises(LoadError, match=r"pip install 'lensbridge\[gguf\]'"):
            lensbridge.load(folder / "llama-F32.gguf", save_converted=keep)


# --- the command ---------------------------------------------------------------------------------


def test_commands_take_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "lens", folder / "llama-F32.gguf", TEXT, "--json")
    assert done.status == 0, done.err
    model = lensbridge.load(folder / "llama-F32.gguf")
    assert model.to_str_tokens(TEXT)[-1] in done.out


def test_a_plan_reads_the_header_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], readings: list[str]
) -> None:
    done = run(capsys, "plan", folder / "gemma3-Q8_0.gguf", "--json")
    assert done.status == 0, done.err
    assert done.json["parameters"] == sum(one.numel() for one in tiny("gemma3").parameters())
    assert readings == []
