"""SAELens on what a harvest wrote, and an SAE of ours in SAELens."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from sae_lens import (
    SAE,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAEConfig,
)
from sae_lens.training.activations_store import ActivationsStore
from transformers import GPT2Config, GPT2LMHeadModel

import lensbridge
from lensbridge import Activations, Harvest, Rows
from lensbridge.saes import fit

pytestmark = pytest.mark.peers

WIDTH, CONTEXT, ROWS, VOCAB = 24, 16, 64, 61
POINT = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"n_layer": 2, "n_embd": WIDTH, "n_head": 4, "vocab_size": VOCAB, "n_positions": 32}
    return lensbridge.load(GPT2LMHeadModel(GPT2Config(**sizes, **special)).eval())


@pytest.fixture(scope="module")
def acts(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Activations:
    out = tmp_path_factory.mktemp("harvest") / "acts"
    ids = torch.randint(3, VOCAB, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(1))
    Harvest(model, ids, [POINT], rows=Rows(CONTEXT, "pad"), shard_tokens=300).run(out)
    return Activations(out)


def unused() -> datasets.Dataset:
    """What SAELens asks for beside cached activations."""
    return datasets.Dataset.from_dict({"input_ids": [[1] * CONTEXT] * 4})


def config(path: Path) -> Any:
    return LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(d_in=WIDTH, d_sae=40, l1_coefficient=0.01),
        model_name="gpt2",
        hook_name=POINT,
        context_size=CONTEXT,
        use_cached_activations=True,
        cached_activations_path=str(path),
        is_dataset_tokenized=True,
        training_tokens=1_024,
        train_batch_size_tokens=64,
        n_batches_in_buffer=8,
        store_batch_size_prompts=4,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
    )


def test_its_store_gives_the_entries_of_a_harvest(
    model: Any, acts: Activations, tmp_path: Path
) -> None:
    acts.to_datasets().save_to_disk(tmp_path / "cached")
    store = ActivationsStore.from_config(
        model, config(tmp_path / "cached"), override_dataset=unused()
    )
    found, tokens = store.get_raw_llm_batch()
    assert torch.equal(found.reshape(-1, WIDTH), acts[POINT][: len(found)])
    assert torch.equal(tokens.long(), acts.tokens[: len(found)].long())


def test_its_runner_trains_on_a_harvest(model: Any, acts: Activations, tmp_path: Path) -> None:
    acts.to_datasets().save_to_disk(tmp_path / "cached")
    runner = LanguageModelSAETrainingRunner(
        config(tmp_path / "cached"), override_model=model, override_dataset=unused()
    )
    before = runner.sae.W_dec.detach().clone()
    trained = runner.run()
    assert not torch.equal(trained.W_dec, before)


@pytest.mark.parametrize("kind", ["topk", "standard"])
def test_it_loads_an_sae_that_was_trained_here(
    kind: Any, acts: Activations, tmp_path: Path
) -> None:
    ours = fit(acts, d_sae=40, kind=kind, k=4, steps=30, batch_size=128)
    theirs = SAE.load_from_disk(ours.save(tmp_path / "sae"))
    values = acts[POINT][:50]
    torch.testing.assert_close(theirs.encode(values), ours.encode(values), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs(values), ours(values), rtol=1e-5, atol=1e-5)
    assert theirs.cfg.metadata.hook_name == POINT
