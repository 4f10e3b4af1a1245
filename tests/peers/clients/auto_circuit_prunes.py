"""A program for auto-circuit's published package, which knows nothing of lensbridge.

python auto_circuit_prunes.py weights.pt results.pt
"""

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import PreTrainedTokenizerFast

CPU = torch.device("cpu")


def with_what_it_imports() -> None:
    """auto-circuit 1.0.1 asks for names that others have dropped, and for blobfile, unused here."""
    torch.optim.adam = sys.modules["torch.optim.adam"]  # type: ignore[attr-defined]
    blobs = ModuleType("blobfile")
    blobs.BlobFile = open  # type: ignore[attr-defined]
    sys.modules.setdefault("blobfile", blobs)
    try:
        import transformer_lens.past_key_value_caching
    except ImportError:
        import transformer_lens
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        old = ModuleType("transformer_lens.past_key_value_caching")
        for module in (transformer_lens, old):
            module.HookedTransformerKeyValueCache = TransformerLensKeyValueCache  # type: ignore[attr-defined]
        sys.modules[old.__name__] = old


with_what_it_imports()

from auto_circuit.data import load_datasets_from_json  # noqa: E402
from auto_circuit.prune import run_circuits  # noqa: E402
from auto_circuit.prune_algos.ACDC import acdc_prune_scores  # noqa: E402
from auto_circuit.prune_algos.activation_magnitude import activation_magnitude_prune_scores  # noqa: E402
from auto_circuit.prune_algos.edge_attribution_patching import (  # noqa: E402
    edge_attribution_patching_prune_scores,
)
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores  # noqa: E402
from auto_circuit.prune_algos.subnetwork_probing import subnetwork_probing_prune_scores  # noqa: E402
from auto_circuit.types import AblationType, PatchType  # noqa: E402
from auto_circuit.utils.graph_utils import patchable_model  # noqa: E402


def tokenizer() -> Any:
    """Words are w1 to w59, a text begins with w0, and w60 fills it up."""
    words = models.WordLevel({f"w{one}": one for one in range(61)}, unk_token="w0")
    of_words = Tokenizer(words)
    of_words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "w0")
    return PreTrainedTokenizerFast(tokenizer_object=of_words, pad_token="w60", **special)


def prompts(model: Any, **options: Any) -> Any:
    """Four pairs of texts that differ from their third word on."""
    draw = torch.Generator().manual_seed(0)

    def text(start: list[int]) -> str:
        more = torch.randint(1, 60, (4,), generator=draw).tolist()
        return " " + " ".join(f"w{one}" for one in [*start, *more])

    def pair(i: int) -> dict[str, Any]:
        start = [5, 17]
        words = {"answers": [f"w{i + 3}"], "wrong_answers": [f"w{i + 30}"]}
        return {"clean": text(start), "corrupt": text(start), **words}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.json"
        path.write_text(json.dumps({"prompts": [pair(i) for i in range(4)]}))
        batch = {"batch_size": 2, "train_test_size": (2, 2), "return_seq_length": True}
        return load_datasets_from_json(model, path, CPU, **batch, **options)


def model_of(weights: dict[str, Any]) -> Any:
    state = dict(weights)
    model = HookedTransformer(HookedTransformerConfig(**state.pop("cfg")))
    model.tokenizer = tokenizer()
    model.load_state_dict(state, strict=False)
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    if model.cfg.n_key_value_heads is not None:
        model.set_ungroup_grouped_query_attention(True)
    for one in model.parameters():
        one.requires_grad_(False)
    return model


def by_module(label: str, scores: Any) -> dict[str, Any]:
    return {f"{label}: {name}": one.detach().clone() for name, one in scores.items()}


def outputs(label: str, by_size: Any) -> dict[str, Any]:
    """The logits of circuits, by the number of their edges."""
    return {
        f"{label}, {size} edges, {i}": one.clone()
        for size, of_batches in by_size.items()
        for i, one in enumerate(of_batches.values())
    }


def attributions(model: Any, data: Any) -> dict[str, Any]:
    linear = {"grad_function": "logit", "answer_function": "avg_diff", "mask_val": 0.0}
    steps = {"grad_function": "logprob", "answer_function": "avg_val", "mask_val": None}
    gradient = mask_gradient_prune_scores(model, data, None, **linear)
    integrated = mask_gradient_prune_scores(model, data, None, **steps, integrated_grad_samples=3)
    found = {
        **by_module("gradient", gradient),
        **by_module("integrated", integrated),
        **by_module("again", mask_gradient_prune_scores(model, data, None, **linear)),
        **by_module("size", activation_magnitude_prune_scores(model, data, None)),
    }
    if not model.is_factorized or model.kv_caches is not None:
        return found
    patching = edge_attribution_patching_prune_scores(model, data, None)
    return {**found, **by_module("patching", patching)}


def circuits(model: Any, data: Any, sizes: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    options = {"grad_function": "logit", "answer_function": "avg_diff", "mask_val": 0.0}
    scores = mask_gradient_prune_scores(model, data, None, **options)
    for kind in AblationType:
        ran = run_circuits(model, data, sizes, scores, PatchType.TREE_PATCH, kind)
        found.update(outputs(f"tree, {kind.name}", ran))
    ran = run_circuits(model, data, sizes, scores, PatchType.EDGE_PATCH, AblationType.RESAMPLE)
    return {**found, **outputs("edges", ran)}


def searches(model: Any, data: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    trained = subnetwork_probing_prune_scores(model, data, None, epochs=3, mask_fn="sigmoid")
    found = {**by_module("trained", trained)}
    model.edges = sorted(model.edges, key=str)  # a set, whose order differs between processes
    acdc = acdc_prune_scores(model, data, None, tao_exps=[-3, -1], tao_bases=[1])
    return {
        **found,
        **by_module("acdc", {name: one.nan_to_num(posinf=1e3) for name, one in acdc.items()}),
    }


def results(weights: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    model = model_of(weights)
    train, test = prompts(model)
    patched = patchable_model(model, True, "last_seq", train.seq_len, True)
    found["by position"] = patched.n_edges
    found.update(attributions(patched, train))

    patched = patchable_model(model_of(weights), True, "last_seq", None, True)
    found["edges"] = patched.n_edges
    for batch in test:
        found["logits"] = patched(batch.clean)
    found.update({f"all, {name}": one for name, one in attributions(patched, test).items()})
    found.update(circuits(patched, test, [0, 5, 20, patched.n_edges]))
    found.update(searches(patched, train))

    patched = patchable_model(model_of(weights), False, "last_seq", None, True)
    found["nodes"] = patched.n_edges
    found.update({f"nodes, {name}": one for name, one in attributions(patched, test).items()})

    model = model_of(weights)
    if model.cfg.n_key_value_heads is not None:  # TransformerLens's cache has no ungrouped keys
        return found
    train, test = prompts(model, tail_divergence=True)
    patched = patchable_model(model, True, "last_seq", None, True, (train.kv_cache, test.kv_cache))
    found["beside a cache"] = patched.n_edges
    cached = {**attributions(patched, train), **circuits(patched, test, [0, 5, patched.n_edges])}
    found.update({f"beside a cache, {name}": one for name, one in cached.items()})
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(dict(sorted(results(torch.load(sys.argv[1])).items())), sys.argv[2])
