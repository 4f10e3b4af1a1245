"""What commands print: numbers are those of the bare model, or of the raw hooks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from command import CLEAN, CORRUPTED, run, run_alone
from pictures import marks, texts
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import lensbridge
from lensbridge.loading import demo_folder

PARIS, ISTANBUL = " Paris", " Istanbul"


@pytest.fixture(scope="module")
def bare() -> Any:
    """The demo model without lensbridge."""
    return AutoModelForCausalLM.from_pretrained(
        demo_folder(), attn_implementation="eager", dtype="auto"
    ).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_folder())


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> dict[str, Tensor]:
    """Each prompt with BOS."""
    return {
        text: torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        for text in (CLEAN, CORRUPTED)
    }


def streams(bare: Any, ids: Tensor) -> list[Tensor]:
    """The stream before each layer and after the last, by raw hooks on the layers."""
    kept: list[Tensor] = []
    blocks = bare.transformer.h
    handles = [
        block.register_forward_pre_hook(lambda _, args: kept.append(args[0])) for block in blocks
    ]
    handles.append(bare.transformer.ln_f.register_forward_pre_hook(lambda _, a: kept.append(a[0])))
    with torch.no_grad():
        bare(ids)
    for handle in handles:
        handle.remove()
    return kept


def close(told: Any, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(torch.tensor(told), wanted, rtol=tolerance, atol=tolerance)


# --- lens ------------------------------------------------------------------------------------


def test_lens_gives_what_the_bare_head_makes_of_the_stream(
    bare: Any, tokenizer: Any, ids: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    told = run(capsys, "lens", "demo", CLEAN, "--top", 3, "--json").json
    with torch.no_grad():
        heads = [bare.lm_head(bare.transformer.ln_f(one)) for one in streams(bare, ids[CLEAN])]
    probs = torch.stack(heads)[:, 0].softmax(-1)
    wanted = probs.topk(3)
    close(told["top_probs"], wanted.values)
    assert told["top_ids"] == wanted.indices.tolist()
    assert told["tokens"] == [tokenizer.decode([one]) for one in ids[CLEAN][0]]
    assert told["top_tokens"][-1][-1][0] == PARIS
    close(told["entropy"], -(probs * probs.log()).sum(-1), 1e-4)

    told = run(capsys, "lens", "demo", CLEAN, "--target", PARIS, "--json").json
    [paris] = tokenizer(PARIS)["input_ids"]
    close(told["prob"], probs[..., paris])
    assert told["rank"] == (probs > probs[..., paris, None]).sum(-1).tolist()


def test_lens_prints_the_likeliest_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "lens", "demo", CLEAN)
    assert "0_pre is before layer 0" in ran.err
    rows = {line.split()[0]: line for line in ran.out.splitlines() if line.strip()}
    assert rows["final_post"].split()[-2:] == ["·Paris", "99"]
    assert "8:·of" in rows["layer"]


# --- attn ------------------------------------------------------------------------------------


def test_attn_gives_the_bare_patterns(
    bare: Any, ids: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        wanted = bare(ids[CLEAN], output_attentions=True).attentions
    told = run(capsys, "attn", "demo", CLEAN, "--json").json
    assert list(told["patterns"]) == ["0", "1", "2", "3"]
    for layer, pattern in enumerate(wanted):
        close(told["patterns"][str(layer)], pattern[0])
    told = run(capsys, "attn", "demo", CLEAN, "--layer", -2, "--head", 1, "--json").json
    close(told["patterns"]["2"], wanted[2][0, 1:2])

    # layer 2, head 2 attends most to the landmark: in percent, as in the table of all heads
    weight, key = wanted[2][0, 2, -1].max(-1)
    lines = run(capsys, "attn", "demo", CLEAN).out.splitlines()
    row = next(line.split() for line in lines if line.strip().startswith("2 "))
    assert row[5:7] == [told["tokens"][key].replace(" ", "·"), f"{100 * weight:.0f}"]
    rows = run(capsys, "attn", "demo", CLEAN, "--layer", 2).out
    line = next(line for line in rows.splitlines() if line.strip().startswith("head 2"))
    assert line.split()[2:] == [f"{100 * one:.0f}" for one in wanted[2][0, 2, -1].tolist()]


def test_attn_of_one_head_shows_the_whole_pattern(
    bare: Any, ids: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        wanted = bare(ids[CLEAN], output_attentions=True).attentions[1][0, 3]
    out = run(capsys, "attn", "demo", CLEAN, "--layer", 1, "--head", 3).out
    lines = [line.split() for line in out.splitlines() if line.strip()[:2] in ("4:", "8:")]
    for place, line in zip((4, 8), lines, strict=True):
        assert line[1:] == [f"{100 * one:.0f}" for one in wanted[place].tolist()]


# --- patch -----------------------------------------------------------------------------------


def patched_by_hand(bare: Any, ids: dict[str, Tensor], right: int, wrong: int) -> Tensor:
    """The logit difference with the clean stream before each layer at each position."""
    clean = streams(bare, ids[CLEAN])
    rows = []
    for layer, block in enumerate(bare.transformer.h):
        row = []
        for place in range(ids[CLEAN].shape[1]):

            def patch(_: Any, args: Any, layer: int = layer, place: int = place) -> Any:
                stream = args[0].clone()
                stream[:, place] = clean[layer][:, place]
                return (stream, *args[1:])

            handle = block.register_forward_pre_hook(patch)
            with torch.no_grad():
                logits = bare(ids[CORRUPTED]).logits[0, -1]
            handle.remove()
            row.append(logits[right] - logits[wrong])
        rows.append(torch.stack(row))
    return torch.stack(rows)


def test_patch_gives_what_raw_hooks_give(
    bare: Any, tokenizer: Any, ids: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    told = run(capsys, "patch", "demo", CLEAN, CORRUPTED, "--json").json
    assert (told["answer"], told["wrong"]) == (PARIS, ISTANBUL)  # what the model predicts
    [right], [wrong] = tokenizer(PARIS)["input_ids"], tokenizer(ISTANBUL)["input_ids"]
    wanted = patched_by_hand(bare, ids, right, wrong)
    close(told["values"], wanted, 1e-4)
    with torch.no_grad():
        ends = [bare(ids[one]).logits[0, -1] for one in (CLEAN, CORRUPTED)]
    clean, corrupted = (one[right] - one[wrong] for one in ends)
    close(told["clean"], clean)
    close(told["corrupted"], corrupted)
    close(told["restored"], (wanted - corrupted) / (clean - corrupted), 1e-4)

    out = run(capsys, "patch", "demo", CLEAN, CORRUPTED).out
    line = next(line.split() for line in out.splitlines() if line.strip().startswith("3 "))
    assert line[1:] == [f"{round(100 * one)}" for one in told["restored"][3]]
    assert "2:·Eiffel/Galata" in out


def test_patch_takes_other_answers_points_and_heads(
    bare: Any, tokenizer: Any, ids: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ("--answer", PARIS, "--wrong", " Athens")
    told = run(capsys, "patch", "demo", CLEAN, CORRUPTED, *answers, "--heads", "--json").json
    [right], [wrong] = tokenizer(PARIS)["input_ids"], tokenizer(" Athens")["input_ids"]
    layer, head, width = 3, 2, bare.config.n_embd // bare.config.n_head
    inputs: list[Tensor] = []
    module = bare.transformer.h[layer].attn.c_proj
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        bare(ids[CLEAN])
    handle.remove()

    def patch(_: Any, args: Any) -> Any:
        z = args[0].clone()
        z[..., head * width : (head + 1) * width] = inputs[0][
            ..., head * width : (head + 1) * width
        ]
        return (z,)

    handle = module.register_forward_pre_hook(patch)
    with torch.no_grad():
        logits = bare(ids[CORRUPTED]).logits[0, -1]
    handle.remove()
    close(told["values"][layer][head], logits[right] - logits[wrong], 1e-4)
    told = run(capsys, "patch", "demo", CLEAN, CORRUPTED, "--point", "mlp_out", "--json").json
    assert torch.tensor(told["values"]).shape == (4, 9)


# --- steer -----------------------------------------------------------------------------------


def test_steer_adds_the_difference_of_means(
    bare: Any, tokenizer: Any, ids: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["steer", "demo", CLEAN, "--toward", CORRUPTED, "--away", CLEAN, "--layer", 1]
    told = run(capsys, *argv, "--scale", 1.5, "--tokens", 2, "--json").json
    toward, away = (streams(bare, ids[one])[2][0, -1] for one in (CORRUPTED, CLEAN))
    vector = toward - away
    close(told["vector_norm"], vector.norm())
    with torch.no_grad():
        plain = bare(ids[CLEAN]).logits[0, -1].softmax(-1)
        handle = bare.transformer.h[2].register_forward_pre_hook(
            lambda _, args: (args[0] + 1.5 * vector, *args[1:])
        )
        steered = bare(ids[CLEAN]).logits[0, -1].softmax(-1)
        handle.remove()
    for one in told["next_tokens"]:
        [at] = tokenizer(one["token"])["input_ids"]
        close(one["without"], plain[at])
        close(one["steered"], steered[at], 1e-4)
    first = tokenizer.decode([int(steered.argmax())])
    assert told["steered"].removeprefix(CLEAN).startswith(first)
    assert told["without"].removeprefix(CLEAN).startswith(PARIS)
    assert told["point"] == "blocks.1.hook_resid_post"


def test_steer_shows_both_sides_and_takes_full_names(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["steer", "demo", CLEAN, "--toward", CORRUPTED, "--away", CLEAN, "--tokens", "1"]
    ran = run(capsys, *argv, "--scale", "0")
    assert ran.err == ""
    assert ran.out.count(f"{CLEAN} Paris") == 2  # a vector times zero changes nothing
    assert "without" in ran.out
    assert "steered" in ran.out
    point = "blocks.1.hook_resid_post"
    assert run(capsys, *argv, "--point", point, "--json").json["point"] == point
    assert run(capsys, *argv, "--point", point, "--layer", 1).status == 1


# --- points, plan ----------------------------------------------------------------------------


def real_cache(names: Any = None, batch: int = 2, length: int = 6) -> dict[str, Tensor]:
    """What a run of the real model keeps."""
    tokens = torch.randint(5, 100, (batch, length))
    return dict(lensbridge.load("demo").run_with_cache(tokens, names_filter=names)[1])


def test_points_lists_what_a_run_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    told = run(capsys, "points", "demo", "--batch", 2, "--length", 6, "--json").json["points"]
    model = lensbridge.load("demo")
    assert [one["name"] for one in told] == model.hook_names
    kept = real_cache(model.hook_names)
    for one in told:
        value = kept[one["name"]]
        assert one["shape"] == list(value.shape), one["name"]
        assert one["dtype"] == str(value.dtype).removeprefix("torch.")
        assert one["bytes"] == value.numel() * value.element_size()
        assert len(one["axes"].split()) == value.ndim


def test_points_prints_a_tree(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "points", "demo", "--point", "blocks.2.attn.hook_z", "--length", 7).out
    assert out.splitlines()[0].startswith("LensModel(GPT2LMHeadModel")
    assert out.splitlines()[-1].split("hook_z")[1].split() == (
        ["b", "p", "h", "d", "1", "x", "7", "x", "4", "x", "32", "float32", "3.58", "kB"]
    )


def storages(cache: dict[str, Tensor]) -> int:
    """Bytes of memory that a cache holds on to."""
    found = {one.untyped_storage().data_ptr(): one.untyped_storage() for one in cache.values()}
    return sum(one.nbytes() for one in found.values())


@pytest.mark.parametrize("asked", [[], ["--point", "resid_post"], ["--point", "q", "--point", "k"]])
def test_plan_tells_what_a_real_run_takes(
    bare: Any, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = run(capsys, "plan", "demo", "--batch", 2, "--length", 6, *asked, "--json").json
    assert told["parameters"] == sum(one.numel() for one in bare.parameters())
    held = {one.data_ptr(): one.nbytes for one in (*bare.parameters(), *bare.buffers())}
    assert told["weight_bytes"] == sum(held.values())
    kept = real_cache(asked[1::2] or None)
    assert told["cache_bytes"] == storages(kept)
    assert sum(one["points"] for one in told["points"]) == len(kept)
    assert sum(one["bytes"] for one in told["points"]) == sum(one.nbytes for one in kept.values())


def test_a_plan_in_another_dtype_is_half_as_large(capsys: pytest.CaptureFixture[str]) -> None:
    whole, half = (
        run(capsys, "plan", "demo", "--dtype", one, "--json").json
        for one in ("float32", "bfloat16")
    )
    assert half["parameters"] == whole["parameters"]
    assert half["weight_bytes"] < 0.6 * whole["weight_bytes"]
    assert half["cache_bytes"] < 0.7 * whole["cache_bytes"]


def test_a_model_far_too_large_for_this_machine_is_planned_from_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import LlamaConfig, MixtralConfig

    large = LlamaConfig(
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        tie_word_embeddings=False,
    )
    large.save_pretrained(tmp_path / "large")
    argv = ["--point", "resid_post", "--batch", 4, "--length", 1000, "--json"]
    told = run(capsys, "plan", tmp_path / "large", *argv).json
    layer = 2 * 16384 * 16384 + 2 * 16384 * 1024 + 3 * 16384 * 53248 + 2 * 16384
    assert told["parameters"] == 126 * layer + 2 * 128256 * 16384 + 16384  # 405 billion
    assert told["cache_bytes"] == 126 * 4 * 1000 * 16384 * 2

    MixtralConfig(architectures=["MixtralForCausalLM"], dtype="bfloat16").save_pretrained(
        tmp_path / "experts"
    )
    told = run(capsys, "plan", tmp_path / "experts", "--point", "router_logits", "--json").json
    assert told["parameters"] > 46e9
    assert [one["shape"] for one in told["points"]] == [[1, 128, 8]]


def test_what_cannot_be_planned_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import ViTConfig

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, architectures=["ViTForImageClassification"]
    )
    config.save_pretrained(tmp_path)
    ran = run(capsys, "plan", tmp_path)
    assert ran.status == 0
    assert "parameters" in ran.out
    assert "cannot be told" in ran.err
    assert run(capsys, "plan", tmp_path, "--json").json["points"] is None


# --- adapters, doctor, demo ------------------------------------------------------------------


def test_adapters_lists_every_description(capsys: pytest.CaptureFixture[str]) -> None:
    import lensbridge_adapters

    told = run(capsys, "adapters", "--json").json
    shipped = {one.name: one for one in lensbridge_adapters.lensbridge_architectures()}
    found = {one["name"]: one for one in told["adapters"]}
    assert shipped.keys() <= found.keys()
    assert found["gpt2"]["classes"] == list(shipped["gpt2"].classes)
    assert found["gpt2"]["plugin"] == "lensbridge_adapters"
    named = run(capsys, "adapters", "LlamaForCausalLM", "--json").json["adapters"]
    assert named
    assert all("LlamaForCausalLM" in one["classes"] for one in named)
    out = run(capsys, "adapters", "gpt2").out
    assert "GPT2LMHeadModel" in out


def test_doctor_speaks_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    import transformers

    told = run(capsys, "doctor", "demo", "--json").json
    assert told["passed"] is True
    assert told["verdict"].startswith("GPT2LMHeadModel behaves as its description 'gpt2' says")
    assert {one["status"] for one in told["checks"]} <= {"passed", "skipped"}
    assert told["versions"]["transformers"] == transformers.__version__


def test_demo_speaks_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.html"
    told = run(capsys, "demo", "--out", path, "--json").json
    assert told["report"] == str(path)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert all(one["topic"] and one["value"] for one in told["findings"])


# --- pictures --------------------------------------------------------------------------------

RUNS = {
    "lens": ["demo", CLEAN],
    "target": ["demo", CLEAN, "--target", PARIS],
    "attn": ["demo", CLEAN],
    "head": ["demo", CLEAN, "--layer", "2", "--head", "1"],
    "patch": ["demo", CLEAN, CORRUPTED],
    "heads": ["demo", CLEAN, CORRUPTED, "--heads"],
    "steer": ["demo", CLEAN, "--toward", CORRUPTED, "--away", CLEAN],
}
COMMAND = {"target": "lens", "head": "attn", "heads": "patch"}


@pytest.mark.parametrize("name", RUNS)
def test_pictures_are_written_where_they_are_asked_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, image = tmp_path / "x.html", tmp_path / "x.png"
    argv = [COMMAND.get(name, name), *RUNS[name], "--html", page, "--png", image]
    ran = run(capsys, *argv, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["model"] == "demo"  # the files are told of on stderr
    assert str(page) in ran.err
    html = page.read_text(encoding="utf-8")
    assert "Eiffel" in html or "head 0" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert image.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_steering_has_the_probabilities_of_both_runs(
    bare: Any, ids: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "steer.svg"
    told = run(capsys, "steer", *RUNS["steer"], "--scale", 2, "--png", path, "--json").json
    shown = {mark.tip for mark in marks(path.read_text(encoding="utf-8"))}
    with torch.no_grad():
        plain = bare(ids[CLEAN]).logits[0, -1].softmax(-1)
    assert any(f"{float(plain.max()):.3g}" in tip and "Paris" in tip for tip in shown), shown
    assert len(shown) == 2 * len(told["next_tokens"])


def test_a_picture_of_all_layers_names_heads_by_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "attn.svg"
    assert run(capsys, "attn", "demo", CLEAN, "--png", path).status == 0
    heads = {f"{layer}.{head}" for layer in range(4) for head in range(4)}
    assert heads <= set(texts(path.read_text(encoding="utf-8")))


def test_a_run_of_its_own_writes_nothing_but_json() -> None:
    ran = run_alone(["lens", "demo", CLEAN, "--json"])
    assert ran.status == 0
    assert ran.err == ""
    assert ran.json["top_tokens"][-1][-1] == [PARIS]
