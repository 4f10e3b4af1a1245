"""Modules and methods that notebooks import and call beside the model itself."""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import lensbridge.compat.transformer_lens as transformer_lens
from lensbridge.compat.transformer_lens import HookedTransformer, downloads, evals, utils
from lensbridge.compat.transformer_lens.train import HookedTransformerTrainConfig, train
from lensbridge.errors import HookNeverFiredError, InputError

SMALL = {
    "n_layers": 2, "d_model": 24, "n_ctx": 16, "d_head": 6, "d_vocab": 40, "device": "cpu",
    "act_fn": "relu", "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    return HookedTransformer.from_pretrained("demo", device="cpu")


# --- training ------------------------------------------------------------------------------------


def rows(count: int = 24) -> list[dict[str, Tensor]]:
    return [{"tokens": (torch.arange(12) + i) % 40} for i in range(count)]


def by_hand(cfg: HookedTransformerTrainConfig) -> HookedTransformer:
    """The same steps, written out."""
    model = HookedTransformer(SMALL)
    torch.manual_seed(cfg.seed)
    optimizer = torch.optim.AdamW(model.parameters(), cfg.lr, weight_decay=cfg.weight_decay)
    loader = torch.utils.data.DataLoader(rows(), batch_size=8, shuffle=True)
    step = 0
    for _ in range(2):
        for batch in loader:
            for group in optimizer.param_groups:
                group["lr"] = cfg.lr * min(1.0, step / cfg.warmup_steps)
            logits = model.hf_model(batch["tokens"]).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch["tokens"][:, 1:].flatten()
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return model


def test_the_loop_trains_as_written_out(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    cfg = HookedTransformerTrainConfig(
        num_epochs=2, batch_size=8, lr=1e-2, weight_decay=0.1, max_grad_norm=0.5, warmup_steps=3,
        device="cpu", print_every=2, save_every=2, save_dir=str(tmp_path),
    )  # fmt: skip
    model = train(HookedTransformer(SMALL), cfg, rows())
    wanted = by_hand(cfg)
    ids = torch.arange(12)[None]
    torch.testing.assert_close(model(ids), wanted(ids), atol=1e-4, rtol=1e-4)
    assert "Epoch 2 step 2 loss" in capsys.readouterr().out
    state = torch.load(tmp_path / "model_2_2.pt")
    assert torch.equal(state["blocks.1.attn.W_Q"], model.W_Q[1])


@pytest.mark.parametrize(
    ("change", "said"), [({"wandb": True}, "loop"), ({"optimizer_name": "x"}, "SGD")]
)
def test_what_training_refuses(change: dict[str, Any], said: str) -> None:
    cfg = HookedTransformerTrainConfig(num_epochs=1, batch_size=8, device="cpu", **change)
    with pytest.raises(InputError, match=said):
        train(HookedTransformer(SMALL), cfg, rows())


# --- corpora -------------------------------------------------------------------------------------


def test_samples_are_asked_for_by_name() -> None:
    asked: list[Any] = []

    class Corpus:
        column_names = ("content",)

        def rename_column(self, old: str, new: str) -> str:
            return f"{old} is {new}"

    class Library:
        @staticmethod
        def load_dataset(**options: Any) -> Corpus:
            asked.append(options)
            return Corpus()

    with mock.patch.object(downloads, "_datasets", return_value=Library):
        assert utils.get_dataset("code", streaming=True) == "content is text"
    assert asked == [{"path": "NeelNanda/code-10k", "split": "train", "streaming": True}]
    with pytest.raises(InputError, match="Did you mean 'pile'"):
        utils.get_dataset("pil")


def test_loss_on_four_corpora(model: HookedTransformer) -> None:
    ids = model.to_tokens("The Eiffel Tower is in the city of Paris.")
    loaders = [lambda tokenizer, size: [{"tokens": ids}]] * 4
    with mock.patch.object(evals, "DATASET_LOADERS", loaders):
        found = evals.evaluate(model)
    wanted = model(ids, return_type="loss").item()
    assert found == pytest.approx(
        {f"{name}_loss": wanted for name in ("wiki", "owt", "pile", "code")}, rel=1e-4
    )


# --- methods -------------------------------------------------------------------------------------


def test_what_has_no_place_here_says_what_to_do(model: HookedTransformer) -> None:
    with pytest.raises(AttributeError, match="process_weights_"):
        model.fold_layer_norm({})
    with pytest.raises(AttributeError, match="get_dataset"):
        model.load_sample_training_dataset()
    with pytest.raises(ImportError, match="HuggingFace's modules"):
        from lensbridge.compat.transformer_lens.components import Attention  # noqa: F401
    assert not hasattr(model, "move_model_modules_to_device")
    assert model.n_params_total == sum(p.numel() for p in model.hf_model.parameters())


def test_hooks_are_listed(model: HookedTransformer) -> None:
    def keep(value: Tensor, hook: Any) -> None: ...

    model.add_hook("blocks.1.attn.hook_z", keep)
    model.add_perma_hook("hook_embed", keep)
    listed = model.list_hooks()
    assert {name: one[0].user_hook for name, one in listed.items()} == {
        "hook_embed": keep,
        "blocks.1.attn.hook_z": keep,
    }
    assert list(model.list_hooks(including_permanent=False)) == ["blocks.1.attn.hook_z"]
    assert model.list_hooks("blocks.1.attn.hook_z", dir="bwd") == {}
    model.reset_hooks(including_permanent=True)
    assert model.list_hooks() == {}


def test_places_of_names() -> None:
    from lensbridge.compat.transformer_lens.config import TransformerBridgeConfig
    from lensbridge.compat.transformer_lens.head_detector import HEAD_NAMES
    from lensbridge.compat.transformer_lens.hook_points import DeviceType  # noqa: F401
    from lensbridge.compat.transformer_lens.HookedTransformer import Loss, Output
    from lensbridge.compat.transformer_lens.model_bridge.bridge import TransformerBridge
    from lensbridge.compat.transformer_lens.patching import AxisNames, Logits  # noqa: F401
    from lensbridge.compat.transformer_lens.supported_models import MODEL_ALIASES
    from lensbridge.compat.transformer_lens.utilities.activation_functions import gelu_new
    from lensbridge.compat.transformer_lens.utilities.devices import get_device_for_block_index

    assert Output(Tensor([1]), Tensor([2])).loss == 2
    assert Loss is Tensor
    assert "induction_head" in HEAD_NAMES
    assert TransformerBridge is transformer_lens.TransformerBridge
    assert TransformerBridgeConfig is transformer_lens.HookedTransformerConfig
    assert transformer_lens.loading.MODEL_ALIASES is MODEL_ALIASES
    assert gelu_new is utils.gelu_new
    cfg = transformer_lens.HookedTransformerConfig(**SMALL)
    assert get_device_for_block_index(1, cfg) == torch.device("cpu")


# --- functions of a context ----------------------------------------------------------------------


def test_functions_of_a_context_are_listed_at_their_points_and_can_be_taken_off(
    model: HookedTransformer,
) -> None:
    seen: list[str] = []

    def note(value: Tensor, hook: Any) -> None:
        seen.append(hook.name)

    name = "blocks.1.hook_resid_pre"
    point = model.hook_dict[name]
    with model.hooks(fwd_hooks=[(name, note)]):
        assert [handle.user_hook for handle in point.fwd_hooks] == [note]
        model("The Eiffel Tower")
        with model.hooks(fwd_hooks=[(name, lambda value, hook: value * 0)]):
            assert [handle.context_level for handle in point.fwd_hooks] == [1, 2]
            silenced = model("The Eiffel Tower")
        assert len(point.fwd_hooks) == 1
        assert seen == [name, name]
        model.reset_hooks()
        assert point.fwd_hooks == []
        untouched = model("The Eiffel Tower")
        assert seen == [name, name]
    assert not torch.equal(silenced, untouched)
    with torch.no_grad():
        bare = model.hf_model(model.to_tokens("The Eiffel Tower")).logits
    assert torch.equal(untouched, bare)
    assert point.fwd_hooks == []


def test_reset_hooks_in_a_context_that_runs_nothing(model: HookedTransformer) -> None:
    name = "blocks.1.hook_resid_pre"
    with model.hooks(fwd_hooks=[(name, lambda value, hook: value * 0)]):
        model.reset_hooks()
    context = model.hooks(fwd_hooks=[(name, lambda value, hook: value * 0)])
    with pytest.raises(HookNeverFiredError, match="not run inside"), context:
        model.hook_dict[name].remove_hooks("bwd")


def test_the_end_of_a_context_leaves_functions_of_others_on(model: HookedTransformer) -> None:
    name = "blocks.1.hook_resid_pre"
    point, seen = model.hook_dict[name], []

    def noting(word: str) -> Any:
        return lambda value, hook: seen.append(word)

    with model.hooks(fwd_hooks=[(name, noting("outer"))]):
        point.add_hook(noting("second"), level=2)  # as many contexts as the next one is in
        with model.hooks(fwd_hooks=[(name, noting("inner"))]):
            model("The Eiffel Tower")
        assert [handle.context_level for handle in point.fwd_hooks] == [1, 2]
        model("The Eiffel Tower")
    model("The Eiffel Tower")
    assert sorted(seen) == ["inner", "outer", "outer", "second", "second", "second"]
    model.reset_hooks()
    assert point.fwd_hooks == []


def test_gradients_of_a_run_in_a_context_reach_its_functions_after_the_end(
    model: HookedTransformer,
) -> None:
    name, seen = "blocks.1.hook_resid_pre", []
    with model.hooks(bwd_hooks=[(name, lambda grad, hook: seen.append(grad.clone()))]):
        assert len(model.hook_dict[name].bwd_hooks) == 1
        loss = model("The Eiffel Tower", return_type="loss")
    assert model.hook_dict[name].bwd_hooks == []
    layer, kept = model.hf_model.transformer.h[1], []
    attached = layer.register_forward_pre_hook(
        lambda module, args: args[0].register_hook(lambda grad: kept.append(grad.clone())) and None
    )
    loss.backward()
    tokens = model.to_tokens("The Eiffel Tower")
    model.hf_model(tokens, labels=tokens).loss.backward()
    attached.remove()
    model.zero_grad()
    assert len(seen) == 1
    torch.testing.assert_close(seen, kept)
