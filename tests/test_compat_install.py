"""Imports of `transformer_lens` that are redirected here."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import transformers

import lensbridge.compat
from lensbridge.compat.transformer_lens import HookedRootModule, HookedTransformer, HookPoint
from lensbridge.errors import LensbridgeError


@pytest.fixture(autouse=True)
def without() -> Iterator[None]:
    """No redirection before or after, and no TransformerLens that was imported."""
    kept = {name: one for name, one in sys.modules.items() if name.startswith("transformer_lens")}
    for name in kept:
        del sys.modules[name]
    yield
    lensbridge.compat.uninstall()
    sys.modules.update(kept)


def test_modules_and_classes_are_the_same_objects() -> None:
    lensbridge.compat.install()
    for name in ("", ".utils", ".hook_points", ".patching", ".components.mlps.can_be_used_as_mlp"):
        found = import_module(f"transformer_lens{name}")
        assert found is import_module(f"lensbridge.compat.transformer_lens{name}")
        assert found.__name__.startswith("lensbridge.compat")
    inner = import_module("transformer_lens.HookedTransformer")
    outer = import_module("transformer_lens")
    assert inner.HookedTransformer is outer.HookedTransformer is HookedTransformer
    assert inner.HookedRootModule is HookedRootModule
    assert inner.HookPoint is HookPoint


def test_a_module_that_is_not_here_is_refused_by_name() -> None:
    lensbridge.compat.install()
    with pytest.raises(ModuleNotFoundError, match=r"no transformer_lens\.nowhere.*install\(\)"):
        import_module("transformer_lens.nowhere")


def test_the_end_of_a_redirection() -> None:
    with lensbridge.compat.install():
        import_module("transformer_lens.utils")
    assert not [name for name in sys.modules if name.startswith("transformer_lens")]
    assert not any("compat.redirect" in type(one).__module__ for one in sys.meta_path)
    lensbridge.compat.uninstall()


def test_packages_that_ask_for_the_version() -> None:
    """They find the one whose interface this is, which is the one that it is compared with."""
    pins = (Path(__file__).parents[1] / "constraints-peers.txt").read_text()
    with lensbridge.compat.install():
        assert f"transformer-lens=={version('transformer-lens')}\n" in pins
        assert version("transformers") == transformers.__version__


def test_installing_twice_is_installing_once() -> None:
    lensbridge.compat.install()
    found = import_module("transformer_lens")
    lensbridge.compat.install()
    assert import_module("transformer_lens") is found
    lensbridge.compat.uninstall()
    assert "transformer_lens" not in sys.modules


def test_transformer_lens_itself_was_imported_before(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = ModuleType("transformer_lens")
    theirs.__file__ = "/somewhere/transformer_lens/__init__.py"
    monkeypatch.setitem(sys.modules, "transformer_lens", theirs)
    with pytest.raises(LensbridgeError, match=r"imported before .*somewhere.*first"):
        lensbridge.compat.install()
    assert sys.modules["transformer_lens"] is theirs
    lensbridge.compat.uninstall()
    assert sys.modules["transformer_lens"] is theirs


def test_a_program_of_somebody_else() -> None:
    """In a fresh interpreter, a module that knows nothing of lensbridge runs a model."""
    program = (
        "import lensbridge.compat; lensbridge.compat.install()\n"
        "from transformer_lens.HookedTransformer import HookedTransformer\n"
        "import transformer_lens.utils as utils, transformer_lens as tl\n"
        "model = tl.HookedTransformer.from_pretrained('demo')\n"
        "assert type(model) is HookedTransformer, type(model)\n"
        "print(utils.get_act_name('z', 1), model.cfg.n_layers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "blocks.1.attn.hook_z 4"
