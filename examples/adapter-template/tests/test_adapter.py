"""What a user of the installed package sees. The conformance kit checks what the adapter says."""

import torch
from lensbridge_tinystack.model import TinystackConfig, TinystackForCausalLM

import lensbridge


def test_the_model_is_read_as_tinystack_without_being_told() -> None:
    model = lensbridge.load(TinystackForCausalLM(TinystackConfig()).eval())
    assert "read as 'tinystack' from tinystack = lensbridge_tinystack" in repr(model)


def test_caching_everything_leaves_the_logits_as_they_are() -> None:
    hf_model = TinystackForCausalLM(TinystackConfig()).eval()
    ids = torch.tensor([[5, 9, 7, 11]])
    with torch.no_grad():
        bare = hf_model(ids).logits
    logits, cache = lensbridge.load(hf_model).run_with_cache(ids)
    assert torch.equal(logits, bare)
    assert cache["pattern", 1].shape == (1, 4, 4, 4)
