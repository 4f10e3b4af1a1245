"""A notebook's text as it is, and with its import changed: everything that it keeps is equal."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peers.test_compat import both

pytestmark = pytest.mark.peers

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.py"))
OURS = r"\1 lensbridge.compat.transformer_lens"


class Opened:
    """A class whose `from_pretrained` gives one model that is open already."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def from_pretrained(self, name: str) -> Any:
        return self.model


def run(text: str, model: Any) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    with torch.no_grad():
        exec(compile(text, "notebook", "exec"), {"MODEL": Opened(model), "keep": kept.__setitem__})
    torch.set_grad_enabled(True)
    return kept


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_changed_import_changes_nothing_else(notebook: Path) -> None:
    text = notebook.read_text()
    changed = re.sub(r"(?m)^(from|import) transformer_lens", OURS, text)
    assert changed != text
    mine, other = both()
    ours, theirs = run(changed, mine), run(text, other)
    assert list(ours) == list(theirs)
    for name, wanted in theirs.items():
        if isinstance(wanted, torch.Tensor):
            torch.testing.assert_close(ours[name], wanted, atol=3e-4, rtol=1e-3)
        else:
            assert ours[name] == wanted, name
