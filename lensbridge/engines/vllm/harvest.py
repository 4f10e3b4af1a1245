"""VLLM: the shards of a harvest, computed by a model that vLLM runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from lensbridge.engines.vllm.model import VLLMModel
from lensbridge.engines.vllm.opening import open_llm, open_model
from lensbridge.errors import InputError
from lensbridge.harvest.computing import Computer
from lensbridge.harvest.engine import State, Told
from lensbridge.harvest.folder import Folder
from lensbridge.harvest.job import Job
from lensbridge.harvest.running import about, known_shards


@dataclass(frozen=True)
class VLLM:
    """Computes shards with vLLM, which packs the rows of a batch without padding.

    Args:
        llm: an `LLM` of vLLM or what `load_vllm` gave; None: an `LLM` is made of the harvest's
            model, which has to be a name.
        options: for `vllm.LLM`, where it is made here.

    Raises:
        UnsupportedError: the version or a setting of vLLM is not supported.
    """

    llm: Any = None
    options: tuple[tuple[str, Any], ...] = ()

    def run(self, job: Job, folder: Folder, told: Told | None) -> None:
        """Compute the shards that the folder does not have.

        Raises:
            InputError: the `LLM` runs another model than the harvest is of.
        """
        model = self._model(job)
        mine = replace(job, model=model)
        rows, computer = mine.shard_rows(), Computer(mine)
        there = known_shards(folder, rows)
        began, tokens, written, number = time.monotonic(), 0, 0, 0
        with folder.writing("vllm") as writer:
            while rows.count is None or number < rows.count:
                found = [] if number in there else rows.rows(number)
                if number not in there and not found:
                    break
                if found:
                    tensors = computer.compute(found)
                    shard = writer.write(number, tensors, about(rows, number, found, tensors))
                    tokens, written = tokens + shard.run, written + shard.bytes
                    if told is not None:
                        seconds = time.monotonic() - began
                        told(State(number, tokens, None, written, seconds))
                number += 1
        rows.require_some()

    def _model(self, job: Job) -> VLLMModel:
        """The model, if it is the one that the harvest is of."""
        if isinstance(job.model, VLLMModel) and self.llm is None:
            return job.model
        if self.llm is None:
            return open_model(_name_of(job), **dict(self.options))
        model = self.llm if isinstance(self.llm, VLLMModel) else open_llm(self.llm)
        for name in ("original_architecture", "n_layers", "d_model", "n_heads", "d_vocab"):
            here, asked = getattr(model.cfg, name), getattr(job.model.cfg, name)
            if here != asked:
                raise InputError(
                    f"The LLM runs another model than the harvest is of: its {name} is {here}, and "
                    f"the harvest's {asked}."
                )
        return model


def _name_of(job: Job) -> str:
    given = job.spec.model
    if not isinstance(given, str):
        raise InputError(
            "The harvest's model is an object, and vLLM loads a model by its name. Pass "
            "VLLM(llm=...), or make the harvest of a name or folder."
        )
    return given
