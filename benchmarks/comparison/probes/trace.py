"""nnsight."""

from typing import Any

import nnsight
import torch
from nnsight import NNsight, TransformersModel

from benchmarks.comparison.families import build
from benchmarks.comparison.outcomes import Outcome, gap, is_true
from benchmarks.comparison.probes import models, offered
from benchmarks.comparison.probes.models import CLEAN, CORRUPTED
from benchmarks.comparison.tokenizer import demo_tokenizer

BY_HAND = Outcome("caveat", "by hand: a few lines in a trace")


def _any() -> Outcome:
    model = torch.nn.Sequential(torch.nn.Linear(5, 10), torch.nn.Linear(10, 2))
    traced = NNsight(model)
    with traced.trace(torch.rand(1, 5)):
        traced[0].output[:] = 0
        out = traced.output.save()
    return is_true(gap(out[0], model[1].bias) < 1e-6, "off")


def _edited(model: Any, path: str, *given: Any) -> Outcome:
    plain = model(*given).logits
    traced = NNsight(model)
    with traced.trace(*given):
        spot = traced.get(path)
        value = spot.output
        first = value if isinstance(value, torch.Tensor) else value[0]
        first[:] = torch.rand_like(first)
        out = traced.output.logits.save()
    return is_true(gap(out, plain) > 1e-4, "the edit has no effect")


def _lens() -> Outcome:
    traced = TransformersModel(models.gpt2(), tokenizer=demo_tokenizer())
    with traced.trace(CLEAN):
        hidden = traced.transformer.h[-1].output
        read = traced.lm_head(traced.transformer.ln_f(hidden)).save()
        logits = traced.output.logits.save()
    return BY_HAND if gap(read, logits) < 1e-5 else Outcome("wrong", "other logits")


def _interchange() -> Outcome:
    traced = TransformersModel(models.gpt2(), tokenizer=demo_tokenizer())
    with traced.trace(CORRUPTED):
        source = traced.transformer.h[0].output.save()
    with traced.trace(CLEAN):
        traced.transformer.h[0].output[:, 2] = source[:, 2]
        out = traced.output.logits.save()
    return BY_HAND if len(out) else Outcome("wrong", "nothing")


def _pattern() -> Outcome:
    model = models.bert()
    model.set_attn_implementation("eager")
    plain = model(CLEAN).logits
    traced = NNsight(model)
    with traced.trace(CLEAN):
        attn = traced.bert.encoder.layer[0].attention.self
        spot = attn.source.attention_interface_1.source.nn_functional_dropout_0
        spot.output = torch.rand_like(spot.output).softmax(-1)
        out = traced.output.logits.save()
    if gap(out, plain) > 1e-4:
        return Outcome("caveat", "with eager attention, at a line of its code")
    return Outcome("wrong", "the edit has no effect")


def _router() -> Outcome:
    model = build("mixtral")
    plain = model(CLEAN).logits
    traced = NNsight(model)
    with traced.trace(CLEAN):
        chosen = traced.model.layers[0].mlp.gate.output[2]
        chosen[:] = (chosen + 1) % 4
        out = traced.output.logits.save()
    return is_true(gap(out, plain) > 1e-4, "the edit has no effect")


def _cross() -> Outcome:
    model = models.t5()
    model.set_attn_implementation("eager")
    traced = NNsight(model)
    with traced.trace(CLEAN, decoder_input_ids=CORRUPTED):
        attn = traced.decoder.block[0].layer[1].EncDecAttention
        calls = attn.source.attention_interface_1
        pattern = calls.source.nn_functional_dropout_0.output.save()
    with_eager = "with eager attention, at a line of its code"
    return Outcome("caveat", with_eager) if len(pattern) else Outcome("wrong", "nothing")


PROBES = {
    "any_module": _any,
    "remote": lambda: offered(hasattr(nnsight, "ndif"), "no such module"),
    "logit_lens": _lens,
    "interchange": _interchange,
    "encoder_pattern": _pattern,
    "encoder_decoder": _cross,
    "state_space": lambda: _edited(models.mamba(), "backbone.layers.0", CLEAN),
    "router": _router,
    "vision": lambda: _edited(models.vit(), "vit.layers.0", models.image()),
    "new_class": _any,
}
