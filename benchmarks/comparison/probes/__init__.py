"""What each tool has a call for: one small use of it, for each feature and tool.

A probe makes the call on a tiny model and returns what there is to look at; a tensor must be
finite. A tool without a probe is searched for public names that match the feature's words, so that
"not offered" is found out and not claimed: `searched` says what was found.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison import tools
from benchmarks.comparison.outcomes import NotOffered, Outcome


@dataclass(frozen=True)
class Feature:
    """Something a user may want.

    Args:
        title: the line of the table.
        words: a pattern for the names that a tool would give it.
    """

    title: str
    words: str


FEATURES = {
    "any_module": Feature("any PyTorch module, not only transformers", r"^NNsight$|any_?module"),
    "attribution_graph": Feature(
        "attribution graphs of transcoder features", r"attribution_?graph|replacement_?model"
    ),
    "remote": Feature(
        "runs on a remote service (looked up only: there is no network)", r"remote|ndif"
    ),
    "jacobian_lens": Feature("Jacobian lens, fitted on prompts", r"jacobian_?lens"),
    "sparse_probe": Feature("sparse probes", r"sparse_?prob"),
    "patchscope": Feature("patchscopes", r"patchscope"),
    "save": Feature("interventions saved to files and read again", r"save_intervention|from_json"),
    "das": Feature("trained subspaces (DAS)", r"^(fit_)?das|rotated_?space"),
    "interchange": Feature(
        "interchange of an activation between two inputs", r"interchange|vanilla_?inter"
    ),
    "logit_lens": Feature("logit lens", r"logit_?lens"),
    "dla": Feature("direct logit attribution", r"(direct_?)?logit_?attr"),
    "heads_found": Feature("detection of induction heads and their kin", r"detect_?head"),
    "sweep": Feature("sweeps of activation patches", r"act_?patch"),
    "paths": Feature("path patching", r"path_?patch"),
    "attribution_nodes": Feature("attribution patching of nodes", r"attribution_?patch"),
    "attribution_edges": Feature(
        "attribution patching of edges, with grouped heads", r"edge_?attribution|edge_?score"
    ),
    "circuit_search": Feature("pruning to a circuit by measured effects", r"prune_?circuit|acdc"),
    "causal_trace": Feature("causal tracing with noise", r"causal_?trac|noise_?inter"),
    "sae": Feature("sparse autoencoders spliced into a run", r"run_with_saes|add_sae|splice"),
    "processing": Feature(
        "weight processing (folded norms, centring), undone again", r"fold_?(ln|layer)"
    ),
    "composition": Feature("composition scores of heads", r"composition_?score"),
    "terms": Feature(
        "the stream as terms of heads and MLPs that sum to it (Gemma 2)", r"decompose|stack_?head"
    ),
    "encoder_pattern": Feature("a pattern of BERT edited", r"$^"),
    "encoder_decoder": Feature("the decoder's cross-attention pattern of T5 read", r"$^"),
    "state_space": Feature("the stream of Mamba edited", r"$^"),
    "router": Feature("the router of Mixtral edited, so that other experts run", r"$^"),
    "vision": Feature("the stream of a vision transformer edited", r"$^"),
    "new_class": Feature(
        "a class that nobody described, from a description or by itself",
        r"^rename_?config$|^derive_arch|^register_\w*(adapter|arch)",
    ),
    "check": Feature(
        "a check of a user's own model, as a command or call", r"^conformance$|^verify_model"
    ),
}

PACKAGES = {
    "lensbridge": "lensbridge",
    "TransformerLens": "transformer_lens",
    "nnsight": "nnsight",
    "nnterp": "nnterp",
    "pyvene": "pyvene",
    "circuit-tracer": "circuit_tracer",
}
MODULES = {**tools.MODULES, "circuit-tracer": "tracer"}
Probe = Callable[[], Any]


def probes(tool: str) -> dict[str, Probe]:
    """The probes of a tool by feature."""
    return import_module(f"benchmarks.comparison.probes.{MODULES[tool]}").PROBES


def probe(tool: str, key: str) -> Outcome:
    """Make the call; what it raises is for `attempt`."""
    known = probes(tool)
    if key not in known:
        names = searched(tool, FEATURES[key].words)
        return Outcome("absent", f"not tried: {', '.join(names[:3])}" if names else "")
    return judged(known[key]())


def judged(found: Any) -> Outcome:
    """A tensor must be finite; an outcome says it itself."""
    if isinstance(found, Outcome):
        return found
    if isinstance(found, Tensor) and not bool(torch.isfinite(found).all()):
        return Outcome("wrong", "not finite")
    if isinstance(found, Tensor):
        return Outcome("works" if found.numel() else "wrong")
    if found is None or (hasattr(found, "__len__") and not len(found)):
        return Outcome("wrong", "nothing came back")
    return Outcome("works")


def searched(tool: str, words: str) -> list[str]:
    """Public classes and functions of a tool whose names match."""
    pattern = re.compile(words, re.IGNORECASE)
    return sorted({name for name in _names(PACKAGES[tool]) if pattern.search(name)})


def _names(package: str) -> Iterator[str]:
    spec = find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(root).rglob("*.py"):
            if "tests" in file.parts:
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                named = isinstance(node, (ast.ClassDef, ast.FunctionDef))
                if named and not node.name.startswith("_"):
                    yield node.name


def offered(condition: bool, otherwise: str) -> Outcome:
    """For what can only be looked up."""
    if not condition:
        raise NotOffered(otherwise)
    return Outcome("caveat", "there is such an argument")
