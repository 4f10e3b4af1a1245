"""A notebook with a cell for each kind of picture, run by a real kernel."""

from pathlib import Path
from typing import Any

TEXT = "The Eiffel Tower is in the city of"

SETUP = f"""
import torch
import lensbridge
from lensbridge import viz
from lensbridge.analysis import neuron_card
from lensbridge.causal import Circuit, attribution_patch

model = lensbridge.load("demo")
text = "{TEXT}"
tokens = model.to_str_tokens(text)
_, cache = model.run_with_cache(text)
clean = model.to_tokens(text)
corrupt = clean.clone()
corrupt[0, 2] = model.to_single_token(" London")
paris = model.to_single_token(" Paris")
metric = lambda logits: logits[:, -1, paris].sum()
"""

CELLS = {
    "model": "model",
    "cache": "cache",
    "attention": "cache.plot_attention(1)",
    "cross": (
        "viz.attention(torch.eye(3, 4), ['Der', ' Turm', '.'], ['The', ' tower', ' <b>', '.'],"
        " title='Cross-attention')"
    ),
    "circuit": (
        "attribution_patch(model, clean, corrupt, metric, granularity='edge').plot_circuit(40)"
    ),
    "nodes": "Circuit.of(['a0.h1', 'a2.h2', 'm3'])",
    "card": "neuron_card(model, 2, 17, [text, 'John and Mary went to the store.'], k=2)",
    "text": "viz.text(tokens, cache['pattern', 1][0, 0, -1], title='One head')",
    "runs": "viz.text(tokens, {'base': range(9), 'patched': range(0, -9, -1)})",
    "heatmap": "viz.plot(cache['pattern', 1][0, 0], x=tokens, y=tokens, title='Heatmap')",
    "lines": "viz.plot({'one': [1, 3, 2], 'two': [2, 1, 0]}, title='Lines')",
    "bars": "viz.plot({'one': 1.0, 'two': -2.0}, title='Bars')",
    "histogram": "viz.plot(torch.arange(50.).sqrt(), kind='histogram', title='Histogram')",
    "lens": "model.logit_lens(text)",
}
"""The name of each kind of picture, and the cell that shows one."""


def executed(path: Path) -> Any:
    """The notebook, run and written to a file."""
    import nbformat
    from nbclient import NotebookClient

    cells = [nbformat.v4.new_code_cell(code.strip()) for code in (SETUP, *CELLS.values())]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=about)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(path.parent))
    nbformat.write(notebook, path)
    return notebook
