"""Public names as the reference shows them: signature, first lines, members."""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from functools import cached_property
from importlib import import_module
from textwrap import fill
from types import ModuleType
from typing import Any

from packages import OWN_PAGES
from source import (
    FunctionNode,
    Source,
    assigned,
    attributes,
    class_node,
    field_texts,
    function_behind,
    function_node,
    summary,
)

WIDTH = 96
"""Signatures longer than this have one parameter a line."""

INDENT = " " * 4

SHOWN_DECORATORS = ("contextmanager", "classmethod", "staticmethod")


@dataclass(frozen=True)
class Entry:
    """One public name.

    Args:
        name: as it is written by users, `Class.method` for a method.
        kind: "function", "class", "value", "alias", "property", "attribute" or "module".
        summary: the first paragraph of its docstring.
        signature: how it is called or what it is, several lines where it is long.
        module: where its annotations are to be understood.
        types: the annotations in the signature.
        members: methods and properties of a class.
        same_as: the name of the class or function that this is another name of.
    """

    name: str
    kind: str
    summary: str
    signature: str = ""
    module: str = ""
    types: tuple[str, ...] = ()
    members: tuple["Entry", ...] = ()
    same_as: str = ""
    bases: tuple[type, ...] = field(default=(), compare=False)

    @property
    def short(self) -> str:
        """The name without the class."""
        return self.name.rpartition(".")[2]


def call_text(name: str, parameters: list[str], returns: str) -> str:
    """A call on one line, or with one parameter a line."""
    line = f"{name}({', '.join(parameters)}){returns}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {text}," for text in parameters), f"){returns}"])


def parameter_texts(source: Source, arguments: ast.arguments) -> Iterator[str]:
    """Each parameter as written, with `*` and `/` in their places."""
    positional = [*arguments.posonlyargs, *arguments.args]
    without = len(positional) - len(arguments.defaults)
    defaults = [*[None] * without, *arguments.defaults]
    for place, (argument, default) in enumerate(zip(positional, defaults, strict=True), start=1):
        yield parameter_text(source, argument, default)
        if place == len(arguments.posonlyargs):
            yield "/"
    if arguments.vararg:
        yield "*" + parameter_text(source, arguments.vararg, None)
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield parameter_text(source, argument, default)
    if arguments.kwarg:
        yield "**" + parameter_text(source, arguments.kwarg, None)


def parameter_text(source: Source, argument: ast.arg, default: ast.expr | None) -> str:
    """A parameter as written."""
    annotation = f": {source.annotation(argument.annotation)}" if argument.annotation else ""
    if default is None:
        return argument.arg + annotation
    equals = " = " if annotation else "="
    return f"{argument.arg}{annotation}{equals}{source.written(default)}"


def annotations(source: Source, node: FunctionNode) -> tuple[str, ...]:
    """All annotations of a function."""
    every = [one for one in ast.walk(node.args) if isinstance(one, ast.arg)]
    written = [one.annotation for one in every] + [node.returns]
    return tuple(source.annotation(one) for one in written if one is not None)


def returned(source: Source, node: FunctionNode) -> str:
    """The annotation of what a function returns."""
    return source.annotation(node.returns) if node.returns else ""


def function_entry(name: str, function: Any, *, bound: bool = False) -> Entry:
    """A function, or with `bound` a method without its `self`."""
    source, node = function_node(function)
    parameters = list(parameter_texts(source, node.args))[bound:]
    shown = [source.written(one) for one in node.decorator_list]
    lines = [f"@{decorator}" for decorator in shown if decorator in SHOWN_DECORATORS]
    returns = f" -> {returned(source, node)}" if node.returns else ""
    plain = function_behind(function)
    return Entry(
        name,
        "function",
        summary(plain.__doc__),
        "\n".join([*lines, call_text(name.rpartition(".")[2], parameters, returns)]),
        plain.__module__,
        annotations(source, node),
    )


def property_entry(name: str, member: Any) -> Entry:
    """A property."""
    source, node = function_node(member)
    plain = function_behind(member)
    types = annotations(source, node)
    text = returned(source, node)
    return Entry(name, "property", summary(plain.__doc__), text, plain.__module__, types)


def is_ours(cls: type) -> bool:
    """Whether a class is lensbridge's."""
    return cls.__module__.startswith("lensbridge")


def members_of(cls: type, without: tuple[type, ...] = ()) -> tuple[Entry, ...]:
    """Public methods and properties of a class, and the attributes that its docstring lists.

    Args:
        cls: the class.
        without: classes whose members are shown elsewhere.
    """
    elsewhere = {base for one in without for base in one.__mro__}
    bases = [base for base in cls.__mro__ if is_ours(base)]
    fields = {field.name for field in dataclasses.fields(cls)} if is_dataclass(cls) else set()
    found: dict[str, Entry] = {}
    shown = [base for base in bases if base not in elsewhere]
    for base in shown:
        for name, member in vars(base).items():
            known = name in fields or any(name in vars(one) for one in elsewhere)
            if not name.startswith("_") and not known:
                entry = member_entry(f"{cls.__name__}.{name}", member)
                if entry is not None:
                    found.setdefault(name, with_inherited_summary(entry, bases))
    for base in shown:
        for name, text in attributes(base.__doc__).items():
            kind = next(filter(None, (attribute_type(one, name) for one in bases)), "")
            entry = Entry(
                f"{cls.__name__}.{name}", "attribute", text, kind, base.__module__, (kind,)
            )
            found.setdefault(name, entry)
    return tuple(found.values())


def attribute_type(cls: type, name: str) -> str:
    """The type of an attribute that a class declares or a method sets, if the source says it."""
    source, node = class_node(cls)
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == name:
            return source.annotation(line.annotation)
    methods = (line for line in node.body if isinstance(line, FunctionNode))
    return next(filter(None, (set_type(cls, source, method, name) for method in methods)), "")


def set_type(cls: type, source: Source, method: FunctionNode, name: str) -> str:
    """The type of an attribute that one method sets, if the source says it."""
    arguments = (one for one in ast.walk(method.args) if isinstance(one, ast.arg))
    parameters = {one.arg: one.annotation for one in arguments if one.annotation is not None}
    for line in ast.walk(method):
        if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == f"self.{name}":
            return source.annotation(line.annotation)
        if isinstance(line, ast.Assign) and f"self.{name}" in map(ast.unparse, line.targets):
            if isinstance(line.value, ast.Name) and line.value.id in parameters:
                return source.annotation(parameters[line.value.id])
            return type_of_call(cls.__module__, line.value)
    return ""


def type_of_call(module: str, value: ast.expr) -> str:
    """What a call of a class or function of this module returns; else nothing."""
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name)):
        return ""
    called = getattr(import_module(module), value.func.id, None)
    if inspect.isfunction(called):
        return returned(*function_node(called))
    return value.func.id if inspect.isclass(called) else ""


def member_entry(name: str, member: Any) -> Entry | None:
    """A method or property; None for data."""
    if isinstance(member, property | cached_property):
        return property_entry(name, member)
    if isinstance(member, classmethod | staticmethod):
        return function_entry(name, member, bound=isinstance(member, classmethod))
    return function_entry(name, member, bound=True) if inspect.isfunction(member) else None


def with_inherited_summary(entry: Entry, bases: list[type]) -> Entry:
    """An entry whose docstring, where it has none, is that of the method it overrides."""
    if entry.summary:
        return entry
    docstrings = (vars(base)[entry.short].__doc__ for base in bases if entry.short in vars(base))
    text = next((summary(docstring) for docstring in docstrings if docstring), "")
    return Entry(entry.name, entry.kind, text, entry.signature, entry.module, entry.types)


def constructor(name: str, cls: type) -> tuple[str, tuple[str, ...]]:
    """How a class is called, and the annotations in it; only its name where that is not ours."""
    if issubclass(cls, Exception):
        bases = ", ".join(base.__name__ for base in cls.__bases__)
        return f"class {name}({bases})", ()
    init = getattr(cls.__init__, "__code__", None)
    if init is not None and "/lensbridge/" in init.co_filename.replace("\\", "/"):
        source, node = function_node(cls.__init__)
        parameters = list(parameter_texts(source, node.args))[1:]
        return call_text(name, parameters, ""), annotations(source, node)
    fields = list(field_texts(cls))
    if not fields:
        return f"class {name}", ()
    return call_text(name, fields, ""), tuple(text.split(" = ")[0] for text in fields)


def class_entry(name: str, cls: type, page: tuple[type, ...] = ()) -> Entry:
    """A class.

    Args:
        name: under which it is public.
        cls: the class.
        page: classes that are shown on the same page: members that they have too are left out, as
            are those of classes with a page to themselves.
    """
    if name != cls.__name__:
        text = f"Another name of `{cls.__name__}`."
        return Entry(name, "class", text, same_as=cls.__name__)
    own = (base for base in cls.__mro__[1:] if base in page or base.__name__ in OWN_PAGES)
    bases = tuple(own)
    _, node = class_node(cls)
    signature, types = constructor(name, cls)
    return Entry(
        name,
        "class",
        summary(ast.get_docstring(node)),
        signature,
        cls.__module__,
        types,
        members_of(cls, bases[:1]),
        bases=bases[:1],
    )


def value_entry(name: str, module: str) -> Entry:
    """A constant, or an alias of a type."""
    found = assigned(module, name)
    assert found is not None, f"{module} does not assign {name}"
    if found.annotation not in ("", "TypeAlias"):
        text = f"{name}: {found.annotation}"
        return Entry(name, "value", found.summary, text, found.module, (found.annotation,))
    text = f"{name} = {found.value}"
    if found.is_type:
        shown = _in_lines(text) if len(text) > WIDTH and _is_choice(found.value) else text
        return Entry(name, "alias", found.summary, shown, found.module, (found.value,))
    return Entry(name, "value", found.summary, text if len(text) <= WIDTH else name, found.module)


def _is_choice(value: str) -> bool:
    """Whether an alias is one `Literal`, and not a union with others."""
    return value.startswith("Literal[") and value.count("]") == 1


def _in_lines(text: str) -> str:
    """An alias with its choices in lines of their own."""
    head, _, choices = text.removesuffix("]").partition("[")
    return f"{head}[\n{fill(choices, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)}\n]"


def entry_of(module: str, name: str, page: tuple[type, ...] = ()) -> Entry:
    """What a module shows under a name."""
    value = getattr(import_module(module), name)
    if inspect.isclass(value) and not hasattr(value, "__origin__"):
        return class_entry(name, value, page)
    if inspect.isfunction(function_behind(value)):
        return function_entry(name, value)
    if isinstance(value, ModuleType):
        return Entry(name, "module", summary(value.__doc__))
    return value_entry(name, module)


def entries_of(module: str) -> list[Entry]:
    """Everything in the `__all__` of a module, in its order."""
    home = import_module(module)
    values = (getattr(home, name) for name in home.__all__)
    classes = tuple(value for value in values if inspect.isclass(value))
    return [entry_of(module, name, classes) for name in home.__all__]
