"""The kit holds which activation it is, factors, the context, and says which blocks it cannot hold.

The activation is compared with transformers' own functions, and the context with the table's rows.
"""

import ast
import warnings
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import pytest
from lensbridge_adapters.falcon_h1 import FALCON_H1
from lensbridge_adapters.gemma import GEMMA
from lensbridge_adapters.gemma3n import GEMMA3N_TEXT
from lensbridge_adapters.gpt2 import GPT2
from lensbridge_adapters.llama import LLAMA
from lensbridge_adapters.minimax import MINIMAX
from lensbridge_adapters.mixtral import MIXTRAL
from lensbridge_adapters.qwen2_moe import QWEN2_MOE

from lensbridge.conformance.mutation import mutants
from lensbridge.conformance.tiny import model_class, tiny_config, tiny_model
from lensbridge.plugins import registry
from lensbridge.spec import Architecture, Block, Dims, Stack
from lensbridge.testing import CHECKS, conformance

HELD = {one.name: one for one in CHECKS}


def _with_mlp(architecture: Architecture, **said: Any) -> Architecture:
    block = architecture.block
    blocks = block if isinstance(block, tuple) else (block,)
    changed = tuple(replace(one, mlp=replace(one.mlp, **said)) for one in blocks)  # type: ignore[type-var]
    return replace(architecture, block=changed if isinstance(block, tuple) else changed[0])


def _row(described: Architecture, name: str, built: Architecture) -> Any:
    report = conformance(tiny_model(built), architecture=described, checks=[HELD[name]])
    return report.rows[0]


@pytest.mark.parametrize(
    ("architecture", "act", "right"),
    [
        (LLAMA, "siluu", "The config field 'hidden_act' has the right one, 'silu'"),
        (LLAMA, "hiden_act", "The config field 'hidden_act' has the right one, 'silu'"),
        (MIXTRAL, "siluu", "The config field 'hidden_act' has the right one, 'silu'"),
        (GPT2, "hiden_act", "The config field 'activation_function' has the right one, 'gelu_new'"),
    ],
)
def test_an_activation_that_nobody_knows_is_refused(
    architecture: Architecture, act: str, right: str
) -> None:
    row = _row(_with_mlp(architecture, act=act), "the activation is as named", architecture)
    assert row.status == "failed"
    assert f"act is {act!r}, which is no config field and no activation" in row.detail
    assert right in row.detail


@pytest.mark.parametrize("architecture", [GPT2, GEMMA])
def test_activations_that_are_near_to_each_other_are_told_apart(
    architecture: Architecture,
) -> None:
    row = _row(_with_mlp(architecture, act="gelu"), "the activation is as named", architecture)
    assert row.status == "failed"
    assert "hook_post should be gelu of mlp.hook_pre" in row.detail
    assert "The config field" in row.detail


@pytest.mark.parametrize("architecture", [GPT2, GEMMA, LLAMA, MIXTRAL])
def test_the_right_activation_passes(architecture: Architecture) -> None:
    assert _row(architecture, "the activation is as named", architecture).status == "passed"


def test_an_activation_with_parameters_is_held_by_its_module() -> None:
    from lensbridge_adapters.apertus import APERTUS

    assert _row(APERTUS, "the activation is as named", APERTUS).status == "passed"


# --- factors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "said", "check"),
    [
        (FALCON_H1, {"gate_scale": None}, "the activation is as named"),
        (FALCON_H1, {"scale": "mlp_multipliers[0]"}, "the stream adds up"),
        (MINIMAX, {"scale": None}, "the stream adds up"),
        (GEMMA3N_TEXT, {"sparsity": None}, "the activation is as named"),
    ],
)
def test_a_wrong_factor_of_an_mlp_is_found(
    architecture: Architecture, said: dict[str, Any], check: str
) -> None:
    assert _row(_with_mlp(architecture, **said), check, architecture).status == "failed"


def _scales(node: Any) -> Iterator[str]:
    """The expressions over config fields in a description, without those of its towers."""
    hints = get_type_hints(type(node))
    for field in fields(node):
        value = getattr(node, field.name)
        if isinstance(value, str) and {float, str} <= set(get_args(hints[field.name])):
            yield value
        if field.name != "towers":
            for one in value if isinstance(value, tuple) else (value,):
                yield from _scales(one) if is_dataclass(one) else ()


def _values(expression: str, config: Any) -> Iterator[tuple[str, Any]]:
    """The value of each config field in an expression; of a list the item that it names.

    If each layer has its own item, it is the largest.
    """
    for node in ast.walk(ast.parse(expression)):
        field = ast.unparse(node.value) if isinstance(node, ast.Subscript) else None
        held = getattr(config, field, None) if field else None
        if isinstance(node, ast.Subscript) and held is not None:
            named = isinstance(node.slice, ast.Constant)
            yield ast.unparse(node), held[ast.literal_eval(node.slice)] if named else max(held)
        value = getattr(config, node.id, None) if isinstance(node, ast.Name) else None
        if isinstance(value, int | float):
            yield ast.unparse(node), value


def _configs() -> Iterator[tuple[str, Stack, Any]]:
    for claim in registry().claims:
        spec = claim.architecture
        if any(True for stack in (spec, *spec.towers) for _ in _scales(stack)):
            config = tiny_config(model_class(spec).config_class, **dict(spec.requires))
            for stack in (spec, *spec.towers):
                held = getattr(config, stack.config) if stack.config else config
                yield spec.name, stack, held


def test_no_factor_of_a_tiny_model_is_without_effect() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            (name, expression, field)
            for name, stack, config in _configs()
            for expression in _scales(stack)
            for field, value in _values(expression, config)
            if value is False or (not isinstance(value, bool) and value in (0, 1))
        }
    assert found == set()


# --- context ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "context", "shown"),
    [
        (GPT2, 500, "500, and transformer.wpe has 48 rows"),
        (GPT2, 20, "20, and transformer.wpe has 48 rows"),
        (GPT2, "n_embd", "'n_embd' is 32, and transformer.wpe has 48 rows"),
        (LLAMA, 500, "500, and the config has max_position_embeddings=48"),
    ],
)
def test_a_wrong_context_is_found(
    architecture: Architecture, context: str | int, shown: str
) -> None:
    dims = replace(architecture.dims, context=context)
    row = _row(replace(architecture, dims=dims), "nothing is left out", architecture)
    assert row.status == "failed"
    assert f"dims.context: {shown}" in row.detail


@pytest.mark.parametrize("architecture", [GPT2, LLAMA])
def test_the_right_context_passes_as_a_number_too(architecture: Architecture) -> None:
    described = replace(architecture, dims=replace(architecture.dims, context=48))
    assert isinstance(described.dims, Dims)
    assert _row(described, "nothing is left out", architecture).status == "passed"


# --- blocks ----------------------------------------------------------------------------------


def test_a_block_with_which_no_layer_is_read_is_named() -> None:
    assert isinstance(QWEN2_MOE.block, tuple)
    name = "every block described is held"
    model = tiny_model(QWEN2_MOE, mlp_only_layers=[])
    report = conformance(model, architecture=QWEN2_MOE, checks=[HELD[name]])
    (row,) = report.rows
    assert row.status == "skipped"
    assert row.detail.startswith("block[1] is not held: no layer of this model is read with it.")
    assert "mlp_only_layers" in row.detail
    assert row.detail in report.to_table(skipped=False)


def test_blocks_that_are_all_read_are_held() -> None:
    name = "every block described is held"
    model = tiny_model(QWEN2_MOE, mlp_only_layers=[0])
    report = conformance(model, architecture=QWEN2_MOE, checks=[HELD[name]])
    assert [row.status for row in report.rows] == ["passed"]


def test_the_mutation_run_tries_an_activation_that_is_near() -> None:
    assert isinstance(GPT2.block, Block)
    assert "block.mlp.act: 'activation_function' -> 'gelu'" in [one.change for one in mutants(GPT2)]
