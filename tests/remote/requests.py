"""Requests of every operation as documents, and what may be wrong in them."""

import json
from typing import Any

import torch
from hypothesis import strategies as st
from remote.served import EIFFEL

from lensbridge import Experiment
from lensbridge.experiments import KL, LogitDiff
from lensbridge.interventions import Add, Mean, Noise, Replace, Steer, Swap, When, Zero
from lensbridge.patching import Cell
from lensbridge.remote.message import Message
from lensbridge.remote.packing import packed

_VECTOR = torch.arange(128.0)
_METRIC = LogitDiff(" Paris", " Rome")
_EDITS = [
    Zero(("z", 1), heads=[0, 2], positions="last", when=When("prefill")),
    Add(("resid_post", 2), _VECTOR, positions=slice(1, 3)),
    Replace(("z", 0), 0.5, neurons=[1, 2], heads=1),
    Steer(("resid_post", 1), _VECTOR, unit="norm", subspace=None),
    Noise("embed", 0.1, seed=3),
    Swap(("resid_pre", 1), source={"blocks.1.hook_resid_pre": torch.ones(1, 9, 128)}),
    Mean(("attn_out", 1), over="all"),
]

VALID: dict[str, Message] = {
    "forward": packed({"input": [EIFFEL, "The Colosseum"], "return_type": "both"}),
    "run_with_cache": packed(
        {
            "input": torch.tensor([[0, 5, 6]]),
            "names_filter": ["z", ("resid_pre", 1)],
            "pos_slice": slice(0, 2),
            "dtype": torch.float16,
            "count": "tokens",
            "remove_batch_dim": True,
            "within": _EDITS[:1],
        }
    ),
    "run_with_interventions": packed({"input": EIFFEL, "interventions": _EDITS}),
    "plan": packed({"input": (2, 10), "names_filter": "z", "incl_bwd": False}),
    "gradients": packed({"input": EIFFEL, "names_filter": ["z"], "of": _METRIC, "pos_slice": -1}),
    "sweep": packed(
        {
            "base": EIFFEL,
            "cells": [_EDITS[0], Cell(("z", 1), (0, slice(1, 3), 2), 0.0), [_EDITS[2], _EDITS[4]]],
            "metric": {"difference": _METRIC, "kl": KL()},
            "baseline": True,
            "exact": None,
            "max_batch_tokens": 64,
            "reduce": "scalar",
        }
    ),
    "generate": packed(
        {
            "input": EIFFEL,
            "max_new_tokens": 3,
            "temperature": 0.7,
            "top_k": 5,
            "random_state": torch.get_rng_state(),
            "interventions": _EDITS[:1],
            "return_cache": True,
            "names_filter": "z",
            "num_beams": 1,
        }
    ),
    "run": packed(
        {
            "experiment": Experiment(
                EIFFEL,
                points=["z"],
                interventions=_EDITS[:2],
                metric={"difference": _METRIC},
                sweep=_EDITS[:2],
                gradients=["resid_pre"],
                generate={"max_new_tokens": 2},
            )
        }
    ),
    "tokens": packed({"method": "to_tokens", "arguments": {"input": [EIFFEL], "truncate": True}}),
}
"""One good request of every operation, which says much of what can be said."""


def _inner(experiment: Message) -> Any:
    return json.loads(experiment.document["experiment"]["experiment"])


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([-(2**63), 2**63 - 1, 2**31, 10**6, 1e30, -1e-30, 0.5]),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.sampled_from(
        [
            *("", "z", "blocks.1.hook_resid_pre", "*", "last", "loss", "mean", "decode", EIFFEL),
            *(" Paris", "tokens", "logits", "nan", "float16", "int64", "__class__", "\ud800", "\0"),
        ]
    ),
    st.text(max_size=8),
)
TAGS = st.sampled_from(
    [
        *("tensor", "tuple", "object", "number", "slice", "ellipsis", "range", "dtype", "cell"),
        *("frozenset", "intervention", "metric", "stored", "cache", "experiment", "names"),
        *("encoded", "gradients", "plan", "planned value", "kind", "site", "input", "role"),
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(TAGS, st.text(max_size=6)), inner, max_size=3),
        st.builds(lambda tag, value: {tag: value}, TAGS, inner),
        st.builds(lambda ref: {"tensor": ref}, st.sampled_from(["0", "1", "9"])),
    ),
    max_leaves=8,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document."""
    inside = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    return [path, *(one for key, value in inside for one in places(value, (*path, key)))]


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a document with another value at a path."""
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = changed(document[path[0]], path[1:], value)
    return copy


@st.composite
def wrong(draw: st.DrawFn) -> tuple[str, Message]:
    """A good request with something else in one to three places."""
    operation = draw(st.sampled_from(list(VALID)))
    good = VALID[operation]
    inner = operation == "run"
    document = _inner(good) if inner else good.document
    for _ in range(draw(st.integers(1, 3))):
        found = places(document)[1:]
        if found:
            document = changed(document, draw(st.sampled_from(found)), draw(VALUES))
    if draw(st.integers(0, 9)) == 0 and isinstance(document, dict):
        document = {**document, draw(st.text(max_size=5)): draw(VALUES)}
    if inner:
        document = {"experiment": {"experiment": json.dumps(document)}}
    return operation, Message(document, good.tensors)
