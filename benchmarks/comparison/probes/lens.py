"""lensbridge."""

from typing import Any

import torch
from saes import Told as TinySAE  # type: ignore[attr-defined]

import lensbridge
from benchmarks.comparison.families import build
from benchmarks.comparison.outcomes import Outcome, gap, is_true, near
from benchmarks.comparison.probes import models
from benchmarks.comparison.probes.models import CLEAN, CORRUPTED, metric
from lensbridge import patching
from lensbridge.analysis import detect_head, direct_logit_attribution
from lensbridge.causal import attribution_patch, prune_circuit
from lensbridge.engines import NNsight
from lensbridge.interventions import Scale, causal_trace, fit_das, from_json, to_json
from lensbridge.testing import conformance


def _edited(model: Any, point: str, *given: Any, **more: Any) -> Outcome:
    lens = lensbridge.load(model)

    def other(value: Any, hook: Any) -> Any:
        new = torch.rand_like(value)
        return new.softmax(-1) if "pattern" in point else new

    plain = model(*given, **more).logits
    return is_true(
        gap(lens.run_with_hooks(*given, fwd_hooks=[(point, other)], **more), plain) > 1e-4,
        "the edit has no effect",
    )


def _saved() -> Any:
    one = Scale(("resid_post", 0), 0.5)
    return from_json(to_json([one]))


def _das() -> Any:
    ids = torch.cat([CLEAN, CORRUPTED, CLEAN, CORRUPTED])
    lens = lensbridge.load(models.gpt2())
    return str(
        fit_das(
            lens, ids, ids.flip(0), [5, 9, 5, 9], "blocks.0.hook_resid_post", -1, 2,
            epochs=1, answers=[5, 9], held_out=0.5,
        )
    )  # fmt: skip


def _sweep() -> Any:
    lens = lensbridge.load(models.gpt2())
    _, cache = lens.run_with_cache(CLEAN)
    return patching.get_act_patch_resid_pre(lens, CORRUPTED, cache, metric)


def _attribution(model: Any, granularity: Any) -> Any:
    lens = lensbridge.load(model)
    with torch.enable_grad():
        return attribution_patch(lens, CLEAN, CORRUPTED, metric, granularity=granularity).top(3)


def _sae() -> Any:
    lens = lensbridge.load(models.gpt2())
    return lens.run_with_saes(CLEAN, saes=TinySAE("blocks.0.hook_resid_post", 24))


def _processing() -> Outcome:
    lens = lensbridge.load(models.llama())
    before = lens(CLEAN)
    with lens.processed():
        inside = lens(CLEAN)
    worst = max(gap(inside.log_softmax(-1), before.log_softmax(-1)), gap(lens(CLEAN), before))
    return is_true(worst < 1e-4, f"off by {worst:.0e}")


def _terms() -> Outcome:
    lens = lensbridge.load(build("gemma2"))
    _, cache = lens.run_with_cache(CLEAN)
    terms = cache.get_full_resid_decomposition(expand_neurons=False)
    return near(terms.sum(0), cache["resid_post", -1])


def _unknown() -> Any:
    from odd_model import OddConfig, OddModel  # type: ignore[attr-defined]

    lens = lensbridge.load(OddModel(OddConfig()).eval())
    return lens.run_with_cache(CLEAN % 50)[0]


def _prune() -> Any:
    lens = lensbridge.load(models.gpt2())
    return str(prune_circuit(lens, CLEAN, CORRUPTED, metric, 0.1))


def _any() -> Outcome:
    bare = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(inplace=True)).eval()
    given = torch.rand(2, 3, 5, 5)
    output, cache = lensbridge.load(bare).run_with_cache(given)
    return near(torch.cat([output, cache["0"]]), torch.cat([bare(given), bare[0](given)]))


def _remote() -> Outcome:
    """A trace as it goes to NDIF, which nnsight serialises and runs here."""
    lens = lensbridge.load(models.gpt2())
    tokenizer = lensbridge.load("demo").tokenizer
    away = NNsight(lens.hf_model, tokenizer=tokenizer, remote="local")
    edit = Scale(("z", 0), 0.5, heads=1)
    found = near(away.run_with_interventions(CLEAN, edit), lens.run_with_interventions(CLEAN, edit))
    said = Outcome("caveat", "through nnsight, on NDIF; tried as it is serialised for a server")
    return said if found.kind == "works" else found


PROBES = {
    "remote": _remote,
    "any_module": _any,
    "save": _saved,
    "das": _das,
    "interchange": lambda: lensbridge.load(models.gpt2()).interchange(
        CLEAN, CORRUPTED, ("resid_pre", 1), base_positions=2, source_positions=2
    ),
    "logit_lens": lambda: lensbridge.load(models.gpt2()).logit_lens(CLEAN).values,
    "dla": lambda: direct_logit_attribution(lensbridge.load(models.gpt2()), CLEAN, 5, 9).logit,
    "heads_found": lambda: detect_head(lensbridge.load("demo"), models.TEXT, "induction_head"),
    "sweep": _sweep,
    "paths": lambda: patching.path_patch(
        lensbridge.load(models.gpt2()), CLEAN, CORRUPTED, "a0.h1", "a1.h2<q>", metric
    ),
    "attribution_nodes": lambda: _attribution(models.gpt2(), "node"),
    "attribution_edges": lambda: _attribution(models.llama(), "edge"),
    "circuit_search": _prune,
    "causal_trace": lambda: str(
        causal_trace(
            lensbridge.load("demo"), "The Eiffel Tower is in the city of", " Eiffel", samples=1
        )
    ),
    "sae": _sae,
    "processing": _processing,
    "composition": lambda: str(lensbridge.load(models.llama()).all_composition_scores("K")),
    "terms": _terms,
    "encoder_pattern": lambda: _edited(models.bert(), "blocks.0.attn.hook_pattern", CLEAN),
    "encoder_decoder": lambda: lensbridge.load(models.t5()).run_with_cache(
        CLEAN, decoder_input_ids=CORRUPTED, names_filter="decoder.0.cross_attn.hook_pattern"
    )[1]["decoder.0.cross_attn.hook_pattern"],
    "state_space": lambda: _edited(models.mamba(), "blocks.0.hook_resid_post", CLEAN),
    "router": lambda: _edited(build("mixtral"), "blocks.0.mlp.hook_router_logits", CLEAN),
    "vision": lambda: _edited(models.vit(), "blocks.0.hook_resid_post", models.image()),
    "new_class": _unknown,
    "check": lambda: is_true(conformance(models.gpt2()).passed, "a check fails"),
}
