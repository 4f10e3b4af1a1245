"""How wrong descriptions are refused: the fact is named, and what there is nowhere."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from lensbridge_adapters.granite import GRANITE
from lensbridge_adapters.olmo2 import OLMO2

from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.failures import told
from lensbridge.errors import LoadError
from lensbridge.spec import Architecture, Block, SplitQKV
from lensbridge.testing import build, conformance

pytestmark = pytest.mark.usefixtures("one_thread")

LEFT_OUT = tuple(check for check in CHECKS if check.name == "nothing is left out")


def _refused(wrong: Architecture) -> str:
    """The first line of what is said when a tiny model is loaded with a description."""
    with pytest.raises(LoadError) as caught:
        build(wrong)
    return str(caught.value).partition("\n")[0].partition(": ")[2]


def _granite(**fields: object) -> Architecture:
    assert isinstance(GRANITE.block, Block)
    assert GRANITE.block.attn is not None
    changed = replace(GRANITE.block.attn, **fields)  # type: ignore[arg-type]
    return replace(GRANITE, block=replace(GRANITE.block, attn=changed))


def _olmo2(**fields: object) -> Architecture:
    assert isinstance(OLMO2.block, Block)
    assert OLMO2.block.attn is not None
    changed = replace(OLMO2.block.attn, **fields)  # type: ignore[arg-type]
    return replace(OLMO2, block=replace(OLMO2.block, attn=changed))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (_granite(qkv=SplitQKV("k_proj", "q_proj", "v_proj")), "q and k are exchanged"),
        (_granite(scale="residual_multiplyer"), "Did you mean 'residual_multiplier'"),
        (_granite(skip_scale="self_atn"), "Did you mean 'self_attn'"),
        (replace(GRANITE, dims=replace(GRANITE.dims, heads=0)), "a size in dims is 0"),
        (replace(GRANITE, dims=replace(GRANITE.dims, kv_heads=1)), "says 1 (dims.kv_heads)"),
        (replace(GRANITE, dims=replace(GRANITE.dims, heads=2)), "with 2 query heads (dims.heads)"),
        (_olmo2(qk_norm_axes="positions_first"), "all heads together"),
        (_olmo2(k_scale=0.5), "a norm takes it away, so leave out k_scale"),
    ],
)
def test_a_refusal_names_the_fact(wrong: Architecture, words: str) -> None:
    assert words in _refused(wrong)


@pytest.mark.parametrize("error", [RuntimeError("einsum(): no"), IndexError("no"), KeyError("no")])
def test_a_report_has_no_errors_of_torch(error: Exception) -> None:
    assert re.fullmatch(r"it cannot be computed with .* names \('?no'?\)\.", told(error))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (replace(GRANITE, logit_softcap="logit_scaling"), "logit_softcap: the config has no field"),
        (_granite(clip="attention_multipliers"), "attn.clip: the config has no field"),
        (_granite(position_bias="rotary"), "attn.position_bias: no layer that is read with it has"),
        (_granite(out_bias="o_bias"), "attn.out_bias: no layer that is read with it has 'o_bias'"),
    ],
)
def test_a_word_for_what_is_nowhere_is_refused(wrong: Architecture, said: str) -> None:
    (row,) = conformance(wrong, checks=LEFT_OUT).failures
    assert row.detail.startswith(said)


@pytest.mark.parametrize(
    ("norms", "said"),
    [({"inner": "norm"}, "norms.inner: no layer"), ({"gate": "mlp"}, "norms.gate: it is a module")],
)
def test_a_gate_of_a_norm_needs_the_norm(norms: dict[str, str], said: str) -> None:
    assert isinstance(GRANITE.block, Block)
    block = replace(GRANITE.block, norms=replace(GRANITE.block.norms, **norms))  # type: ignore[arg-type]
    (row,) = conformance(replace(GRANITE, block=block), checks=LEFT_OUT).failures
    assert row.detail.startswith(said)


A, B = torch.zeros(2, 4), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("fault", "sizes"),
    [
        (lambda: A + B, "sizes 4 and 3"),
        (lambda: A.expand(2, 5), "sizes 5 and 4"),
        (lambda: torch.einsum("ij,ij->i", A, B), "sizes 3 and 4"),
        (lambda: torch.cat([A, torch.zeros(3, 3)]), "sizes 4 and 3"),
        (lambda: A @ B, "matrices 2x4 and 2x3"),
        (lambda: A[B > 0], r"shapes [2, 3] and [2, 4]"),
        (lambda: torch.layer_norm(A, (3,)), "shapes [*, 3] and [2, 4]"),
        (lambda: A.view(3, 3), "the shape [3, 3] and 8 numbers"),
        (lambda: A[:, 7], "index 7 and 4 places"),
        (lambda: A.split([1, 1], -1), "two sizes"),
        (lambda: torch.stack([A, B]), "two sizes"),
    ],
)
def test_two_sizes_are_told_in_plain_words(fault: Callable[[], object], sizes: str) -> None:
    with pytest.raises((RuntimeError, IndexError)) as raised:
        fault()
    assert told(raised.value).endswith(f"description names ({sizes} do not fit together).")


def test_another_reason_is_told_as_it_is() -> None:
    assert "(CUDA out of memory)" in told(RuntimeError("CUDA out of memory. "))
