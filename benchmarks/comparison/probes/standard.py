"""nnterp."""

import copy
from typing import Any

import torch
from nnterp import StandardizedTransformer
from nnterp.interventions import TargetPrompt, logit_lens, patchscope_lens
from nnterp.rename_utils import RenameConfig

import lensbridge
from benchmarks.comparison.families import build
from benchmarks.comparison.outcomes import Outcome, gap, is_true
from benchmarks.comparison.probes import models, offered
from benchmarks.comparison.probes.models import CLEAN
from benchmarks.comparison.tokenizer import demo_tokenizer


def _open(model: Any, **how: Any) -> Any:
    tokenizer = copy.copy(demo_tokenizer())
    tokenizer.padding_side = "left"
    return StandardizedTransformer(model, tokenizer=tokenizer, **how)


def _demo() -> Any:
    return _open(lensbridge.load("demo").hf_model)


def _edited(model: Any) -> Outcome:
    plain = model(CLEAN).logits
    named = _open(model)
    with named.trace(CLEAN):
        named.layers_output[0] = torch.rand_like(named.layers_output[0])
        out = named.logits.save()
    return is_true(gap(out, plain) > 1e-4, "the edit has no effect")


def _router() -> Outcome:
    model = build("mixtral")
    plain = model(CLEAN).logits
    named = _open(model)
    with named.trace(CLEAN):
        chosen = named.mlps[0].gate.output[2]
        chosen[:] = (chosen + 1) % 4
        out = named.logits.save()
    done = gap(out, plain) > 1e-4
    return Outcome("caveat", "by nnsight's path") if done else Outcome("wrong", "no effect")


PROBES = {
    "check": lambda: Outcome("caveat", f"names and shapes, at load: {type(_demo()).__name__}"),
    "remote": lambda: offered(True, ""),
    "logit_lens": lambda: logit_lens(_demo(), models.TEXT),
    "patchscope": lambda: patchscope_lens(
        _demo(), source_prompts=[models.TEXT], target_patch_prompts=TargetPrompt(models.TEXT, -1)
    ),
    "state_space": lambda: _edited(models.mamba()),
    "router": _router,
    "encoder_pattern": lambda: str(_open(models.bert(), enable_attention_probs=True)),
    "encoder_decoder": lambda: str(_open(models.t5())),
    "vision": lambda: str(_open(models.vit())),
    "new_class": lambda: Outcome("caveat", f"names of its modules in a {RenameConfig.__name__}"),
}
