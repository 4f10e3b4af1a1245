"""A researcher's program, for type checkers: `make lint` checks it with mypy and pyright, strictly.

Nothing runs it. `assert_type` says what a checker has to find for each call.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import lensbridge
from lensbridge import ActivationCache, FactoredMatrix, Hook, LensModel, patching
from lensbridge.errors import LensbridgeError, UnknownPointError
from lensbridge.experiments import KL, Experiment, ExperimentResult, LogitDiff
from lensbridge.interventions import Add, Zero
from lensbridge.patching import PatchingResult
from lensbridge.spec import Architecture


def load(module: nn.Module, architecture: Architecture) -> LensModel:
    assert_type(lensbridge.load("demo"), LensModel)
    assert_type(lensbridge.load(module, architecture=architecture), LensModel)
    return lensbridge.load(Path("folder"), dtype=torch.bfloat16, device="cpu")


def run(model: LensModel, tokens: Tensor) -> Tensor:
    logits, cache = model.run_with_cache("The Eiffel Tower is in")
    assert_type(logits, Tensor)
    assert_type(cache, ActivationCache)
    assert_type(model.run_with_cache(tokens, names_filter=("q", 1)), tuple[Tensor, ActivationCache])
    _, plain = model.run_with_cache(tokens, return_cache_object=False)
    assert_type(plain, dict[str, Tensor])
    nothing, _ = model.run_with_cache(tokens, return_type=None)
    assert_type(nothing, Tensor | None)
    both = model.forward(tokens, return_type="both")
    assert_type(both.loss, Tensor)
    assert_type(both.logits, Tensor)
    assert_type(model(tokens), Tensor)
    return logits


def read(model: LensModel, cache: ActivationCache) -> None:
    assert_type(cache["pattern", 1], Tensor)
    assert_type(cache["blocks.1.attn.hook_pattern"], Tensor)
    for name, value in cache.items():
        assert_type(name, str)
        assert_type(value, Tensor)
    assert_type(cache.to("cpu"), ActivationCache)
    assert_type(model.hook_names, list[str])
    assert_type(model.cfg.n_layers, int)


def weigh(model: LensModel) -> None:
    assert_type(model.W_U, Tensor)
    assert_type(model.W_Q[0, 1], Tensor)
    assert_type(model.blocks[1].attn.W_Q, Tensor)
    assert_type(model.blocks[-1].attn.OV, FactoredMatrix)
    assert_type(model.blocks[1].mlp.W_in, Tensor)
    assert_type(len(model.blocks[1:]), int)
    assert_type(model.QK, FactoredMatrix)


def edit(model: LensModel, tokens: Tensor) -> Tensor:
    def double(value: Tensor, hook: Hook) -> Tensor:
        assert_type(hook.name, str)
        assert_type(hook.layer(), int)
        return 2 * value

    def erase(value: Tensor, hook: Hook) -> None:
        value[:, 0] = 0

    edited = model.run_with_hooks(
        tokens, fwd_hooks=[("blocks.1.hook_resid_pre", double), (("z", 2), erase)]
    )
    assert_type(edited, Tensor)
    handle = model.add_hook("hook_embed", double)
    handle.remove()
    with model.hooks(fwd_hooks=[("hook_embed", double)]):
        logits = model(tokens)
    with model.intervene([Zero("blocks.1.hook_mlp_out"), Add("resid_pre", torch.zeros(4))]):
        model(tokens)
    return logits


def patch(model: LensModel, corrupted: Tensor, clean: ActivationCache) -> Tensor:
    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, 3] - logits[0, -1, 4]

    both = patching.get_act_patch_resid_pre(model, corrupted, clean, metric, baseline=True)
    assert_type(both, PatchingResult)
    kept = patching.get_act_patch_resid_pre(model, corrupted, clean, metric, reduce="none")
    assert_type(kept, PatchingResult)
    named = patching.get_act_patch_block_every(model, corrupted, clean, {"difference": metric})
    assert_type(named, PatchingResult)
    assert_type(patching.get_act_patch_block_every(model, corrupted, clean, metric), Tensor)
    effects = patching.get_act_patch_resid_pre(model, corrupted, clean, metric, verbose=True)
    assert_type(effects, Tensor)
    return effects


def tokenized(model: LensModel) -> Tensor:
    ids, mask = model.to_tokens(["a", "b c"], return_mask=True)
    assert_type(mask, Tensor)
    assert_type(model.to_tokens("a", truncate=True), Tensor)
    return ids


def caught(model: LensModel) -> str:
    try:
        model.run_with_cache("a", names_filter="no such point")
    except UnknownPointError as error:
        return str(error)
    except LensbridgeError:
        raise
    return model.to_single_str_token(3)


def swept(result: PatchingResult) -> None:
    assert_type(result.values, Tensor)


def experiment(model: LensModel) -> None:
    asked = Experiment(
        ["The Eiffel Tower is in"],
        points=[("resid_post", 1), "z"],
        interventions=[Zero(("z", 1), heads=3)],
        metric={"difference": LogitDiff(" Paris", " Rome"), "kl": KL()},
        sweep=[Zero(("z", 0)), [Zero(("z", 1)), Zero(("z", 2))]],
        generate={"max_new_tokens": 2},
    )
    assert_type(Experiment.from_json(asked.to_json()), Experiment)
    result = model.run(asked)
    assert_type(result, ExperimentResult)
    assert_type(result.metrics["kl"], Tensor)
    assert_type(model.sweep("The", [Zero("z")], LogitDiff(" Paris", " Rome")), PatchingResult)
