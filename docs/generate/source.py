"""What the source says: annotations, defaults and docstrings as they are written there.

They are read from the syntax tree. An annotation that has been evaluated shows its aliases
expanded, and prints differently from one version of Python to the next.
"""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Source(NamedTuple):
    """One file."""

    text: str
    tree: ast.Module

    def written(self, node: ast.expr) -> str:
        """An expression as it is written, on one line."""
        text = " ".join((ast.get_source_segment(self.text, node) or "").split())
        return re.sub(r",? ?([\])])", r"\1", re.sub(r"([\[(]) ", r"\1", text))

    def annotation(self, node: ast.expr) -> str:
        """An annotation as it is written, without the quotes of forward references."""
        text = self.written(node)
        for quoted in quoted_names(node):
            text = text.replace(self.written(quoted), str(quoted.value))
        return text


class Assigned(NamedTuple):
    """A name that a module assigns, such as an alias of a type."""

    module: str
    name: str
    annotation: str
    value: str
    summary: str
    node: ast.expr

    @property
    def is_type(self) -> bool:
        """Whether this is an alias of a type rather than a value."""
        made = ast.unparse(self.node.func) if isinstance(self.node, ast.Call) else ""
        union = isinstance(self.node, ast.Subscript | ast.BinOp)
        return self.annotation == "TypeAlias" or union or made == "NewType"


def quoted_names(node: ast.AST) -> Iterator[ast.Constant]:
    """The forward references in an annotation: strings outside `Literal`."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from quoted_names(child)


@cache
def read(path: str) -> Source:
    """A file and its syntax tree."""
    text = Path(path).read_text(encoding="utf-8")
    return Source(text, ast.parse(text))


@cache
def source_of(module: str) -> Source:
    """The source of a module."""
    spec = find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return read(spec.origin)


def function_behind(member: Any) -> Any:
    """The plain function of a method, a property, a decorated function."""
    for attribute in ("fget", "func", "__func__"):
        member = getattr(member, attribute, None) or member
    return inspect.unwrap(member)


def function_node(function: Any) -> tuple[Source, FunctionNode]:
    """Where a function is defined: of overloads, the implementation."""
    code = function_behind(function).__code__
    source = read(code.co_filename)
    for node in ast.walk(source.tree):
        if isinstance(node, FunctionNode) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                return source, node
    raise LookupError(f"{code.co_filename} has no {code.co_name}")


def class_node(cls: type) -> tuple[Source, ast.ClassDef]:
    """Where a class is defined."""
    source = source_of(cls.__module__)
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            return source, node
    raise LookupError(f"{cls.__module__} has no {cls.__name__}")


def summary(docstring: str | None) -> str:
    """The first paragraph of a docstring."""
    return inspect.cleandoc(docstring or "").partition("\n\n")[0]


def attributes(docstring: str | None) -> dict[str, str]:
    """The attributes that a class docstring lists, and what it says of each."""
    _, _, below = inspect.cleandoc(docstring or "").partition("\nAttributes:\n")
    section = re.split(r"\n(?=\S)", below)[0]
    pairs = re.findall(r"^ {4}(\w+): ((?:.|\n(?! {4}\w+: ))*)", section, re.MULTILINE)
    joined = {name: " ".join(text.split()) for name, text in pairs}
    return {name: text[:1].upper() + text[1:] for name, text in joined.items()}


def default_of(source: Source, value: ast.expr | None) -> str | None:
    """The default of a dataclass field as a caller sees it; None where it has none."""
    if value is None:
        return None
    if not (isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field")):
        return source.written(value)
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    if "default" in given:
        return source.written(given["default"])
    factory = given.get("default_factory")
    if isinstance(factory, ast.Lambda):
        return source.written(factory.body)
    return None if factory is None else f"{source.written(factory)}()"


def field_texts(cls: type) -> Iterator[str]:
    """The fields of a dataclass or named tuple as parameters."""
    if dataclasses.is_dataclass(cls):
        named = [(field.name, field.kw_only) for field in dataclasses.fields(cls) if field.init]
    else:
        named = [(name, False) for name in getattr(cls, "_fields", ())]
    keywords_only = False
    for name, keyword in sorted(named, key=lambda pair: pair[1]):
        if keyword and not keywords_only:
            keywords_only = True
            yield "*"
        source, node = field_node(cls, name)
        default = default_of(source, node.value)
        text = f"{name}: {source.annotation(node.annotation)}"
        yield text if default is None else f"{text} = {default}"


def field_node(cls: type, name: str) -> tuple[Source, ast.AnnAssign]:
    """Where the field of a class is declared."""
    for base in cls.__mro__:
        if base.__module__.startswith("lensbridge"):
            source, node = class_node(base)
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == name:
                    return source, line
    raise LookupError(f"{cls.__name__} declares no {name}")


def imported(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """The names that a module imports from lensbridge: from where, and what they are there."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lensbridge")
        for alias in node.names
    }


def assigned(module: str, name: str) -> Assigned | None:
    """Where a name is assigned, in this module or in the one that it is imported from."""
    head, _, tail = name.partition(".")
    source = source_of(module)
    if tail:
        if head not in (imports := imported(source.tree)):
            return None
        home, original = imports[head]
        return assigned(f"{home}.{original}", tail)
    for line, after in zip(source.tree.body, [*source.tree.body[1:], None], strict=True):
        if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == name and line.value:
            annotation = source.annotation(line.annotation)
        elif isinstance(line, ast.Assign) and name in map(ast.unparse, line.targets):
            annotation = ""
        else:
            continue
        said = after.value if isinstance(after, ast.Expr) else None
        text = said.value if isinstance(said, ast.Constant) else ""
        is_type = isinstance(line.value, ast.Subscript | ast.BinOp) or annotation == "TypeAlias"
        value = source.annotation(line.value) if is_type else source.written(line.value)
        return Assigned(module, name, annotation, value, summary(str(text)), line.value)
    home, original = imported(source.tree).get(name, ("", ""))
    return assigned(home, original) if home else None
