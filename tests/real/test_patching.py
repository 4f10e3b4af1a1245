"""Sweeps of activation and path patching against one run with a plain hook for each cell."""

from typing import Any

import pytest
import torch
from raw_patching import run_changing
from real.conftest import Pair
from real.trained import Trained, at
from torch import Tensor, nn

from lensbridge import patching
from lensbridge.cache import ActivationCache
from lensbridge.patching import Cell, PatchingResult, path_patch

everywhere = slice(None)


def by_hand(trained: Trained, pair: Pair, place: tuple[nn.Module, str], index: Any) -> float:
    """The margin of the corrupted run in which one module's value is the clean one at an index."""
    value = at(trained.record(pair.clean), place)

    def change(whole: Tensor) -> Tensor:
        changed = whole.clone()
        changed[index] = value[index]
        return changed

    with torch.no_grad():
        logits = run_changing(trained.hf, [(*place, change)], pair.corrupted)
    return pair.mean_margin(logits).item()


def sampled(trained: Trained, pair: Pair) -> list[tuple[int, int]]:
    """Layers and positions from all over the grid."""
    last, end = trained.lens.cfg.n_layers - 1, pair.clean.shape[1] - 1
    return [(0, pair.subject), (last // 2, pair.subject), (last - 3, end), (last, 1), (last, end)]


def near(found: Tensor, wanted: list[float], trained: Trained) -> None:
    """Equal but for rounding: a batch adds up in another order than one run."""
    atol = {torch.float32: 5e-5, torch.bfloat16: 0.4}[trained.dtype]
    torch.testing.assert_close(found.float(), torch.tensor(wanted), rtol=0, atol=atol)


def test_every_cell_of_the_heatmap_is_a_run(
    trained: Trained, pair: Pair, heat: PatchingResult
) -> None:
    assert list(heat.values.shape) == [trained.lens.cfg.n_layers, pair.clean.shape[1]]
    assert heat.engine == "batched"
    cells = sampled(trained, pair)
    wanted = [
        by_hand(trained, pair, trained.places(layer)["hook_resid_pre"], (everywhere, pos))
        for layer, pos in cells
    ]
    near(torch.stack([heat.values[cell] for cell in cells]), wanted, trained)


@pytest.mark.parametrize("name", ["resid_pre", "attn_out", "mlp_out"])
def test_exact_sweeps_are_runs_with_hooks_bit_for_bit(
    trained: Trained, pair: Pair, clean_cache: ActivationCache, name: str
) -> None:
    cells = sampled(trained, pair)[1:4]
    patch = getattr(patching, f"get_act_patch_{name}")
    found = patch(
        trained.lens, pair.corrupted, clean_cache, pair.mean_margin, index_df=cells, exact=True
    )
    wanted = [
        by_hand(trained, pair, trained.places(layer)[f"hook_{name}"], (everywhere, pos))
        for layer, pos in cells
    ]
    assert torch.equal(found, torch.tensor(wanted))


def test_heads_in_batches_and_exactly(
    trained: Trained, pair: Pair, clean_cache: ActivationCache
) -> None:
    """Outputs of query heads at all positions, and values of key/value heads at one."""
    layers, size = trained.lens.cfg.n_layers, trained.lens.cfg.d_head
    heads = [(layers // 2, 1), (layers - 2, trained.lens.cfg.n_heads - 1)]
    values = [(layer, pair.subject, 0) for layer in (1, layers // 2)]
    call = (trained.lens, pair.corrupted, clean_cache, pair.mean_margin)
    wanted = [
        by_hand(
            trained,
            pair,
            trained.places(layer)["attn.hook_z"],
            (..., slice(head * size, (head + 1) * size)),
        )
        for layer, head in heads
    ]
    for exact in (True, False):
        options: dict[str, Any] = {"exact": exact, "index_df": heads}
        near(patching.get_act_patch_attn_head_out_all_pos(*call, **options), wanted, trained)
    wanted = [
        by_hand(
            trained,
            pair,
            trained.places(layer)["attn.hook_v"],
            (everywhere, pos, slice(head * size, (head + 1) * size)),
        )
        for layer, pos, head in values
    ]
    found = patching.get_act_patch_attn_head_v_by_pos(*call, index_df=values, exact=True)
    assert torch.equal(found, torch.tensor(wanted))


def test_a_sweep_of_ablations_is_a_run_for_each(trained: Trained, pair: Pair) -> None:
    """The MLP of some layers set to zero at the last position."""
    layers = [1, trained.lens.cfg.n_layers // 2, trained.lens.cfg.n_layers - 1]
    cells = [Cell(("mlp_out", layer), (everywhere, -1), 0.0) for layer in layers]

    def silent(whole: Tensor) -> Tensor:
        changed = whole.clone()
        changed[:, -1] = 0
        return changed

    with torch.no_grad():
        runs = [
            run_changing(trained.hf, [(*trained.places(layer)["hook_mlp_out"], silent)], pair.clean)
            for layer in layers
        ]
    wanted = [pair.mean_margin(logits).item() for logits in runs]
    near(trained.lens.sweep(pair.clean, cells, pair.mean_margin).values, wanted, trained)
    exact = trained.lens.sweep(pair.clean, cells, pair.mean_margin, exact=True)
    assert torch.equal(exact.values, torch.tensor(wanted))


def test_a_direct_path_from_a_head_to_the_logits(trained: Trained, pair: Pair) -> None:
    """The last stream of the corrupted run, with the head's clean output in its layer's term."""
    lens, hf = trained.lens, trained.hf
    layer, head, size = lens.cfg.n_layers - 4, 1, lens.cfg.d_head
    here = slice(head * size, (head + 1) * size)
    clean, corrupted = trained.record(pair.clean), trained.record(pair.corrupted)
    attn, norm = hf.model.layers[layer].self_attn, hf.model.layers[layer].post_attention_layernorm
    z = corrupted.inputs[attn.o_proj].clone()
    z[..., here] = clean.inputs[attn.o_proj][..., here]
    with torch.no_grad():
        term = attn.o_proj(z)
        term = norm(term) if hasattr(attn, "q_norm") else term  # Gemma's norm after attention
        was = at(corrupted, trained.places(layer)["hook_attn_out"])
        stream = at(corrupted, trained.places(lens.cfg.n_layers - 1)["hook_resid_post"])
        wanted = pair.mean_margin(hf.lm_head(hf.model.norm(stream + (term - was))))
        found = path_patch(
            lens, pair.clean, pair.corrupted, f"a{layer}.h{head}", "logits", pair.mean_margin
        )
    near(torch.as_tensor(found), wanted.item(), trained)
