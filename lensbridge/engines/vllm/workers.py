"""The workers of an `LLM`, which answer JSON with JSON and bytes."""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import load
from torch import Tensor

from lensbridge import errors
from lensbridge.engines.vllm.plugin import METHOD, register
from lensbridge.errors import LensbridgeError, UnsupportedError


class Workers:
    """What runs the model, maybe in other processes.

    Args:
        llm: an `LLM` of vLLM.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        register()  # where the worker is in this process

    def ask(self, do: str, **arguments: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Ask every worker; what the first one answers.

        Raises:
            LensbridgeError: what a worker refused, with its own class.
            UnsupportedError: the workers do not know lensbridge.
        """
        request = json.dumps({"do": do, **arguments})
        try:
            answers = self.llm.collective_rpc(METHOD, args=(request,))
        except Exception as error:
            if METHOD not in str(error):
                raise
            raise UnsupportedError(
                "The workers of this LLM do not know lensbridge. vLLM finds it as a plugin when it "
                "starts its processes: install lensbridge where they run, and if VLLM_PLUGINS is "
                "set, name lensbridge in it."
            ) from error
        told, data = answers[0]
        answer = json.loads(told)
        if "error" in answer:
            kind, message = answer["error"]
            raise getattr(errors, kind, LensbridgeError)(message)
        return answer, load(data) if data else {}
