"""TransformerLens."""

from importlib.util import find_spec
from typing import Any

import torch
from transformer_lens import head_detector, patching
from transformer_lens.tools.analysis import (
    attribution_patching,
    direct_logit_attribution,
    interchange,
    jacobian_lens,
    logit_lens,
    sparse_probing,
)

import lensbridge
from benchmarks.comparison.families import build
from benchmarks.comparison.outcomes import Outcome, gap, is_true, near
from benchmarks.comparison.probes import models, offered
from benchmarks.comparison.probes.models import CLEAN, CORRUPTED, metric
from benchmarks.comparison.tools.bridge import boot


def _edited(model: Any, wanted: str, given: Any) -> Outcome:
    bridge = boot(model)
    point = next(one for one in bridge.hook_dict if one.endswith(wanted))

    def other(value: Any, hook: Any) -> Any:
        new = torch.rand_like(value)
        return new.softmax(-1) if "pattern" in point else new

    plain = bridge(given)
    edited = bridge.run_with_hooks(given, fwd_hooks=[(point, other)])
    return is_true(gap(edited, plain) > 1e-4, "the edit has no effect")


def _das() -> Any:
    ids = torch.cat([CLEAN, CORRUPTED, CLEAN, CORRUPTED])
    targets = torch.tensor([0, 1, 0, 1])
    with torch.enable_grad():
        return str(
            interchange.fit_das(
                boot(models.gpt2()), "blocks.0.hook_resid_post", ids, ids.flip(0), targets,
                lambda logits: logits[:, [5, 9]], rank=2, epochs=1,
            )
        )  # fmt: skip


def _sweep() -> Any:
    bridge = boot(models.gpt2())
    _, cache = bridge.run_with_cache(CLEAN)
    return torch.as_tensor(patching.get_act_patch_resid_pre(bridge, CORRUPTED, cache, metric))


def _paths() -> Any:
    bridge = boot(models.gpt2())
    clean, corrupted = (bridge.run_with_cache(ids)[1] for ids in (CLEAN, CORRUPTED))
    found = patching.get_act_patch_direct_path(
        bridge, CORRUPTED, clean, corrupted, metric, 0, 1, verbose=False
    )
    return Outcome("caveat", "direct paths between heads") if len(found) else found


def _attribution(model: Any, granularity: Any) -> Any:
    config = attribution_patching.EdgeAttributionConfig(granularity)
    with torch.enable_grad():
        return str(
            attribution_patching.attribution_patch(boot(model), CLEAN, CORRUPTED, metric, config)
        )


def _processing() -> Outcome:
    bridge = boot(models.llama())
    before = bridge(CLEAN)
    bridge.enable_compatibility_mode()
    off = gap(bridge(CLEAN).log_softmax(-1), before.log_softmax(-1))
    if off > 1e-4:
        return Outcome("wrong", f"off by {off:.0e}")
    return Outcome("caveat", "cannot be undone")


def _terms() -> Outcome:
    bridge = boot(build("gemma2"))
    _, cache = bridge.run_with_cache(CLEAN)
    terms = cache.get_full_resid_decomposition(expand_neurons=False)
    return near(terms.sum(0), cache["resid_post", -1])


def _own_modules() -> Outcome:
    from transformer_lens.HookedRootModule import HookedRootModule

    return Outcome("caveat", f"modules that are written as a {HookedRootModule.__name__}")


def _probe() -> Any:
    generator = torch.Generator().manual_seed(0)
    return str(
        sparse_probing.fit_sparse_probe(
            torch.randn(40, 6, generator=generator), torch.arange(40) % 2, k=2
        )
    )


PROBES = {
    "remote": lambda: offered(
        find_spec("transformer_lens.model_bridge.remote_bridge") is not None, ""
    ),
    "any_module": _own_modules,
    "jacobian_lens": lambda: str(
        jacobian_lens.JacobianLens.fit(
            boot(lensbridge.load("demo").hf_model),
            [models.TEXT * 2],
            corpus="text",
            show_progress=False,
        )
    ),
    "sparse_probe": _probe,
    "das": _das,
    "interchange": lambda: interchange.intervened_logits(
        boot(models.gpt2()),
        "blocks.0.hook_resid_post",
        lambda base, source: source,
        CLEAN,
        torch.zeros(1, 24),
        lambda logits: logits,
        positions=torch.tensor([2]),
    ),
    "logit_lens": lambda: str(logit_lens(boot(models.gpt2()), CLEAN)),
    "dla": lambda: str(direct_logit_attribution(boot(models.gpt2()), CLEAN, 5, 9)),
    "heads_found": lambda: head_detector.detect_head(
        boot(lensbridge.load("demo").hf_model), models.TEXT, "induction_head"
    ),
    "sweep": _sweep,
    "paths": _paths,
    "attribution_nodes": lambda: _attribution(models.gpt2(), "node"),
    "attribution_edges": lambda: _attribution(models.llama(), "edge"),
    "processing": _processing,
    "composition": lambda: str(boot(models.llama()).all_composition_scores("K")),
    "terms": _terms,
    "encoder_pattern": lambda: _edited(models.bert(), "blocks.0.attn.hook_pattern", CLEAN),
    "encoder_decoder": lambda: boot(models.t5()).run_with_cache(CLEAN, decoder_input=CORRUPTED)[1][
        "decoder_blocks.0.cross_attn.hook_pattern"
    ],
    "state_space": lambda: _edited(models.mamba(), "blocks.0.hook_out", CLEAN),
    "router": lambda: _edited(build("mixtral"), "blocks.0.mlp.hook_expert_weights", CLEAN),
    "vision": lambda: _edited(models.vit(), "blocks.0.hook_out", models.image()),
}
