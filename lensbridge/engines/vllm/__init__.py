"""vLLM: models that vLLM runs, read and edited there; `VLLM` computes harvests with them.

lens = lensbridge.load_vllm(llm)
"""

from lensbridge.engines.vllm.harvest import VLLM
from lensbridge.engines.vllm.model import VLLMModel
from lensbridge.loading.elsewhere import load_vllm

__all__ = ["VLLM", "VLLMModel", "load_vllm"]
