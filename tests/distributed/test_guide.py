"""The code of the guide to big models that needs several ranks, on tiny models."""

from typing import Any

import pytest
import torch
import torch.distributed as distributed
from distributed.models import whole
from distributed.ranks import on_ranks
from pages import ROOT, Page
from test_tokens import letters
from tiny_models import VOCAB
from transformers import AutoModelForCausalLM, AutoTokenizer

import lensbridge

pytestmark = pytest.mark.ranks

PAGE = ROOT / "docs" / "how-to" / "large-models.md"
SIZES = {
    "EleutherAI/pythia-6.9b": ("neox", 6),
    "HuggingFaceTB/SmolLM2-135M": ("llama", 30),
    "gpt2": ("gpt2", 6),
}


def run(mark: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the block in which these words are; what it defined."""

    def pretrained(name: str, **options: Any) -> Any:
        family, layers = SIZES[name]
        return whole(family, layers=layers)

    AutoModelForCausalLM.from_pretrained = pretrained
    AutoTokenizer.from_pretrained = lambda name: letters()
    distributed.init_process_group = lambda: None  # there is one
    (block,) = (block for block in Page(PAGE).blocks if mark in block.code)
    code = block.code.replace("49152", str(VOCAB)).replace("50257", str(VOCAB))
    exec(compile(code, str(block), "exec"), names)
    return names


@on_ranks(2)
def test_sharded() -> None:
    names = run("fully_shard(layer)", {"__name__": "guide"})
    wanted = lensbridge.load(whole("neox", layers=6), tokenizer=letters())
    prompt = names["prompts"][distributed.get_rank()]
    logits, cache = wanted.run_with_cache(prompt, "resid_post")
    assert torch.equal(names["logits"], logits)
    assert torch.equal(names["cache"]["resid_post", 5], cache["resid_post", 5])
    assert torch.equal(names["W_Q"], wanted.W_Q[5, 3])


@on_ranks(2)
def test_stages_and_data_parallel() -> None:
    names = run("PipelineStage(", {"__name__": "guide"})
    wanted = lensbridge.load(whole("llama", layers=30))
    layer = 7 if distributed.get_rank() == 0 else 22
    _, cache = wanted.run_with_cache(names["ids"], ("resid_post", layer))
    torch.testing.assert_close(names["cache"]["resid_post", layer], cache["resid_post", layer])
    run("DistributedDataParallel(", names)
    each = names["wrapper"].module.transformer.h[0].attn.c_attn.weight.grad.norm()
    both = [torch.zeros_like(each) for _ in range(2)]
    distributed.all_gather(both, each)
    assert both[0] == both[1] > 0
