"""What a worker of vLLM answers: a method of its workers that takes JSON and gives JSON and bytes.

No code is sent. A program names points and declared interventions; weights are asked for by name.
"""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lensbridge import errors
from lensbridge.engines.vllm.packed_model import PackedModel
from lensbridge.engines.vllm.parts import stream_modules
from lensbridge.engines.vllm.passes import Passes, Program, Record
from lensbridge.engines.vllm.program import from_text, points_of
from lensbridge.engines.vllm.shards import rows_together
from lensbridge.errors import UnsupportedError

Answer = tuple[str, bytes]


def answer(worker: Any, request: str) -> Answer:
    """Answer a request to a worker; what goes wrong is an answer too.

    Args:
        worker: one of vLLM's workers.
        request: JSON: what to `do`, and its arguments.
    """
    asked = json.loads(request)
    try:
        session = _session(worker)
        return getattr(session, f"do_{asked.pop('do')}")(**asked)
    except Exception as error:  # vLLM's process goes on
        return _refusal(error)


def _refusal(error: Exception) -> Answer:
    kind = type(error).__name__
    if not hasattr(errors, kind):
        return json.dumps({"error": ["LensbridgeError", f"A worker of vLLM: {error!r}"]}), b""
    return json.dumps({"error": [kind, str(error)]}), b""


def _session(worker: Any) -> Session:
    found: Session | None = getattr(worker, "_lensbridge_session", None)
    if found is None:
        found = worker._lensbridge_session = Session(worker)
    return found


class Session:
    """The model of one worker, opened when it is first asked for.

    Args:
        worker: the worker.
    """

    def __init__(self, worker: Any) -> None:
        self.runner = worker.model_runner
        for name in ("input_batch", "requests", "query_start_loc"):
            if not hasattr(self.runner, name):
                raise UnsupportedError(
                    f"This vLLM runs its model with {type(self.runner).__module__}, whose batches "
                    "lensbridge does not know. Set VLLM_USE_V2_MODEL_RUNNER=0 before vLLM is "
                    "imported."
                )
        core = self.runner.get_model()
        self.model = PackedModel(core)
        self.passes = Passes(core, self.runner, stream_modules(self.model.native))

    def do_describe(self) -> Answer:
        """Which points there are, and what the model is read as."""
        told = {
            "points": list(self.model.vocabulary.names),
            "architecture": self.model.native.architecture.name,
            "class": type(self.model.hf_model).__name__,
        }
        return json.dumps(told), b""

    def do_define(self, program: str, text: str) -> Answer:
        """Take in a program, which requests name from then on."""
        points = points_of(self.model, from_text(text))
        self.passes.add(program, Program(points, self.model.engine.sites))
        return "{}", b""

    def do_take(self, keys: list[str], program: str) -> Answer:
        """What requests have left, as safetensors; their program is forgotten."""
        self.passes.remove(program)
        records = {key: self.passes.take(key) for key in keys}
        failed = [one.error for one in records.values() if one.error is not None]
        if failed:
            return _refusal(failed[0])
        return "{}", save(_named(records))

    def do_weight(self, name: str) -> Answer:
        """A weight by its name."""
        value = self.model.weight(name).detach()
        if name == "embed.W_E":
            value = rows_together(value)[: self.model.native.sizes.d_vocab]
        return "{}", save({"weight": value.cpu().contiguous().clone()})


def _named(records: dict[str, Record]) -> dict[str, Tensor]:
    return {
        f"{key}|{name}": value.cpu().contiguous()
        for key, record in records.items()
        for name, value in record.joined().items()
    }
