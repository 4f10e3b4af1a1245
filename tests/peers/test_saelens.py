"""SAELens's own classes, training loop and evaluation on a lensbridge model, with no shim."""

from typing import Any

import datasets
import pytest
import torch
from sae_lens import (
    SAE,
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAEConfig,
)
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor, nn
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained import weight_conversions
from transformers import GPT2Config, GPT2LMHeadModel

import lensbridge
from lensbridge.errors import HookError

pytestmark = pytest.mark.peers

WIDTH, HEADS, FEATURES, VOCAB, CONTEXT = 24, 4, 40, 61, 32
PRE, Z = "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z"
ENDS = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"


@pytest.fixture(scope="module")
def hf() -> nn.Module:
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = GPT2Config(
        n_layer=2, n_embd=WIDTH, n_head=HEADS, vocab_size=VOCAB, n_positions=CONTEXT, **special
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.2)
    return model


@pytest.fixture(scope="module")
def model(hf: nn.Module) -> Any:
    return lensbridge.load(hf)


@pytest.fixture(scope="module")
def twin(hf: nn.Module) -> Any:
    """The same weights in TransformerLens's re-implementation, with SAELens's methods on it."""
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=WIDTH, n_heads=HEADS, d_head=WIDTH // HEADS, d_mlp=4 * WIDTH,
        d_vocab=VOCAB, n_ctx=CONTEXT, act_fn="gelu_new", normalization_type="LN",
        init_weights=False, device="cpu",
    )  # fmt: skip
    made = HookedSAETransformer(cfg)
    state = weight_conversions.convert_gpt2_weights(hf, cfg)
    made.load_state_dict(state, strict=False)
    return made


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def sae_of(architecture: str, hook_name: str = PRE, **fields: Any) -> Any:
    """One of SAELens's classes with random weights."""
    about = {"d_in": WIDTH, "d_sae": FEATURES, "architecture": architecture, **fields}
    metadata = {"hook_name": hook_name, **about.pop("metadata", {})}
    sae = SAE.from_dict({**about, "metadata": metadata})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
            if "threshold" in name:
                parameter.abs_()
    return sae.eval()


ON_Z = {"reshape_activations": "hook_z"}
KINDS = {
    "standard": ("standard", PRE, {}),
    "jumprelu": ("jumprelu", PRE, {}),
    "gated": ("gated", PRE, {}),
    "topk": ("topk", PRE, {"k": 5}),
    "layer_norm": ("standard", PRE, {"normalize_activations": "layer_norm"}),
    "hook_z": ("standard", Z, ON_Z),
    "transcoder": (
        "transcoder",
        ENDS[0],
        {"d_out": WIDTH, "apply_b_dec_to_input": False, "metadata": {"hook_name_out": ENDS[1]}},
    ),
}


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_saelens(
    model: Any, twin: Any, ids: Tensor, kind: str, error: bool
) -> None:
    sae = sae_of(KINDS[kind][0], KINDS[kind][1], **KINDS[kind][2])
    asked = {"saes": [sae], "use_error_term": error}
    with torch.no_grad():
        theirs, their_cache = twin.run_with_cache_with_saes(ids, **asked)
        ours, our_cache = model.run_with_cache_with_saes(ids, **asked)
        if error:
            assert torch.equal(ours, model(ids))
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
    at = ENDS[1] if kind == "transcoder" else KINDS[kind][1]
    found = {name for name in our_cache if "hook_sae" in name}
    assert found == {name for name in their_cache if "hook_sae" in name}
    assert f"{at}.hook_sae_acts_pre" in found
    for name in found:
        torch.testing.assert_close(our_cache[name], their_cache[name], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("part", ["input", "acts_pre", "acts_post", "recons", "output", "error"])
def test_edits_do_what_they_do_in_saelens(model: Any, twin: Any, ids: Tensor, part: str) -> None:
    sae = sae_of("standard", normalize_activations="layer_norm")
    edit = [(f"{PRE}.hook_sae_{part}", lambda value, hook: value * 0.5 + 0.1)]
    with torch.no_grad():
        with twin.saes([sae], use_error_term=True):
            theirs = twin.run_with_hooks(ids, fwd_hooks=edit)
        with model.saes([sae], use_error_term=True):
            ours = model.run_with_hooks(ids, fwd_hooks=edit)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("error", [False, True])
def test_gradients_are_those_of_saelens(model: Any, twin: Any, ids: Tensor, error: bool) -> None:
    sae = sae_of("standard")
    names = [f"{PRE}.hook_sae_acts_post", "blocks.0.hook_resid_post"]

    def grads(of: Any) -> list[Tensor]:
        found: dict[str, Tensor] = {}
        keep = [(n, lambda g, hook: found.update({hook.name: g.clone()})) for n in names]
        with of.saes([sae], use_error_term=error), of.hooks(bwd_hooks=keep):
            of(ids, return_type="loss").backward()
        return [found[name] for name in names]

    for ours, theirs in zip(grads(model), grads(twin), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_excluded_tokens_are_those_of_saelens(model: Any, twin: Any, ids: Tensor) -> None:
    sae, left = sae_of("standard"), [int(ids[0, 0]), int(ids[1, 3])]
    asked = {"saes": [sae], "exclude_special_tokens": left}
    with torch.no_grad():
        theirs = twin.run_with_saes(ids, **asked)
        torch.testing.assert_close(model.run_with_saes(ids, **asked), theirs, atol=2e-4, rtol=1e-3)


def test_a_skip_transcoder_does_what_its_own_forward_does(model: Any, ids: Tensor) -> None:
    metadata = {"hook_name_out": ENDS[1]}
    more = {"d_out": WIDTH, "apply_b_dec_to_input": False, "metadata": metadata}
    sae = sae_of("skip_transcoder", ENDS[0], **more)
    with torch.no_grad():
        _, cache = model.run_with_cache_with_saes(ids, saes=sae)
        expected = sae(cache[ENDS[0]])
    torch.testing.assert_close(cache[ENDS[1]], expected)


def test_what_reconstructs_past_its_features_is_refused(model: Any, ids: Tensor) -> None:
    sae = sae_of("temporal", n_heads=2, n_attn_layers=1, bottleneck_factor=2)
    with pytest.raises(HookError, match="earlier positions"):
        model.run_with_saes(ids, saes=sae)


def test_hooks_on_the_sae_itself_are_edits_too(model: Any, twin: Any, ids: Tensor) -> None:
    sae = sae_of("standard")
    sae.hook_sae_acts_post.add_hook(lambda acts, hook: acts * 0)
    asked = {"saes": [sae], "use_error_term": True}
    with torch.no_grad():
        ours = model.run_with_saes(ids, **asked)
        torch.testing.assert_close(ours, twin.run_with_saes(ids, **asked), atol=2e-4, rtol=1e-3)
    assert not torch.allclose(ours, model(ids))


# --- training ------------------------------------------------------------------------------------


def dataset(rows: int = 64) -> datasets.Dataset:
    """Random walks on a ring: every token says something of the next."""
    generator = torch.Generator().manual_seed(3)
    steps = torch.randint(1, 4, (rows, CONTEXT), generator=generator).cumsum(-1)
    return datasets.Dataset.from_dict({"input_ids": (3 + steps % (VOCAB - 3)).tolist()})


def config(hook_name: str, d_in: int, **more: Any) -> Any:
    return LanguageModelSAERunnerConfig(
        sae=StandardTrainingSAEConfig(d_in=d_in, d_sae=FEATURES, l1_coefficient=1e-4),
        model_name="given",
        hook_name=hook_name,
        dataset_path="",
        is_dataset_tokenized=True,
        streaming=False,
        context_size=CONTEXT,
        training_tokens=16_000,
        train_batch_size_tokens=64,
        store_batch_size_prompts=8,
        n_batches_in_buffer=32,
        lr=4e-3,
        device="cpu",
        logger=LoggingConfig(log_to_wandb=False),
        n_checkpoints=0,
        checkpoint_path=None,
        output_path=None,
        **more,
    )


@pytest.mark.parametrize("place", [(PRE, None), (Z, None), (Z, 2)])
def test_the_store_gives_the_model_s_activations(model: Any, hf: Any, place: Any) -> None:
    hook_name, head = place
    d_in = WIDTH if head is None else WIDTH // HEADS
    store = ActivationsStore.from_config(
        model, config(hook_name, d_in, hook_head_index=head), override_dataset=dataset()
    )
    batch = store.get_batch_tokens(3)
    seen: list[Tensor] = []
    block = hf.transformer.h[1]
    module = block if hook_name == PRE else block.attn.c_proj
    handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        hf(batch)
    handle.remove()
    expected = seen[0] if head is None else seen[0].unflatten(-1, (HEADS, -1))[:, :, head]
    assert torch.equal(store.get_activations(batch), expected)


@pytest.mark.parametrize("hook_name", [PRE, Z])
def test_an_sae_trained_by_saelens_explains_more_than_an_untrained_one(
    model: Any, hf: nn.Module, hook_name: str
) -> None:
    before = hf.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    runner = LanguageModelSAETrainingRunner(
        config(hook_name, WIDTH), override_dataset=dataset(), override_model=model
    )
    ids = torch.tensor(dataset(70)["input_ids"][64:])

    def scores(sae: Any) -> tuple[float, float]:
        with torch.no_grad():
            _, cache = model.run_with_cache(ids, names_filter=hook_name)
            read = cache[hook_name].flatten(2)
            missed = read - sae.decode(sae.encode(read))
            spread = read - read.flatten(0, 1).mean(0)
            explained = 1 - missed.pow(2).sum() / spread.pow(2).sum()
            base = model(ids, return_type="loss")
            loss = model.run_with_saes(ids, saes={hook_name: sae}, return_type="loss")
        return float(explained), float((loss - base).abs())

    untrained = scores(runner.sae)
    sae = runner.run()
    trained = scores(sae)
    assert trained[0] > max(0.8, untrained[0])
    assert trained[1] < untrained[1]
    after = hf.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module._forward_hooks for module in hf.modules())


def test_the_evaluation_of_saelens_runs_and_agrees(model: Any, twin: Any) -> None:
    sae = sae_of("standard")
    found = []
    for one in (model, twin):
        store = ActivationsStore.from_config(one, config(PRE, WIDTH), override_dataset=dataset())
        wanted = get_eval_everything_config(
            batch_size_prompts=4,
            n_eval_reconstruction_batches=2,
            n_eval_sparsity_variance_batches=2,
        )
        metrics, _ = run_evals(
            sae=sae,
            activation_store=store,
            model=one,
            activation_scaler=ActivationScaler(),
            eval_config=wanted,
        )
        found.append(metrics)
    ours, theirs = found
    for group, values in theirs.items():
        for name, value in values.items():
            assert ours[group][name] == pytest.approx(value, rel=2e-2, abs=1e-3), (group, name)


def test_the_tutorials_class_gives_the_same_under_its_own_name(hf: nn.Module, twin: Any) -> None:
    import sae_lens

    from lensbridge.compat import sae_lens as compat

    assert compat.SAE is sae_lens.SAE
    model = compat.HookedSAETransformer.from_pretrained_no_processing("x", hf_model=hf)
    ids, sae = torch.randint(3, VOCAB, (2, 9)), sae_of("standard")
    halve = [(f"{PRE}.hook_sae_acts_post", lambda acts, hook: acts / 2)]
    for error in (False, True):
        asked = {"saes": [sae], "use_error_term": error}
        ours, theirs = (one.run_with_cache_with_saes(ids, **asked) for one in (model, twin))
        torch.testing.assert_close(ours[0], theirs[0], atol=2e-4, rtol=1e-3)
        names = {name for name in theirs[1] if "hook_sae" in name}
        assert names == {name for name in ours[1] if "hook_sae" in name}
        for name in names:
            torch.testing.assert_close(ours[1][name], theirs[1][name], atol=2e-4, rtol=1e-3)
    edited = [
        one.run_with_hooks_with_saes(ids, saes=[sae], fwd_hooks=halve) for one in (model, twin)
    ]
    torch.testing.assert_close(*edited, atol=2e-4, rtol=1e-3)
    for one in (model, twin):
        one.add_sae(sae)
    torch.testing.assert_close(model(ids), twin(ids), atol=2e-4, rtol=1e-3)
    for one in (model, twin):
        one.reset_saes()
    torch.testing.assert_close(model(ids), twin(ids), atol=2e-4, rtol=1e-3)
