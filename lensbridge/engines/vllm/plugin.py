"""What vLLM runs in each of its processes: its workers get a method that lensbridge asks."""

from __future__ import annotations

from typing import Any

METHOD = "lensbridge_answer"


def register() -> None:
    """Give vLLM's workers one method more. Nothing that they have is changed."""
    from vllm.v1.worker.worker_base import WorkerBase

    if not hasattr(WorkerBase, METHOD):
        setattr(WorkerBase, METHOD, _answer)


def _answer(worker: Any, request: str) -> Any:
    from lensbridge.engines.vllm.worker import answer

    return answer(worker, request)
