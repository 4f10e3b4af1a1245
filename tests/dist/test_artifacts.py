"""The wheel and the sdist in `dist/`: what is in them, and that the wheel works by itself.

`make dist` builds them first. What has to be in the wheel is read from git.
"""

import os
import re
import subprocess
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from sysconfig import get_path

import pytest

import lensbridge

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[2]
STEM = f"lensbridge-{lensbridge.__version__}"
INFO = f"{STEM}.dist-info"
PACKAGES = {"lensbridge": "lensbridge", "adapters/lensbridge_adapters": "lensbridge_adapters"}


def sources(*folders: str) -> set[str]:
    """The files of a checkout that git has or would take."""
    listed = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders)
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in names.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel() -> dict[str, bytes]:
    """The files of the wheel, by name."""
    with zipfile.ZipFile(ROOT / "dist" / f"{STEM}-py3-none-any.whl") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def sdist() -> dict[str, bytes]:
    """The files of the sdist, by name, without the folder that holds them."""
    found = {}
    with tarfile.open(ROOT / "dist" / f"{STEM}.tar.gz") as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None:
                found[member.name.removeprefix(f"{STEM}/")] = file.read()
    return found


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, bytes]) -> Message:
    return HeaderParser().parsestr(wheel[f"{INFO}/METADATA"].decode())


def test_nothing_else_was_built() -> None:
    built = {path.name for path in (ROOT / "dist").iterdir()}
    assert built == {f"{STEM}-py3-none-any.whl", f"{STEM}.tar.gz"}


def test_the_wheel_has_the_packages_and_nothing_else(wheel: dict[str, bytes]) -> None:
    wanted = {
        name.replace(folder, package, 1): (ROOT / name).read_bytes()
        for folder, package in PACKAGES.items()
        for name in sources(folder)
    }
    packed = {name: held for name, held in wheel.items() if not name.startswith(f"{INFO}/")}
    assert sorted(packed) == sorted(wanted)
    assert [name for name in wanted if packed[name] != wanted[name]] == []


def test_the_wheel_has_what_is_not_python(wheel: dict[str, bytes]) -> None:
    model = {"model.safetensors", "config.json", "tokenizer.json", "README.md"}
    assert {f"lensbridge/demo/model/{name}" for name in model} <= set(wheel)
    assert {"lensbridge/py.typed", "lensbridge_adapters/py.typed"} <= set(wheel)
    assert "lensbridge/viz/report.css" in wheel
    others = {PurePosixPath(name).suffix for name in wheel} - {".py"}
    assert {".css", ".safetensors", ".typed"} <= others
    assert len(wheel["lensbridge/demo/model/model.safetensors"]) > 3_000_000


def test_the_sdist_is_the_checkout_without_what_only_the_repository_needs(
    sdist: dict[str, bytes],
) -> None:
    top = {PurePosixPath(name).parts[0] for name in sdist}
    assert {"lensbridge", "adapters", "tests", "docs", "examples", "Makefile", "LICENSE"} <= top
    assert top & {".ci", ".github", ".venv", "build", "dist", ".git", ".hypothesis"} == set()
    left_out = sources() - set(sdist)
    assert {name for name in left_out if not name.startswith(".")} == set()
    assert set(sdist) - sources() == {"PKG-INFO"}


def test_the_licence_is_in_both(
    wheel: dict[str, bytes], sdist: dict[str, bytes], metadata: Message
) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    for name in ("LICENSE", "NOTICE"):
        text = (ROOT / name).read_bytes()
        assert wheel[f"{INFO}/licenses/{name}"] == text
        assert sdist[name] == text
    assert b"Licence" in wheel["lensbridge/demo/model/README.md"]


def test_the_notice_names_each_file_that_is_not_ours(sdist: dict[str, bytes]) -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    page = {".js", ".css", ".html", ".svg", ".woff", ".woff2", ".ttf"}
    theirs = [
        name
        for name, held in sdist.items()
        if PurePosixPath(name).suffix in page
        and (".woff" in name or re.search(rb"copyright|\(c\) |@licen[sc]e", held, re.IGNORECASE))
    ]
    assert [name for name in theirs if name not in notice] == []
    named = re.findall(r"^- (\S+):", notice, re.MULTILINE)
    assert [name for name in named if name not in sdist] == []


def test_the_metadata_is_what_a_reader_of_pypi_needs(metadata: Message) -> None:
    assert metadata["Name"] == "lensbridge"
    assert metadata["Version"] == lensbridge.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    always = [one for one in metadata.get_all("Requires-Dist", []) if "extra ==" not in one]
    names = {re.split(r"[<>=!~ ;\[]", one)[0] for one in always}
    assert {"torch", "transformers", "safetensors"} <= names
    assert names & {"pytest", "hypothesis", "ruff", "mypy", "hatchling"} == set()


def test_the_command_is_declared(wheel: dict[str, bytes]) -> None:
    declared = wheel[f"{INFO}/entry_points.txt"].decode()
    assert "[console_scripts]\nlensbridge = lensbridge.cli:main" in declared


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, which finds torch and the rest where this one does."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "env", with_pip=True)
    python = home / "env" / "bin" / "python"
    wheel = ROOT / "dist" / f"{STEM}-py3-none-any.whl"
    pip = (python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    subprocess.run(pip, check=True, cwd=home)
    asked = (python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    site = subprocess.run(asked, check=True, cwd=home, capture_output=True, text=True).stdout
    # A path in a .pth file comes last, and the .pth files there (an editable install) do not count.
    Path(site.strip(), "dependencies.pth").write_text(get_path("purelib") + "\n")
    return python


def run(python: Path, *command: str, cwd: Path) -> str:
    """Run a command of the new environment, offline and without the checkout's paths."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_imported_is_the_wheel(installed: Path, tmp_path: Path) -> None:
    script = "import lensbridge, lensbridge_adapters as a; print(lensbridge.__file__, a.__file__)"
    for path in run(installed, str(installed), "-c", script, cwd=tmp_path).split():
        assert Path(path).is_relative_to(installed.parents[1])


def test_the_demo_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    command = str(installed.parent / "lensbridge")
    assert lensbridge.__version__ in run(installed, command, "--version", cwd=tmp_path)
    said = run(installed, command, "demo", cwd=tmp_path)
    assert "L2H2 scores 0.97" in said
    page = (tmp_path / "lensbridge-demo.html").read_text(encoding="utf-8")
    assert "<svg" in page
