"""Processed weights of trained models: the same function, and every byte back afterwards."""

import copy

import torch
from real.trained import TOWER, Trained
from test_promise import assert_untouched, fingerprint
from torch import Tensor


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """The largest Kullback-Leibler divergence of predictions, over positions."""
    old, new = (logits.double().log_softmax(-1) for logits in (wanted, found))
    return (old.exp() * (old - new)).sum(-1).max()


def test_processing_keeps_the_function_and_gives_every_byte_back(trained: Trained) -> None:
    hf, lens, ids = trained.hf, trained.lens, trained.ids(TOWER)
    before = fingerprint(hf)
    with torch.no_grad():
        plain = hf(ids).logits
        with lens.processed():
            assert lens.processing.steps == ("fold_ln", "center_unembed", "fold_value_biases")
            processed = hf(ids).logits
            gain, unembed = lens.ln_final.w, lens.W_U.float()
            assert torch.equal(gain, torch.ones_like(gain))
            centred = {torch.float32: 1e-5, torch.bfloat16: 5e-3}[trained.dtype]
            assert (unembed.mean(-1).abs() < centred * unembed.abs().mean(-1)).all()
        assert_untouched(hf, before)
        assert torch.equal(hf(ids).logits, plain)
        assert not torch.equal(processed, plain)
        if trained.dtype == torch.float32:
            found, wanted = processed.log_softmax(-1), plain.log_softmax(-1)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
        else:  # as near to the model in float32 as the model in bfloat16 is
            exact = copy.deepcopy(hf).float()(ids).logits
            assert divergence(exact, processed) < 3 * divergence(exact, plain)
