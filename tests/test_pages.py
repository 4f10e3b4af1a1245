"""The code of every page of the documentation runs, and prints what the page says it prints.

Python and rows of tables run in one process, from the top of the page, in one folder. Commands run
in a shell, and a block `text` behind them is what they print; a server that begins with
`# in a terminal of its own` runs until the end of the page, at another port than the page says.
A block that begins with a docstring
is a file that a command wrote; `toml` and `py` are pieces of the template in
examples/adapter-template. `tests/pages.py` says what is compiled and not run.
"""

import ast
import builtins
import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, Block, Page, pages

import lensbridge
from lensbridge import LensModel
from lensbridge.testing import CHECKS

TEMPLATE = ROOT / "examples" / "adapter-template"
KINDS = ("python", "row", "sh", "text", "toml", "py")
PAGES = [page for page in pages() if any(block.kind in KINDS for block in page.blocks)]
NEEDS = ("the hub", "a GPU", "nnsight", "nnterp", "pyvene", "ray", "vLLM")
HELD_ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "docs/how-to/command-line.md": "tests/test_cli.py",
}
"""Pages whose commands another test parses: they install, serve or take long."""
OWN_TERMINAL, PORT = "# in a terminal of its own\n", "8765"
OF_THE_FIT = "the description fits the model"
"""What a report calls a failure to load, which is no check of the kit."""


def free_port() -> str:
    """A port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return str(listening.getsockname()[1])


class Reader:
    """Someone who follows a page in an empty folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""
        self.servers: list[subprocess.Popen[str]] = []
        self.port = PORT

    def follow(self, block: Block) -> None:
        """Do what a block is for."""
        if block.kind == "sh" and block.code.startswith(OWN_TERMINAL):
            self.port = free_port()
        block = replace(block, code=block.code.replace(PORT, self.port))
        acts = {"python": self.python, "row": self.python, "sh": self.sh, "text": self.text}
        acts.get(block.kind, self.piece)(block)

    def python(self, block: Block) -> None:
        if block.code.startswith('"""'):
            written = [path.read_text(encoding="utf-8") for path in Path().glob("*.py")]
            assert block.code in written
        code = block.compiled()
        if block.needs:
            return
        exec(code, self.names)
        assert self.capsys.readouterr().out.splitlines() == block.printed, str(block)

    def sh(self, block: Block) -> None:
        if block.needs or block.page in HELD_ELSEWHERE:
            return
        beside = Path(sys.executable).parent
        path = os.pathsep.join([str(beside), os.environ["PATH"]])
        env = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        if block.code.startswith(OWN_TERMINAL):
            self.server(block, env)
            return
        done = subprocess.run(
            ["bash", "-e", "-c", block.code],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        self.printed = done.stdout

    def server(self, block: Block, env: dict[str, str]) -> None:
        """Start what runs until the end of the page, and wait until it says so."""
        code = block.code.replace("lensbridge serve", "exec lensbridge serve")
        pipe = subprocess.PIPE
        process = subprocess.Popen(["bash", "-e", "-c", code], env=env, stdout=pipe, text=True)
        self.servers.append(process)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        self.printed = "".join(lines)
        assert process.poll() is None, f"{block}\n{self.printed}"

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        """End what was started."""
        for one in self.servers:
            one.terminate()
            one.wait(30)
            assert one.stdout is not None
            one.stdout.close()

    def text(self, block: Block) -> None:
        if self.printed:
            assert block.code == self.printed, str(block)

    def piece(self, block: Block) -> None:
        files = [path.read_text(encoding="utf-8") for path in TEMPLATE.rglob("*.*[ly]")]
        for line in block.code.splitlines():
            assert any(line in file.splitlines() for file in files), line


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_of_a_page_does_what_the_page_says(
    page: Page,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(capsys)
    with reader:
        for block in page.blocks:
            if block.kind in KINDS:
                reader.follow(block)


UNRUN = [block for page in PAGES for block in page.blocks if block.needs and block.kind == "python"]


@pytest.mark.parametrize("block", UNRUN, ids=str)
def test_the_names_and_keywords_of_a_block_that_is_not_run_exist(block: Block) -> None:
    assert block.needs in NEEDS, f"{block}: say what it needs in one of these ways: {NEEDS}"
    (page,) = (page for page in PAGES if str(page) == block.page)
    before = [other for other in page.blocks if other.line <= block.line and other.kind == "python"]
    if block.needs in ("the hub", "a GPU"):
        for fault in faults(block.code, "".join(other.code for other in before)):
            pytest.fail(f"{block}: {fault}")


def faults(code: str, page: str) -> Iterator[str]:
    """What a reader would get wrong: names of lensbridge and of models that are not there.

    A name `model`, or one that `load` made, is taken for a `LensModel`.
    """
    tree = ast.parse(code)
    known = {"model": LensModel, "lensbridge": lensbridge}
    defined = set(dir(builtins)) | {
        name for node in ast.walk(ast.parse(page)) for name in _defined(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lensbridge"):
            for alias in node.names:
                found = getattr(import_module(str(node.module)), alias.name, None)
                if found is None:
                    yield f"{node.module} has no {alias.name}"
                known[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in defined:
            yield f"{node.id} is not defined"
        if isinstance(node, ast.Attribute) and (owner := _value(node.value, known)) is not None:
            fields = getattr(owner, "__annotations__", {})
            if not hasattr(owner, node.attr) and node.attr not in fields:
                yield f"{ast.unparse(node)}: there is no {node.attr}"
        if isinstance(node, ast.Call) and callable(called := _value(node.func, known)):
            yield from _keywords(node, called)


def _defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    """What a dotted name stands for; None if nobody knows."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _value(node.value, known)) is not None:
        found = getattr(owner, node.attr, None)
        return None if isinstance(found, property) else found
    return None


def _keywords(node: ast.Call, called: Any) -> Iterator[str]:
    takes = inspect.signature(called).parameters.values()
    if not any(one.kind is one.VAR_KEYWORD for one in takes):
        wrong = {str(one.arg) for one in node.keywords} - {one.name for one in takes}
        yield from (f"{ast.unparse(node.func)} takes no {name}" for name in sorted(wrong))


def test_a_block_that_is_not_run_and_is_wrong_is_noticed() -> None:
    setup = "import lensbridge\nmodel = lensbridge.load('demo')\n"
    wrong = {
        "from lensbridge.patching import nothing": "lensbridge.patching has no nothing",
        "model.run_with_hocks": "model.run_with_hocks: there is no run_with_hocks",
        "model.run_with_cache(text='a', stop=1)": None,  # its keywords go on to forward
        "model.explain(point='z')": "model.explain takes no point",
        "lensbridge.load(unknown)": "unknown is not defined",
    }
    for code, fault in wrong.items():
        assert list(faults(code, setup + code)) == ([fault] if fault else [])


def test_the_checks_that_the_guide_explains_are_those_of_the_kit() -> None:
    (page,) = (page for page in PAGES if page.path.name == "add-an-architecture.md")
    rows = [line.split(" | ")[0] for line in page.text.splitlines() if line.startswith("| ")]
    told = {row.removeprefix("| ") for row in rows} - {"check"}
    assert len(told) > 10
    assert told - {check.name for check in CHECKS} == {OF_THE_FIT}
