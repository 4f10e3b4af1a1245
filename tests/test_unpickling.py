"""Files from elsewhere are read without running what is in them; planted code shows that."""

import ast
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import Shape, build
from transformers import AutoModelForCausalLM

import lensbridge
from lensbridge.cache import ActivationCache
from lensbridge.compat.transformer_lens.utils import download_file_from_hf
from lensbridge.errors import LoadError

SOURCES = Path(lensbridge.__file__).parent


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Where code would leave its mark."""
    return tmp_path / "it ran"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a repository."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda repo, name, **_: str(folder / name)
    )
    return folder


def test_the_trap_works(tmp_path: Path, planted: Path) -> None:
    torch.save({"weight": Bomb(planted)}, tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert planted.is_dir()


@pytest.mark.parametrize("options", [{}, {"force_is_torch": True}])
def test_a_downloaded_file_does_not_run(hub: Path, planted: Path, options: dict[str, Any]) -> None:
    name = "file.bin" if options else "file.pt"
    torch.save({"weight": torch.ones(2), "more": Bomb(planted)}, hub / name)
    with pytest.raises(LoadError, match="weights_only=False"):
        download_file_from_hf("someone/something", name, **options)
    assert not planted.exists()


def test_a_downloaded_file_runs_when_that_is_asked_for(hub: Path, planted: Path) -> None:
    torch.save({"more": Bomb(planted)}, hub / "file.pt")
    download_file_from_hf("someone/something", "file.pt", weights_only=False)
    assert planted.is_dir()


def test_downloaded_tensors_are_read(hub: Path) -> None:
    state = {"weight": torch.randn(3), "config": {"layers": 2, "names": ["a"]}}
    torch.save(state, hub / "file.pth")
    found = download_file_from_hf("someone/something", "file.pth")
    assert torch.equal(found["weight"], state["weight"])
    assert found["config"] == state["config"]
    save_file({"weight": torch.ones(2)}, hub / "file.safetensors")
    found = download_file_from_hf("someone/something", "file.safetensors")
    assert torch.equal(found["weight"], torch.ones(2))
    (hub / "file.json").write_text('{"a": 1}')
    assert download_file_from_hf("someone/something", "file.json") == {"a": 1}


def test_a_checkpoint_does_not_run(tmp_path: Path, planted: Path) -> None:
    hf, folder = build(Shape("gpt2")), tmp_path / "model"
    hf.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save({**hf.state_dict(), "more": Bomb(planted)}, folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match="weights_only=False"):
        lensbridge.load(folder)
    assert not planted.exists()
    torch.save(hf.state_dict(), folder / "pytorch_model.bin")
    ids = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.equal(lensbridge.load(folder)(ids), hf(ids).logits)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
def test_an_adapter_does_not_run(tmp_path: Path, planted: Path) -> None:
    import peft

    hf, base, folder = build(Shape("llama")), tmp_path / "base", tmp_path / "adapter"
    hf.save_pretrained(base)
    hf = AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(hf, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"more": Bomb(planted)}, folder / "adapter_model.bin")
    with pytest.raises(LoadError):
        lensbridge.load(folder)
    assert not planted.exists()


def test_saved_caches_do_not_run(tmp_path: Path, planted: Path) -> None:
    torch.save({"hook_embed": Bomb(planted)}, tmp_path / "cache.safetensors")
    with pytest.raises(lensbridge.LensbridgeError):
        ActivationCache.load(tmp_path / "cache.safetensors")
    assert not planted.exists()


UNSAFE = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")


def _unsafe_in(path: Path) -> list[str]:
    """Calls and imports of a module that could unpickle without being told to."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [one.name for one in node.names if one.name in UNSAFE]
        if isinstance(node, ast.ImportFrom) and node.module in UNSAFE:
            found += [one.name for one in node.names if one.name != "UnpicklingError"]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, given = node.func.value, {one.arg: one.value for one in node.keywords}
        called = f"{owner.id}.{node.func.attr}" if isinstance(owner, ast.Name) else ""
        told = given.get("weights_only")
        if called == "torch.load" and told is None:
            found.append("torch.load without weights_only")
        if called in ("np.load", "numpy.load") and "allow_pickle" in given:
            found.append(called)
        if isinstance(told, ast.Constant) and told.value is False:
            found.append("weights_only=False")
    return found


def test_no_module_unpickles_unless_it_is_told_to() -> None:
    found = {str(path): _unsafe_in(path) for path in SOURCES.rglob("*.py")}
    assert not {path: calls for path, calls in found.items() if calls}
