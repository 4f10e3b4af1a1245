"""Traces: recorded blocks as the Python that nnsight runs, and what it gives."""

import linecache
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lensbridge.engines.nnsight.block import Block, indented
from lensbridge.engines.nnsight.tape import is_alike

Results = Sequence[Mapping[str, Tensor]]
"""The values that come back, of each block."""


@dataclass(frozen=True)
class Trace:
    """A program for nnsight.

    Args:
        blocks: the passes of the model, in order.
        differentiates: whether gradients are computed in it.
    """

    blocks: Sequence[Block]
    differentiates: bool = False

    @property
    def passes(self) -> list[Block]:
        """The blocks that say something."""
        return [one for one in self.blocks if one.inputs is not None or one.lines]

    @property
    def constants(self) -> list[list[Tensor]]:
        """The constants of each block."""
        return [one.constants for one in self.passes]

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The different inputs of the model."""
        found: list[dict[str, Any]] = []
        for one in self.passes:
            if one.inputs is not None and not any(is_alike(one.inputs, other) for other in found):
                found.append(dict(one.inputs))
        return found

    @property
    def source(self) -> str:
        """The program as Python."""
        passes = self.passes
        if len(passes) == 1:
            head, *body = passes[0].program("inputs[0]")
            return "\n".join(["c = constants[0]", head, *body, *indented(["nnsight.save(result)"])])
        session = ["results = []", *self._session(), "nnsight.save(results)"]
        return "\n".join(["with model.session({remote}):", *indented(session)])

    def _session(self) -> Iterator[str]:
        """The passes, those that differ only in constants in a loop."""
        done = 0
        for program, some in groupby(one.program(self._inputs(one)) for one in self.passes):
            count = len(list(some))
            body = [line.replace("{remote}", "") for line in program]
            yield f"for c in constants[{done}:{done + count}]:"
            yield from indented([*body, "results.append(result)"])
            done += count

    def _inputs(self, block: Block) -> str:
        if block.inputs is None:
            return ""
        given = block.inputs
        i = next(i for i, one in enumerate(self.inputs) if is_alike(given, one))
        return f"inputs[{i}]"

    def text(self, remote: "bool | str") -> str:
        """The program for a place where it runs."""
        said = "remote=remote" if remote else ""
        first = f", {said}" if said and len(self.passes) == 1 else said
        return self.source.replace("{remote}", first)

    def run(self, model: Any, remote: "bool | str") -> Results:
        """Run it.

        Args:
            model: nnsight's model.
            remote: False: on this machine; "local": the same, after it was serialised as for a
                server; True: on NDIF.
        """
        import nnsight

        alone = len(self.passes) == 1
        source = self.text(remote) + "\n"
        space: dict[str, Any] = {
            "model": model,
            "nnsight": nnsight,
            "torch": torch,
            "inputs": self.inputs,
            "constants": self.constants,
            "remote": remote,
        }
        mode = torch.enable_grad() if self.differentiates else torch.no_grad()
        with mode:
            execute(source, space)
        found = [space["result"]] if alone else space["results"]
        kept = iter(found)
        return [next(kept) if one in self.passes else {} for one in self.blocks]


def execute(source: str, space: dict[str, Any]) -> None:
    """Run Python that has traces, with its source where nnsight looks for it."""
    name = f"<trace {sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    exec(compile(source, name, "exec"), space)
    _forget(name)  # where it failed, tracebacks show its lines


def _forget(name: str) -> None:
    """Let go of the source of a trace that ran: a long sweep of experiments has many."""
    from nnsight.tracing.globals import BLOCKS, SOURCES

    linecache.cache.pop(name, None)
    SOURCES.pop(name, None)
    for key in [key for key in BLOCKS if key[0] == name]:
        del BLOCKS[key]
