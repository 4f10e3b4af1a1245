"""What `import lensbridge` shows: each name comes from the module that defines it."""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import lensbridge


def assigned_in(module: ModuleType) -> set[str]:
    """The names that the source of a module assigns or defines at its top level."""
    spec = find_spec(module.__name__)
    assert spec is not None
    assert spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    defined = {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    annotated = {ast.unparse(node.target) for node in body if isinstance(node, ast.AnnAssign)}
    assigned = {
        ast.unparse(target)
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    return defined | annotated | assigned


@pytest.mark.parametrize("name", sorted(lensbridge._HOMES))
def test_each_home_defines_its_name_or_exports_it_on_purpose(name: str) -> None:
    home = import_module(f"lensbridge.{lensbridge._HOMES[name]}")
    assert name in assigned_in(home) or name in getattr(home, "__all__", ())
    assert getattr(lensbridge, name) is getattr(home, name)


def test_every_public_name_is_there_and_has_a_home() -> None:
    at_hand = assigned_in(lensbridge) | {"Architecture", "LensbridgeError"}  # need no torch
    assert set(lensbridge.__all__) <= at_hand | set(lensbridge._HOMES)
    assert set(lensbridge._HOMES) <= set(lensbridge.__all__)
    for name in lensbridge.__all__:
        assert getattr(lensbridge, name) is not None


@pytest.mark.parametrize("room", lensbridge._ROOMS)
def test_every_subpackage_is_imported_when_it_is_first_written(room: str) -> None:
    assert lensbridge.__getattr__(room) is import_module(f"lensbridge.{room}")
    assert room in dir(lensbridge)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = lensbridge.lode  # type: ignore[attr-defined]
