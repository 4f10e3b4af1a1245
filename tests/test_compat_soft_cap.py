"""`cfg.output_logits_soft_cap` of Gemma 2, against the bare model's head without the cap."""

import pytest
import torch
from tiny_models import tokens
from transformers import Gemma2Config, Gemma2ForCausalLM

from lensbridge.compat.transformer_lens import HookedTransformer
from lensbridge.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_cap_is_switched_off_in_the_runs_of_this_model_only() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    cap = {"final_logit_softcapping": 0.05}  # so low that it changes every logit
    bare = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, **cap)).eval()
    ids = tokens() % 64
    model = HookedTransformer.from_pretrained_no_processing("gemma2", hf_model=bare)
    with torch.no_grad():
        capped = bare(ids).logits
        plain = bare.lm_head(bare.model(ids).last_hidden_state)
        assert torch.equal(model(ids), capped)
        model.cfg.output_logits_soft_cap = 0.0
        assert torch.equal(model(ids), plain)
        assert torch.equal(model.run_with_cache(ids)[0], plain)
        assert torch.equal(bare(ids).logits, capped)
        assert not torch.allclose(plain, capped, atol=0.01)
        with pytest.raises(InputError, match="set it back"):
            model(ids, return_type="loss")
        model.cfg.output_logits_soft_cap = 7.0
        with pytest.raises(InputError, match="cannot be 7"):
            model(ids)
        model.cfg.output_logits_soft_cap = 0.05
        assert torch.equal(model(ids), capped)
