"""The list of adapter packages: found on an index by name, checked, and written to a page."""

import importlib.util
import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "adapters.py"
FOUND = ["Lensbridge-Aardvark", "lensbridge_bear", "Lensbridge.Cat", "lensbridge-zebra"]
PROJECTS = ["lensbridge", "numpy", "my-lensbridge-x", "lensbridges", *reversed(FOUND)]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("known_adapters", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGE", tmp_path / "adapters.md")
    monkeypatch.setattr(module, "RECORDS", tmp_path / "adapters.json")
    return module


@pytest.fixture
def index() -> Iterator[str]:
    """The address of a package index on this machine."""

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Accept"] == "application/vnd.pypi.simple.v1+json"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"projects": [{"name": n} for n in PROJECTS]}).encode())

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple/"
        server.shutdown()
        thread.join()


def test_packages_are_found_by_their_names(script: ModuleType, index: str) -> None:
    assert script.names(index) == FOUND


def test_the_page_is_what_was_found(
    script: ModuleType, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checked(package: str) -> dict[str, Any]:
        good = package.endswith("zebra")
        message = "45 checks, transformers 5.24.0" if good else "it cannot be installed: no"
        models = ["ZebraForCausalLM"] if good else []
        return {
            "package": package,
            "version": "1.0",
            "passed": good,
            "message": message,
            "models": models,
        }

    monkeypatch.setenv("PIP_INDEX_URL", index)
    monkeypatch.setattr(script, "checked", checked)
    assert script.main(["--run"]) == 1
    assert script.PAGE.read_text().splitlines()[-4:] == [
        "| Lensbridge-Aardvark 1.0 |  | fails: it cannot be installed: no |",
        "| lensbridge\\_bear 1.0 |  | fails: it cannot be installed: no |",
        "| Lensbridge.Cat 1.0 |  | fails: it cannot be installed: no |",
        "| lensbridge-zebra 1.0 | ZebraForCausalLM | conforms: 45 checks, transformers 5.24.0 |",
    ]
    assert script.main(["--run", "lensbridge-zebra"]) == 0
    assert script.main(["--check"]) == 0
    script.PAGE.write_text("by hand")
    assert script.main(["--check"]) == 1


def test_a_message_does_not_break_its_row(script: ModuleType) -> None:
    told = {"package": "lensbridge-x", "version": "", "passed": False, "models": []}
    row = script.page([{**told, "message": "a | b\n<img> [c]"}]).splitlines()[-1]
    assert row == "| lensbridge-x |  | fails: a \\| b &lt;img&gt; \\[c\\] |"


def test_a_package_that_cannot_be_installed_is_said_so(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Done:
        returncode, stdout, stderr = 1, "", "a\nERROR: no such package\n"

    monkeypatch.setattr(script, "_run", lambda command: Done)
    told = script.checked("lensbridge-nothing")
    assert (told["passed"], told["message"]) == (
        False,
        "it cannot be installed: ERROR: no such package",
    )


@pytest.mark.parametrize(
    "package",
    ["lensbridge-fox", "Lensbridge_Fox==1.2", "wheels/lensbridge_fox-1.2-py3-none-any.whl"],
)
def test_the_record_of_a_package_is_not_that_of_one_it_needs(
    script: ModuleType, package: str
) -> None:
    found = [["lensbridge-bear", "3.0", "bear"], ["lensbridge-fox", "1.2", "fox"]]
    assert script._of(package, found) == found[1:]


def test_a_package_that_hangs_does_not_take_the_night(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "LONGEST", 0.2)
    done = script._run([sys.executable, "-c", "import time; time.sleep(60)"])
    assert done.returncode == 1
    assert script._last(done.stderr).startswith("it took longer than ")


def test_an_index_without_json_is_read(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    page = b"<html><a href='/simple/lensbridge-fox/'> Lensbridge_Fox </a><a href='x'>numpy</a>"
    monkeypatch.setattr(script, "urlopen", lambda asked, timeout: io.BytesIO(page))
    assert script.names("http://index/simple/") == ["Lensbridge_Fox"]
