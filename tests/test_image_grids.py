"""GOT-OCR 2: a vision tower whose values have rows and columns, and attention in windows."""

from typing import Any

import pytest
import torch
from lensbridge_adapters.got_ocr2 import GOT_OCR2
from torch import Tensor

import lensbridge
from lensbridge.conformance.tiny import tiny_model
from lensbridge.hooks.callbacks import Hook
from lensbridge.inputs.random import inputs_for

pytestmark = pytest.mark.usefixtures("one_thread")

POSITION = 3 * 1 + 2
"""The patch in row 1 and column 2 of a grid of three by three."""


@pytest.fixture
def model() -> Any:
    vision = {
        "hidden_size": 24,
        "mlp_dim": 20,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 12,
        "patch_size": 4,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    found = tiny_model(GOT_OCR2, vision_config=vision)
    return found.requires_grad_(False)


def run(lens: Any, given: dict[str, Tensor], **more: Any) -> Any:
    rest = dict(given)
    return lens.run_with_hooks(rest.pop("input_ids"), **rest, **more)


def test_values_are_those_of_the_bare_modules_row_by_row(model: Any) -> None:
    given, tower = inputs_for(model), model.model.vision_tower
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: Any, read: Any = lambda args, output: output) -> Any:
        return module.register_forward_hook(
            lambda _, args, output: seen.__setitem__(name, read(args, output).flatten(1, 2))
        )

    def first(args: Any, output: Any) -> Tensor:
        return args[0]

    handles = [keep("vision.hook_embed", tower.patch_embed)]
    for i, layer in enumerate(tower.layers):
        at = f"vision.blocks.{i}."
        handles += [
            keep(f"{at}hook_resid_pre", layer, first),
            keep(f"{at}hook_resid_post", layer),
            keep(f"{at}ln1.hook_out", layer.layer_norm1),
            keep(f"{at}ln2.hook_out", layer.layer_norm2),
            keep(f"{at}mlp.hook_pre", layer.mlp.lin1),
            keep(f"{at}mlp.hook_post", layer.mlp.lin2, first),
            keep(f"{at}hook_mlp_out", layer.mlp),
        ]
    joined: list[Tensor] = []
    projector = model.model.multi_modal_projector
    handles.append(projector.register_forward_hook(lambda m, args, out: joined.append(out)))
    wanted = model(**given).logits
    for handle in handles:
        handle.remove()
    rest = dict(given)
    logits, cache = lensbridge.load(model).run_with_cache(rest.pop("input_ids"), **rest)
    assert torch.equal(logits, wanted)
    assert torch.equal(cache["projector.hook_out"], joined[0])
    assert seen["vision.blocks.1.hook_resid_pre"].shape == (2, 9, 24)
    for name, value in seen.items():
        assert torch.equal(cache[name], value), name


EDITS = {
    "vision.hook_embed": "patch_embed",
    "vision.blocks.0.hook_resid_post": "layers.0",
    "vision.blocks.0.ln1.hook_out": "layers.0.layer_norm1",
    "vision.blocks.1.mlp.hook_pre": "layers.1.mlp.lin1",
}
"""A point, and the module of the tower whose output it is."""


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_one_patch_is_that_of_its_row_and_column(
    model: Any, name: str, in_place: bool
) -> None:
    given = inputs_for(model)

    def zeroed(module: Any, args: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[1, 1, 2] = 0.0
        return changed

    inner = model.model.vision_tower.get_submodule(EDITS[name])
    handle = inner.register_forward_hook(zeroed)
    wanted = model(**given).logits
    handle.remove()

    def edit(value: Tensor, hook: Hook) -> Tensor | None:
        changed = value if in_place else value.clone()
        changed[1, POSITION] = 0.0
        return None if in_place else changed

    found = run(lensbridge.load(model), given, fwd_hooks=[(name, edit)])
    clean = model(**given).logits
    assert torch.equal(found, wanted)
    assert torch.equal(found[0], clean[0])
    assert not torch.equal(found[1], clean[1])


def test_an_edit_of_the_stream_before_a_layer_is_that_of_its_input(model: Any) -> None:
    given, layer = inputs_for(model), model.model.vision_tower.layers[1]

    def halved(module: Any, args: Any) -> Any:
        changed = args[0].clone()
        changed[0, 2, 0] *= 0.5
        return (changed, *args[1:])

    handle = layer.register_forward_pre_hook(halved)
    wanted = model(**given).logits
    handle.remove()

    def edit(value: Tensor, hook: Hook) -> None:
        value[0, 6] *= 0.5

    hooks = [("vision.blocks.1.hook_resid_pre", edit)]
    found = run(lensbridge.load(model), given, fwd_hooks=hooks)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, model(**given).logits)
