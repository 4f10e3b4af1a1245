"""Pages for those who come from another library: both columns give the same values."""

import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, Page
from torch import Tensor
from torch.testing import assert_close

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("library", ["nnsight", "nnterp", "pyvene"])
def test_both_columns_of_a_page_give_the_same(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} cannot be installed beside the others")
    page = Page(ROOT / "docs" / "how-to" / f"from-{library}.md")
    (tmp_path / "there.py").write_text(page.there(library), encoding="utf-8")
    (tmp_path / "here.py").write_text(page.here(), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {"folder": str(tmp_path / "saved")}
    there = runpy.run_path("there.py", init_globals=names)
    here = runpy.run_path("here.py")
    same = values(there).keys() & values(here).keys() - {"ids", "other", "ones", "vector"}
    assert len(same) > 5
    for name in sorted(same):
        assert_close(
            there[name], here[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def values(names: dict[str, Any]) -> dict[str, Any]:
    """What a page computed: tensors and tuples of numbers."""
    return {name: value for name, value in names.items() if isinstance(value, Tensor | tuple)}
