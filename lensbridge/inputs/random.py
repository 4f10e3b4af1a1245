"""Random inputs for any transformers model: ids, pictures, sounds."""

import inspect
from typing import Any

import torch
from torch import nn

from lensbridge.native.calling import is_plain
from lensbridge.native.trial import Trial
from lensbridge.native.wrappers import core_of

STATES = "cross_attention_states"
"""What layers with cross-attention read, in models that skip these layers without it (Mllama)."""

_MARKED = "ForSequenceClassification"
"""Encoder-decoders of this name read the decoder where the input has the end-of-sequence token."""


def inputs_for(model: nn.Module, batch: int = 2, length: int = 7) -> dict[str, torch.Tensor]:
    """Random inputs for a model: what its forward takes of ids, pictures and sounds."""
    if is_plain(model):
        return _plain_inputs(model, batch, length)
    config: Any = model.config
    generator = torch.Generator().manual_seed(1)
    like = next(model.parameters())
    main = str(model.main_input_name)
    found: dict[str, torch.Tensor] = {}
    if main == "input_ids":
        found[main] = _ids(config, batch, length, generator)
    else:
        shape = _shape(config, main, batch)
        found[main] = torch.randn(shape, generator=generator).to(like.dtype)
    takes = inspect.signature(model.forward).parameters
    if config.is_encoder_decoder and "decoder_input_ids" in takes:
        marked = type(core_of(model)).__name__.endswith(_MARKED)
        count = length if marked else length - 2
        found["decoder_input_ids"] = _ids(config, batch, count, generator)
        if marked:
            found[main][:, length // 2] = config.eos_token_id
    if STATES in takes and hasattr(config, "cross_attention_layers"):
        shape = (batch, length - 2, int(config.hidden_size))
        found[STATES] = torch.randn(shape, generator=generator).to(like.dtype)
        open_mask = torch.zeros(batch, 1, 1, length - 2, dtype=like.dtype)
        found["cross_attention_mask"] = open_mask  # without it, the fused kernel masks as if causal
    if main == "input_ids" and "pixel_values" in takes and "vision_config" in config.sub_configs:
        found.update(_with_pictures(model, found[main], generator))
    return {name: value.to(like.device) for name, value in found.items()}


def _plain_inputs(model: nn.Module, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Ids for a plain module, in each argument that has to hold them."""
    core = core_of(model)
    trial = Trial.of(core)
    first = min(5, trial.vocabulary - 1)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(first, min(trial.vocabulary, 89), (batch, length), generator=generator)
    return trial.inputs(ids.to(next(core.parameters()).device))


def _with_pictures(
    model: Any, ids: torch.Tensor, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Pictures beside ids, whose places among them are as many as the tower gives features."""
    places = model.config.to_dict()
    if "image_grid_thw" in inspect.signature(model.forward).parameters:
        return _with_patches(model, ids, generator)
    if "image_size" not in (
        places["vision_config"] or {}
    ):  # none, or pictures of any size, cut up beforehand
        return {}
    shape, dtype = _shape(model.config, "pixel_values", len(ids)), next(model.parameters()).dtype
    token = places.get("image_token_id", places.get("image_token_index"))
    pixels = torch.randn(shape, generator=generator).to(dtype)
    if "max_num_tiles" in places["vision_config"]:
        tiles = int(places["vision_config"]["max_num_tiles"])
        seen = torch.ones(*ids.shape, 1, tiles, dtype=torch.long)
        return {**_in_tiles(pixels, tiles), "cross_attention_mask": seen}
    if token is None:  # towers side by side
        return {"pixel_values": pixels}
    sizes = {"image_sizes": torch.tensor([shape[-2:]] * len(ids))}
    tries: tuple[dict[str, torch.Tensor], ...] = (
        {"pixel_values": pixels},
        {"pixel_values": pixels.unsqueeze(1)},
        {"pixel_values": pixels, **sizes},
    )
    for given in tries:
        try:
            with torch.no_grad():
                count = _feature_count(model.get_image_features(**given), len(ids))
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            continue
        seen = torch.cat([torch.full((len(ids), count), token), ids], dim=1)
        return {"input_ids": seen, **given}
    return {}


def _with_patches(
    model: Any, ids: torch.Tensor, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Pictures of two shapes that are cut up beforehand, all patches in one row (Qwen2-VL)."""
    vision: Any = model.config.vision_config
    side = int(getattr(vision, "spatial_merge_size", 1))
    grid = torch.tensor([[1, 2 * side, (2 + i % 2) * side] for i in range(len(ids))])
    width = int(getattr(vision, "in_channels", 3)) * int(vision.temporal_patch_size)
    shape = (int(grid.prod(-1).sum()), width * int(vision.patch_size) ** 2)
    pixels = torch.randn(shape, generator=generator).to(next(model.parameters()).dtype)
    counts = grid.prod(-1) // side**2
    token, most = model.config.image_token_id, int(counts.max())
    seen = torch.full((len(ids), most), token)
    for row, count in zip(seen, counts.tolist(), strict=True):
        row[count:] = ids[0, 0]
    seen = torch.cat([seen, ids], dim=1)
    kinds = {"mm_token_type_ids": (seen == token).int()}
    kinds = kinds if kinds.keys() <= inspect.signature(model.forward).parameters.keys() else {}
    return {"input_ids": seen, "pixel_values": pixels, "image_grid_thw": grid, **kinds}


def _in_tiles(pixels: torch.Tensor, tiles: int) -> dict[str, torch.Tensor]:
    """One picture for each example, in tiles (Mllama)."""
    rows = len(pixels)
    return {
        "pixel_values": torch.stack([pixels.roll(i, -1) for i in range(tiles)], 1).unsqueeze(1),
        "aspect_ratio_ids": torch.full((rows, 1), 6),  # two by two
        "aspect_ratio_mask": torch.ones(rows, 1, tiles, dtype=torch.long),
    }


def _feature_count(features: Any, batch: int) -> int:
    """How many places one picture takes."""
    found = getattr(features, "pooler_output", features)
    tensors = [found] if isinstance(found, torch.Tensor) else list(found)
    return sum(t.numel() // t.shape[-1] for t in tensors) // batch


def _ids(config: Any, batch: int, length: int, generator: torch.Generator) -> torch.Tensor:
    size = int(config.get_text_config().vocab_size)
    return torch.randint(5, min(size, 89), (batch, length), generator=generator)


def _shape(config: Any, main: str, batch: int) -> tuple[int, ...]:
    settings = config.to_dict()
    if main == "input_features":
        return (batch, int(settings["num_mel_bins"]), 2 * int(settings["max_source_positions"]))
    vision = settings.get("vision_config") or settings
    size = vision["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return (batch, int(vision.get("num_channels", 3)), int(height), int(width))
