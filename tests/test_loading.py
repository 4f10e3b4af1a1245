"""Loading: by object, by folder and from a hub, which here is a small server of our own."""

import gc
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_tokens import letters
from tiny_models import FAMILIES, Shape, build, tokens
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import lensbridge
from lensbridge.errors import (
    HubError,
    InputError,
    LoadError,
    TokenizerMissingError,
    UnsupportedArchitectureError,
)
from lensbridge.loading.quiet import no_progress_bar

COMMIT = "c0ffee" * 6 + "c0ff"


def saved(folder: Path, family: str = "llama", tokenizer: bool = True, **shape: Any) -> Path:
    build(Shape(family, **shape)).save_pretrained(folder)
    if tokenizer:
        letters().save_pretrained(folder)
    return folder


# --- a hub ---------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Serves one folder under every name, and refuses by what the name says."""

    protocol_version = "HTTP/1.1"
    folder: Path
    section: str
    requests: dict[str, list[tuple[str, str | None]]]

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str = "no") -> None:
        self.answer(status, X_Error_Code=code, X_Error_Message=message)

    def serve(self) -> None:
        hub, token, path = type(self), self.headers.get("Authorization"), self.path
        if path.startswith("/section/"):
            hub.section = path.rpartition("/")[2]
            hub.requests[hub.section] = []
            return self.answer(200)
        hub.requests[hub.section].append((path, token))
        revision = path.partition("/resolve/")[2].partition("/")[0]
        revision = revision or path.partition("/revision/")[2].partition("?")[0] or "main"
        if "/gated" in path and token != "Bearer granted":
            return self.refuse(403 if token else 401, "GatedRepo")
        if "/missing" in path:
            return self.refuse(404 if token else 401, "RepoNotFound")
        if "/expired" in path:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if "/forbidden" in path or "/broken" in path:
            return self.answer(403 if "/forbidden" in path else 500)
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        return self.serve_file(path)

    def serve_file(self, path: str) -> None:
        if "/tree/" in path:
            return self.answer(200, b"[]")
        if "/resolve/" not in path:
            return self.answer(200, json.dumps({"id": "org/tiny", "sha": COMMIT}).encode())
        file = self.folder / path.rpartition("/")[2]
        hidden = file.suffix == ".safetensors" if "/weightless" in path else "/empty" in path
        if hidden or not file.is_file():
            headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": COMMIT}
            return self.answer(404, **headers)
        body = file.read_bytes()
        etag = f'"{hashlib.sha1(body).hexdigest()}"'
        return self.answer(200, body, ETag=etag, X_Repo_Commit=COMMIT)

    do_GET = do_HEAD = serve  # noqa: N815  (names that http.server looks for)


CHILD = """
import json, sys, time, urllib.request
time.sleep = lambda seconds: None  # huggingface_hub waits between its attempts
import lensbridge
for section, name, keywords in json.loads(sys.argv[1]):
    if marks := sys.argv[2:]:
        urllib.request.urlopen(f"{marks[0]}/section/{section}").close()
    try:
        model = lensbridge.load(name, **keywords)
        ids = model.to_tokens("a cat").tolist()
        again = lensbridge.load(model.hf_model, tokenizer=model.tokenizer)
        print(json.dumps([section, type(model.hf_model).__name__, f"{ids}"]))
    except Exception as error:
        print(json.dumps([section, type(error).__name__, str(error)]))
"""


def child(calls: list[Any], endpoint: str, home: Path, *marks: str, **env: str) -> dict[str, Any]:
    """What each call gave in a process of its own: type and text of the result or error."""
    told = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **env}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD, json.dumps(calls), *marks],
        env={**{k: v for k, v in os.environ.items() if not k.startswith("HF_")}, **told},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {section: (kind, text) for section, kind, text in lines}


CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("public", "org/tiny", {}),
    ("anonymous", "org/tiny1", {"token": False}),
    ("token", "org/tiny2", {"token": "mine"}),
    ("commit", "org/tiny3", {"revision": COMMIT}),
    ("gated", "org/gated", {}),
    ("granted", "org/gated", {"token": "granted"}),
    ("missing", "org/missing", {}),
    ("short", "missing", {"token": False}),
    ("revision", "org/tiny", {"revision": "nowhere"}),
    ("expired", "org/expired", {}),
    ("forbidden", "org/forbidden", {}),
    ("broken", "org/broken", {}),
    ("weightless", "org/weightless", {}),
    ("empty", "org/empty", {}),
    ("tokenizer", "org/tiny", {"tokenizer": "org/missing"}),
    ("its_revision", "org/tiny", {"revision": COMMIT, "tokenizer": "org/other"}),
]


def with_code(folder: Path) -> Path:
    """A folder that brings its own model class."""
    config = json.loads((saved(folder) / "config.json").read_text())
    own = {"auto_map": {"AutoModelForCausalLM": "own.Own"}, "architectures": ["Own"]}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    code = "from transformers import LlamaForCausalLM\nclass Own(LlamaForCausalLM): pass\n"
    (folder / "own.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Result and requests of each call, made in one process against one hub."""
    folder, home = saved(tmp_path_factory.mktemp("hub")), tmp_path_factory.mktemp("home")
    Hub.folder, Hub.requests, Hub.section = folder, {}, ""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        code = [str(with_code(tmp_path_factory.mktemp("code"))), {"trust_remote_code": True}]
        calls = [("folder", str(folder), {}), ("code", *code), *CALLS]
        results = child(calls, endpoint, home, endpoint, HF_TOKEN="from-env", NO_PROXY="*")
    finally:
        server.shutdown()
        server.server_close()
    return lambda section: (*results[section], Hub.requests[section])


WORKED = ("public", "anonymous", "token", "commit", "granted", "its_revision")


@pytest.mark.slow
@pytest.mark.parametrize("section", WORKED)
def test_a_model_and_its_tokenizer_come_from_the_hub(visits: Any, section: str) -> None:
    kind, text, requests = visits(section)
    assert (kind, text) == ("LlamaForCausalLM", str(lens_ids()))
    assert requests


def lens_ids() -> list[list[int]]:
    return lensbridge.load(build(Shape("llama")), tokenizer=letters()).to_tokens("a cat").tolist()


@pytest.mark.slow
def test_the_token_that_is_sent_is_the_one_given_or_the_environments(visits: Any) -> None:
    sent = {"public": "Bearer from-env", "anonymous": None, "token": "Bearer mine"}
    for section, token in sent.items():  # transformers itself lists the tree without token=...
        asked = [one for path, one in visits(section)[2] if "/resolve/" in path]
        assert asked
        assert set(asked) == {token}, section


@pytest.mark.slow
@pytest.mark.parametrize(("section", "name"), [("folder", "LlamaForCausalLM"), ("code", "Own")])
def test_a_folder_and_an_object_ask_nobody(visits: Any, section: str, name: str) -> None:
    kind, text, requests = visits(section)
    assert (kind, text, requests) == (name, str(lens_ids()), [])


REFUSED = {
    "gated": ("HubError", "'org/gated' is gated. Ask for access", "HF_TOKEN"),
    "missing": (
        "HubError",
        "There is no model 'org/missing' on the hub, or it is private",
        "token=",
    ),
    "short": ("HubError", "There is no model 'missing'", "for a folder pass its path"),
    "revision": ("HubError", "'org/tiny' has no revision 'nowhere'", "branches, tags and commits"),
    "expired": ("HubError", "answered 401 when asked for 'org/expired'", "token is not valid"),
    "forbidden": ("HubError", "answered 403 when asked for 'org/forbidden'", "does not allow it"),
    "broken": ("HubError", "answered 500 when asked for 'org/broken'", "Try again later"),
    "weightless": ("LoadError", "'org/weightless' could not be loaded", "model.safetensors"),
    "empty": ("LoadError", "'org/empty' could not be loaded", "config.json"),
    "tokenizer": ("HubError", "There is no model 'org/missing'", "Check the spelling"),
}


@pytest.mark.slow
@pytest.mark.parametrize("section", REFUSED)
def test_each_refusal_of_the_hub_is_one_clear_error(visits: Any, section: str) -> None:
    kind, text, _ = visits(section)
    wanted, *parts = REFUSED[section]
    assert kind == wanted, text
    assert all(part in text for part in parts), text


@pytest.mark.slow
def test_without_a_network_there_is_one_clear_error(tmp_path: Path) -> None:
    calls = [("here", str(saved(tmp_path / "model")), {}), ("away", "org/tiny", {})]
    found = child(calls, "http://127.0.0.1:9", tmp_path / "home", NO_PROXY="*")
    assert found["here"] == ("LlamaForCausalLM", str(lens_ids()))
    kind, text = found["away"]
    assert kind == "HubError"
    assert "'org/tiny' is not on this machine and the hub cannot be reached. Connect, or" in text


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"may not be asked.*HF_HUB_OFFLINE"):
        lensbridge.load("org/tiny", cache_dir=str(tmp_path))
    model = lensbridge.load(saved(tmp_path / "model"))
    assert model.to_tokens("a cat").tolist() == lens_ids()


# --- objects and folders -------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_object_is_used_as_it_is(family: str) -> None:
    hf = build(Shape(family)).train()
    pointers = {name: p.data_ptr() for name, p in hf.state_dict().items()}
    before = {module: dict(vars(module)) for module in hf.modules()}
    model = lensbridge.load(hf)
    assert model.hf_model is hf
    assert hf.training
    assert {name: p.data_ptr() for name, p in hf.state_dict().items()} == pointers
    assert all(vars(module) == before[module] for module in hf.modules())
    assert model.tokenizer is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_native_dtype_and_attention(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    hf = AutoModelForCausalLM.from_pretrained(saved(tmp_path, family, False, dtype=dtype))
    for name in (tmp_path, str(tmp_path)):
        model = lensbridge.load(name)
        assert type(model.hf_model) is type(hf)
        assert {p.dtype for p in model.parameters()} == {dtype} == {model.dtype}
        assert model.cfg.hf._attn_implementation == hf.config._attn_implementation == "sdpa"
        assert torch.equal(model(tokens()), hf(tokens()).logits)
    eager = lensbridge.load(tmp_path, attn_implementation="eager")
    assert eager.cfg.hf._attn_implementation == "eager"


def test_a_given_architecture_is_used() -> None:
    hf = build(Shape("llama"))
    own = replace(lensbridge.load(hf).architecture, name="own")
    model = lensbridge.load(hf, architecture=own)
    assert model.architecture is own
    assert torch.equal(model(tokens()), hf(tokens()).logits)


def live_bytes() -> int:
    gc.collect()
    storages = {
        one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
        for one in gc.get_objects()
        if type(one) in (Tensor, nn.Parameter) and not one.is_meta
    }
    return sum(storages.values())


@pytest.mark.parametrize("keywords", [{}, {"device": "cpu"}, {"dtype": "float64"}], ids=str)
def test_there_is_no_second_copy_of_the_weights(tmp_path: Path, keywords: dict) -> None:
    saved(tmp_path, tokenizer=False)
    before = live_bytes()
    model = lensbridge.load(tmp_path, **keywords)
    weights = sum(p.nbytes for p in model.parameters())
    assert live_bytes() - before < 1.1 * weights
    model(tokens())
    assert live_bytes() - before < 1.1 * weights


DTYPES = {
    "float16": torch.float16,
    "half": torch.float16,
    "torch.bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "double": torch.float64,
    torch.float64: torch.float64,
    "auto": torch.float32,
}


@pytest.mark.parametrize(("name", "dtype"), DTYPES.items(), ids=str)
def test_dtypes_by_name(tmp_path: Path, name: Any, dtype: torch.dtype) -> None:
    folder = saved(tmp_path, tokenizer=False)
    assert lensbridge.load(folder, dtype=name, device="cpu").dtype == dtype
    hf = build(Shape("gpt2"))
    model = lensbridge.load(hf, dtype=name, device=torch.device("cpu"))
    assert model.hf_model is hf
    assert {p.dtype for p in hf.parameters()} == {dtype}


def test_folders_in_every_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "model" / "inner", tokenizer=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("model/inner", "./model/inner", "~/model/inner"):
        assert lensbridge.load(name).to_tokens("a cat").tolist() == lens_ids()
    inner = lensbridge.load("model", subfolder="inner")
    assert inner.to_tokens("a cat").tolist() == lens_ids()
    saved(tmp_path / "demo", "gpt2", tokenizer=False)
    assert lensbridge.load("demo").cfg.d_model == Shape("gpt2").d_model


def test_tokenizers_by_object_by_name_and_beside_the_model(tmp_path: Path) -> None:
    saved(tmp_path / "with"), saved(tmp_path / "without", tokenizer=False)
    given = letters()
    assert lensbridge.load(tmp_path / "with", tokenizer=given).tokenizer is given
    named = lensbridge.load(tmp_path / "without", tokenizer=tmp_path / "with")
    assert named.to_tokens("a cat").tolist() == lens_ids()
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "with")
    assert lensbridge.load(hf).to_tokens("a cat").tolist() == lens_ids()
    with pytest.raises(TokenizerMissingError, match=r"'.*without' could not be loaded"):
        lensbridge.load(tmp_path / "without").to_tokens("a")
    with pytest.raises(LoadError, match=r"The tokenizer '.*without' could not be loaded"):
        lensbridge.load(hf, tokenizer=str(tmp_path / "without"))


def broken(folder: Path, how: str) -> Path:
    file = saved(folder, tokenizer=False) / "model.safetensors"
    weights = load_file(file)
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:500])
    elif how == "missing":
        file.unlink()
    elif how == "config":
        (folder / "config.json").write_text("{")
    else:
        name = "model.layers.1.mlp.up_proj.weight"
        other = {} if how == "partial" else {name: weights[name][:-1].clone()}
        rest = {key: value for key, value in weights.items() if key != name}
        save_file({**rest, **other}, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("how", ["truncated", "missing", "config", "partial", "mismatched"])
def test_a_folder_that_is_no_whole_model_is_refused(tmp_path: Path, how: str) -> None:
    missing = how in ("partial", "mismatched")
    message = "1 weights.*'model.layers.1.mlp.up_proj.weight'" if missing else "could not be loaded"
    with pytest.raises(LoadError, match=message):
        lensbridge.load(broken(tmp_path, how))


WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no folder": ("./nowhere", {}, LoadError, "There is no folder './nowhere'"),
    "no model": (Path(__file__).parent, {}, LoadError, "has no config.json"),
    "no id": ("bad name!", {}, HubError, "neither a folder here nor a hub id"),
    "number": (3, {}, TypeError, "a hub id, a folder or a model object, not int"),
    "module": (nn.ModuleList(), {}, UnsupportedArchitectureError, "ModuleList"),
    "device": ("demo", {"device": "banana"}, InputError, "'banana' cannot be used here"),
    "dtype": ("demo", {"dtype": "float7"}, InputError, "no dtype 'float7'.*float32, float16"),
    "integers": ("demo", {"dtype": torch.int8}, InputError, "torch.int8 of real numbers"),
    "old name": ("demo", {"torch_dtype": "float16"}, TypeError, "Did you mean 'dtype'"),
    "two places": ("demo", {"device": "cpu", "device_map": "auto"}, LoadError, "not both"),
    "kernel": ("demo", {"attn_implementation": "magic"}, LoadError, "magic"),
    "object": (build(Shape("gpt2")), {"revision": "x"}, LoadError, "as it is; revision can"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_one_clear_error(case: str) -> None:
    given, keywords, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        lensbridge.load(given, **keywords)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_a_device_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(InputError, match="'cuda' cannot be used here"):
        lensbridge.load(build(Shape("gpt2")), device="cuda")


def test_the_demo_model_loads_without_output() -> None:
    script = (
        "import lensbridge\n"
        "from transformers.utils import logging\n"
        "lensbridge.load('demo').generate('The', 1, verbose=False)\n"
        "assert logging.is_progress_bar_enabled()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_bar_that_the_user_switched_off_stays_off() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        lensbridge.load("demo")
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()


@pytest.mark.parametrize("shown", [True, False])
def test_the_users_choice_of_progress_bars_is_restored(shown: bool) -> None:
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        with suppress(KeyError), no_progress_bar():
            assert not logging.is_progress_bar_enabled()
            raise KeyError
        assert logging.is_progress_bar_enabled() == shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
