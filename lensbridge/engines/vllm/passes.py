"""Passes of a worker: which rows are whose request's, and what each request has at each module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lensbridge.engines.vllm.calls import ModuleCall, RequestCall, Rows
from lensbridge.engines.vllm.program import Example, Place, PointProgram
from lensbridge.engines.vllm.shards import Shards, input_shards, output_shards
from lensbridge.sites.call import Stage
from lensbridge.sites.site import Site

Side = tuple[nn.Module, str]


@dataclass
class Program:
    """A program with its stages found, by module and side, in the order of the data flow."""

    points: Mapping[str, PointProgram]
    sites: Mapping[str, Site]
    stages: dict[Side, list[tuple[Stage, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.points:
            for stage in self.sites[name].stages:
                self.stages.setdefault((stage.module, stage.phase), []).append((stage, name))
        for listed in self.stages.values():
            listed.sort(key=lambda one: one[0].rank)

    @property
    def modules(self) -> set[nn.Module]:
        """Every module that has a stage."""
        return {module for module, _ in self.stages}


@dataclass
class Record:
    """What one request has left: kept values by point, each with its first column."""

    kept: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    error: Exception | None = None

    def keep(self, name: str, start: int, value: Tensor) -> None:
        """Keep the columns of a pass. Shapes: `[1, pos, ...]`"""
        self.kept.setdefault(name, []).append((start, value[0].detach().clone()))

    def joined(self) -> dict[str, Tensor]:
        """Each point's columns in one tensor; of columns that were computed twice, the later.

        Shapes: `[pos, ...]`
        """
        return {name: _joined(pieces) for name, pieces in self.kept.items()}


def _joined(pieces: Sequence[tuple[int, Tensor]]) -> Tensor:
    ends = [start + len(value) for start, value in pieces]
    if len(pieces) == 1 and pieces[0][0] == 0:
        return pieces[0][1]
    whole = pieces[0][1].new_zeros((max(ends), *pieces[0][1].shape[1:]))
    for (start, value), end in zip(pieces, ends, strict=True):
        whole[start:end] = value
    return whole


@dataclass(frozen=True)
class Tag:
    """What a request says of itself: its program, where its record goes, and its row."""

    program: str
    key: str
    example: Example

    @classmethod
    def of(cls, request: Any) -> Tag | None:
        """The tag of one of vLLM's requests; None: it is not ours."""
        sampling = getattr(request, "sampling_params", None)
        given = (getattr(sampling, "extra_args", None) or {}).get("lensbridge")
        if given is None:
            return None
        prompt = len(request.prompt_token_ids)
        return cls(given["program"], given["key"], Example(given["row"], given["rows"], prompt))


@dataclass(frozen=True)
class Part:
    """Some columns of a request in a pass: of its prompt, or one that was generated."""

    tag: Tag
    rows: Rows
    place: Place
    memory: dict[Any, Any] = field(default_factory=dict)


def parts_of_pass(runner: Any) -> Iterator[Part]:
    """The parts of requests of ours in the pass that begins, from vLLM's model runner."""
    batch = runner.input_batch
    starts = runner.query_start_loc.np
    number = 0
    for i, name in enumerate(batch.req_ids):
        tag = Tag.of(runner.requests[name])
        if tag is None:
            continue
        first, count = int(starts[i]), int(starts[i + 1]) - int(starts[i])
        begin = int(batch.num_computed_tokens_cpu[i])
        for start, end in _segments(begin, begin + count, tag.example.prompt):
            rows = Rows(first + start - begin, first + end - begin, start, number)
            step = max(start - tag.example.prompt + 1, 0)
            yield Part(tag, rows, Place(start, step))
            number += 1


def _segments(begin: int, end: int, prompt: int) -> Iterator[tuple[int, int]]:
    """Columns of the prompt together, those that were generated one by one.

    vLLM computes both in one pass where it had to drop a request for want of memory.
    """
    if begin < prompt:
        yield begin, min(end, prompt)
    for column in range(max(begin, prompt), end):
        yield column, column + 1


class Passes:
    """The hooks of a worker on its model, and what they do for the requests of each pass.

    Args:
        core: the model.
        runner: vLLM's model runner.
        sums: the modules whose input, and those whose output, may be two summands.
    """

    def __init__(
        self, core: nn.Module, runner: Any, sums: tuple[frozenset[nn.Module], ...]
    ) -> None:
        self.core = core
        self.runner = runner
        self.sums = sums
        self.programs: dict[str, Program] = {}
        self.records: dict[str, Record] = {}
        self.parts: list[Part] = []
        self._hooked: dict[nn.Module, list[Any]] = {}
        self._shards: dict[nn.Module, tuple[Shards | None, Shards | None]] = {}

    def add(self, name: str, program: Program) -> None:
        """Take a program in; its modules get hooks."""
        self.programs[name] = program
        for module in {*program.modules, self.core} - self._hooked.keys():
            self._shards[module] = input_shards(module), output_shards(module)
            self._hooked[module] = [
                module.register_forward_pre_hook(self._before, with_kwargs=True),
                module.register_forward_hook(self._after, with_kwargs=True),
            ]

    def remove(self, name: str) -> None:
        """Forget a program; without programs there are no hooks."""
        self.programs.pop(name, None)
        if not self.programs:
            self.close()

    def close(self) -> None:
        """Take every hook off the model."""
        for handles in self._hooked.values():
            for handle in handles:
                handle.remove()
        self._hooked.clear()
        self.parts = []

    def take(self, key: str) -> Record:
        """The record of a request, which is forgotten here."""
        return self.records.pop(key, None) or Record()

    # --- hooks -------------------------------------------------------------------------------

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if module is self.core:
            found = parts_of_pass(self.runner)
            self.parts = [part for part in found if part.tag.program in self.programs]
        if not self.parts:
            return None
        whole = self._called(module, args, kwargs, None)
        self._act(whole, "input")
        return (tuple(whole.args), whole.kwargs) if whole.replaced else None

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not self.parts:
            return None
        whole = self._called(module, args, kwargs, output)
        self._act(whole, "output")
        if module is self.core:
            self.parts = []
        return whole.output if whole.replaced else None

    def _called(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> ModuleCall:
        inputs, outputs = self.sums
        given, returned = self._shards[module]
        return ModuleCall(
            module,
            list(args),
            dict(kwargs),
            output,
            sums_input=module in inputs,
            sums_output=module in outputs,
            given=given,
            returned=returned,
        )

    def _act(self, whole: ModuleCall, side: str) -> None:
        for part in self.parts:
            program = self.programs[part.tag.program]
            record = self.records.setdefault(part.tag.key, Record())
            if record.error is not None:
                continue
            try:
                self._act_on(whole, side, part, program, record)
            except Exception as error:  # it must not end vLLM's process; whoever asked is told
                record.error = error

    def _act_on(
        self, whole: ModuleCall, side: str, part: Part, program: Program, record: Record
    ) -> None:
        call = RequestCall(whole, part.rows, part.memory)
        for stage, name in program.stages.get((whole.module, side), ()):
            stage.act(call, self._chain(name, part, program, record.keep))
        needed = (whole.module, "output") in program.stages
        if side == "input" and needed and whole.sums_input:
            call.see(call.input.clone())  # a norm writes over its input

    def _chain(
        self,
        name: str,
        part: Part,
        program: Program,
        keep: Callable[[str, int, Tensor], None],
    ) -> Any:
        return program.points[name].chain(part.tag.example, part.place, keep)
