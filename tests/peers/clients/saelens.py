"""A program for TransformerLens and SAELens, which knows nothing of lensbridge.

python saelens.py weights.pt results.pt
"""

import sys
import tempfile
from typing import Any

import datasets
import torch
from sae_lens import (
    SAE,
    CacheActivationsRunner,
    CacheActivationsRunnerConfig,
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAEConfig,
    cache_activations_runner,
)
from sae_lens.analysis.hooked_sae_transformer import get_deep_attr
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformer_lens.hook_points import HookPoint

WIDTH, HEADS, VOCAB, CONTEXT, FEATURES = 24, 4, 61, 32, 40
SIZES = {
    "n_layers": 2, "d_model": WIDTH, "n_heads": HEADS, "d_head": WIDTH // HEADS, "d_mlp": 4 * WIDTH,
    "d_vocab": VOCAB, "n_ctx": CONTEXT, "act_fn": "gelu_new", "normalization_type": "LN",
    "device": "cpu", "model_name": "tiny", "default_prepend_bos": False,
}  # fmt: skip
PRE, Z, POST = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.0.mlp.hook_post"
IN, OUT = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"


def model_of(weights: dict[str, Tensor]) -> Any:
    model = HookedSAETransformer(HookedTransformerConfig(**SIZES))
    model.load_state_dict(weights, strict=False)
    return model


def sae_of(architecture: str, hook_name: str, d_in: int = WIDTH, **fields: Any) -> Any:
    metadata = {"hook_name": hook_name, **fields.pop("metadata", {})}
    about = {"d_in": d_in, "d_sae": FEATURES, "architecture": architecture, **fields}
    sae = SAE.from_dict({**about, "metadata": metadata})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return sae.eval()


def dictionaries() -> dict[str, Any]:
    ends = {"d_out": WIDTH, "apply_b_dec_to_input": False, "metadata": {"hook_name_out": OUT}}
    return {
        "stream": sae_of("standard", PRE),
        "heads": sae_of("standard", Z, reshape_activations="hook_z"),
        "neurons": sae_of("topk", POST, 4 * WIDTH, k=5),
        "transcoder": sae_of("transcoder", IN, **ends),
    }


def attached(model: Any, ids: Tensor) -> dict[str, Any]:
    """What runs give with SAEs in them."""
    found: dict[str, Any] = {"plain": model(ids)}
    for kind, sae in dictionaries().items():
        for error in (False, True):
            asked = {"saes": [sae], "use_error_term": error}
            logits, cache = model.run_with_cache_with_saes(ids, **asked)
            name = f"{kind}, error {error}"
            found[name] = logits
            found |= {f"{name}: {key}": cache[key] for key in cache if "hook_sae" in key}
        at = sae.cfg.metadata.hook_name_out or sae.cfg.metadata.hook_name
        edit = (f"{at}.hook_sae_acts_post", lambda acts, hook: acts / 2)
        found[f"{kind}: edited"] = model.run_with_hooks_with_saes(ids, saes=[sae], fwd_hooks=[edit])
        with model.saes([sae]):
            found[f"{kind}: attached"] = list(model.acts_to_saes)
            found[f"{kind}: class"] = type(get_deep_attr(model, at)).__name__
            grads: list[Tensor] = []
            keep = (f"{at}.hook_sae_acts_post", lambda grad, hook: grads.append(grad.clone()))  # noqa: B023
            with model.hooks(bwd_hooks=[keep]):
                model(ids, return_type="loss").backward()
            found[f"{kind}: gradient"] = grads[0]
        assert isinstance(get_deep_attr(model, at), HookPoint)
    left = [int(ids[0, 0]), int(ids[1, 3])]
    asked = {"saes": [dictionaries()["stream"]], "exclude_special_tokens": left}
    found["tokens left out"] = model.run_with_saes(ids, **asked)
    for sae in dictionaries().values():
        model.add_sae(sae)
    found["all"] = model(ids)
    model.reset_saes(PRE)
    found["all but one"] = model(ids)
    model.reset_saes()
    found["none"] = model(ids)
    found["points"] = sorted(name for name in model.hook_dict if name.endswith("mlp.hook_in"))
    return found


def dataset(rows: int = 64) -> datasets.Dataset:
    generator = torch.Generator().manual_seed(3)
    steps = torch.randint(1, 4, (rows, CONTEXT), generator=generator).cumsum(-1)
    return datasets.Dataset.from_dict({"input_ids": (3 + steps % (VOCAB - 3)).tolist()})


def config(hook_name: str) -> Any:
    return LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(d_in=WIDTH, d_sae=FEATURES, l1_coefficient=1e-4),
        model_name="given", hook_name=hook_name, dataset_path="", is_dataset_tokenized=True,
        streaming=False, context_size=CONTEXT, training_tokens=4_000, train_batch_size_tokens=64,
        store_batch_size_prompts=8, n_batches_in_buffer=32, lr=4e-3, device="cpu",
        logger=LoggingConfig(log_to_wandb=False), n_checkpoints=0, checkpoint_path=None,
        output_path=None,
    )  # fmt: skip


def trained(model: Any) -> dict[str, Any]:
    """What SAELens's store, training and evaluation give."""
    found: dict[str, Any] = {}
    for hook_name in (PRE, Z, IN):
        store = ActivationsStore.from_config(model, config(hook_name), override_dataset=dataset())
        found[f"store {hook_name}"] = store.get_activations(store.get_batch_tokens(3))
        torch.manual_seed(5)
        runner = LanguageModelSAETrainingRunner(
            config(hook_name), override_dataset=dataset(), override_model=model
        )
        sae = runner.run()
        found |= {f"trained {hook_name}: {name}": one for name, one in sae.state_dict().items()}
    sae = dictionaries()["stream"]
    store = ActivationsStore.from_config(model, config(PRE), override_dataset=dataset())
    wanted = get_eval_everything_config(
        batch_size_prompts=4, n_eval_reconstruction_batches=2, n_eval_sparsity_variance_batches=2
    )
    metrics, _ = run_evals(
        sae=sae, activation_store=store, model=model, activation_scaler=ActivationScaler(),
        eval_config=wanted,
    )  # fmt: skip
    for group, values in metrics.items():
        found |= {f"eval {group} {name}": torch.tensor(float(one)) for name, one in values.items()}
    return found


def cached() -> dict[str, Any]:
    """What SAELens's caching runner writes to disk."""
    with tempfile.TemporaryDirectory() as folder:
        asked = CacheActivationsRunnerConfig(
            dataset_path="", model_name="given", model_batch_size=4, hook_name=PRE, d_in=WIDTH,
            training_tokens=16 * CONTEXT, context_size=CONTEXT, new_cached_activations_path=folder,
            buffer_size_gb=1e-4, shuffle=False, streaming=False, device="cpu", prepend_bos=False,
        )  # fmt: skip
        runner = CacheActivationsRunner(asked, override_dataset=dataset())
        kept = runner.run().with_format("torch")
        return {name: torch.stack(list(kept[name])) for name in (PRE, "token_ids")}


def main() -> None:
    weights, results = sys.argv[1:]
    model = model_of(torch.load(weights))
    ids = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    cache_activations_runner.load_model = lambda **_: model  # it has no argument for a model
    found = {**attached(model, ids), **trained(model), **cached()}
    found |= {"weights": model.W_in, "after": model(ids)}
    torch.save({k: v.detach() if isinstance(v, Tensor) else v for k, v in found.items()}, results)


if __name__ == "__main__":
    main()
