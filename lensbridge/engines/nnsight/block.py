"""Block: the statements of one pass of the model in a trace, or what is computed after it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch

Side: TypeAlias = Literal["input", "output"]
Path: TypeAlias = tuple[Any, ...]
"""Where a tensor is in what a module returns: (), (0,), ("logits",); in its input first 0 for
positional arguments or 1 for keywords, as in nnsight's `inputs`."""


@dataclass(eq=False)
class Read:
    """What is read on one side of a module: only tensors that are used are written out.

    Args:
        module: the module as text: `model.transformer.h[0]`.
        side: its input or its output.
        first: the path of the input that nnsight calls `.input`.
        number: gives numbers for variables.
        used: path -> variable.
    """

    module: str
    side: Side
    first: Path | None
    number: Callable[[], int]
    used: dict[Path, str] = field(default_factory=dict)
    all_of_it: str | None = None

    def variable(self, path: Path) -> str:
        """The variable of a tensor, which will be read."""
        if path not in self.used:
            self.used[path] = f"x{self.number()}"
        return self.used[path]

    @property
    def whole(self) -> str:
        """The variable of everything there."""
        self.all_of_it = self.all_of_it or f"y{self.number()}"
        return self.all_of_it

    def prepare(self) -> None:
        """Choose the variables that its lines need."""
        alone = () if self.side == "output" else self.first
        if any(path != alone for path in self.used):
            _ = self.whole

    def lines(self, needed: set[str]) -> list[str]:
        """The statements that read what is needed."""
        wanted = {path: name for path, name in self.used.items() if name in needed}
        if self.all_of_it is None:
            return [f"{name} = {self.module}.{self.side}" for name in wanted.values()]
        if not wanted and self.all_of_it not in needed:
            return []
        both = "output" if self.side == "output" else "inputs"
        parts = [f"{name} = {self.all_of_it}{brackets(path)}" for path, name in wanted.items()]
        return [f"{self.all_of_it} = {self.module}.{both}", *parts]


def brackets(path: Path) -> str:
    """A path as text: `[0]["hidden_states"]`."""
    return "".join(f"[{step!r}]" for step in path)


@dataclass(eq=False)
class Write:
    """What is put in the place of tensors on one side of a module.

    Args:
        read: what is there.
        new: path -> the text of the new value.
    """

    read: Read
    new: dict[Path, str] = field(default_factory=dict)

    def prepare(self) -> None:
        """Read what stays as it is beside the new values."""
        if not self._is_alone and self.new:
            _ = self.read.whole

    @property
    def _is_alone(self) -> bool:
        alone = () if self.read.side == "output" else self.read.first
        return set(self.new) == {alone}

    def lines(self) -> Iterator[str]:
        """The statement that writes."""
        read = self.read
        if self._is_alone:
            yield f"{read.module}.{read.side} = {next(iter(self.new.values()))}"
        elif read.side == "input":
            yield from self._inputs()
        else:
            yield from self._output()

    def _inputs(self) -> Iterator[str]:
        whole = self.read.whole
        yield f"args, kwargs = list({whole}[0]), dict({whole}[1])"
        for (kind, *rest), value in ((path, value) for path, value in self.new.items()):
            yield f"{'args' if kind == 0 else 'kwargs'}{brackets(tuple(rest))} = {value}"
        yield f"{self.read.module}.inputs = (tuple(args), kwargs)"

    def _output(self) -> Iterator[str]:
        whole = self.read.whole
        for path, value in self.new.items():
            if isinstance(path[0], str):  # a ModelOutput
                yield f"{whole}{brackets(path)} = {value}"
                yield f"{self.read.module}.output = {whole}"
                continue
            i = path[0]
            yield f"{whole} = (*{whole}[:{i}], {value}, *{whole}[{i + 1}:])"
            yield f"{self.read.module}.output = {whole}"


@dataclass(frozen=True)
class Statement:
    """One statement.

    Args:
        text: Python.
        name: the variable that it sets; None: it does something else, and is always needed.
    """

    text: str
    name: str | None = None


Line: TypeAlias = "Statement | Read | Write"
_VARIABLE = re.compile(r"\b[vxy]\d+\b")


@dataclass(eq=False)
class Block:
    """One pass of the model with all that is read and done in it, and what is computed after it.

    Args:
        inputs: keywords of the model; None: it computes without a pass.
        lines: in their order.
        constants: tensors that it needs; in the text they are `c[0]`, `c[1]`...
        results: key -> the text of a value that comes back.
        exports: text of a value that other blocks use -> its name there.
        letter: what the constants are called in the text.
    """

    inputs: Mapping[str, Any] | None
    lines: list[Line] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    letter: str = "c"
    count: int = 0

    def number(self) -> int:
        """A number for new variables."""
        self.count += 1
        return self.count

    def statements(self) -> list[str]:
        """Its statements, without those that nothing needs, and those that let values out."""
        for line in self.lines:
            if not isinstance(line, Statement):
                line.prepare()
        needed = set(_VARIABLE.findall(" ".join([*self.exports, *self.results.values()])))
        found: list[list[str]] = []
        for line in reversed(self.lines):
            if isinstance(line, Statement):
                texts = [line.text] if line.name is None or line.name in needed else []
            else:
                texts = line.lines(needed) if isinstance(line, Read) else list(line.lines())
            needed.update(_VARIABLE.findall(" ".join(texts)))
            found.append(texts)
        return [text for texts in reversed(found) for text in texts]

    def program(self, inputs: str) -> list[str]:
        """It as Python.

        Args:
            inputs: the keywords of the pass as text.
        """
        body = [*self.statements(), *self._let_out()]
        if self.inputs is None:
            return body
        return [f"with model.trace(**{inputs}{{remote}}):", *indented(body)]

    def _let_out(self) -> Iterator[str]:
        for text, name in self.exports.items():
            yield f"{name} = {text}"
        kept = ", ".join(f"{key!r}: {text}.detach()" for key, text in self.results.items())
        yield f"result = {{{kept}}}"


@dataclass(eq=False)
class Generation(Block):
    """A generation: what is read and done in each of its passes.

    Args:
        options: keywords of `generate` that are no input.
        steps: its passes.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    steps: list[Block] = field(default_factory=list)

    def close(self) -> None:
        """All steps are written: keep their constants."""
        self.constants = [dict(self.options), *(one.constants for one in self.steps)]

    def program(self, inputs: str) -> list[str]:
        """It as Python. The ids are read apart from the steps: where all rows end early, nnsight
        leaves the loop over the steps, and what follows it.
        """
        loops = list(self._loops())
        edits = [f"with tracer.invoke(**{inputs}):", *indented(loops or ["pass"])]
        tokens = ["with tracer.invoke():", *indented(["tokens = tracer.result"])]
        body = [*edits, *tokens] if loops else ["tokens = tracer.result"]
        keywords = "" if loops else f"**{inputs}, "
        body += [] if loops else ["result = {'tokens': tokens}"]
        head = f"with model.generate({keywords}**c[0]{{remote}}) as tracer:"
        return [head, *indented(body), *(["result = {'tokens': tokens}"] if loops else [])]

    def _loops(self) -> Iterator[str]:
        at = 0
        while at < len(self.steps):
            body, end = self.steps[at].statements(), at + 1
            while end < len(self.steps) and self._alike(at, end, body):
                end += 1
            if body:
                yield f"for step in tracer.iter[{at}:{end}]:"
                yield from indented([f"s = c[{at + 1}]", *body])
            at = end

    def _alike(self, one: int, other: int, body: list[str]) -> bool:
        here, there = self.steps[one].constants, self.steps[other].constants
        return (
            self.steps[other].statements() == body
            and all(map(torch.equal, here, there))
            and len(here) == len(there)
        )


def indented(lines: Sequence[str]) -> list[str]:
    """Lines inside a block."""
    return [f"    {line}" for line in lines]
