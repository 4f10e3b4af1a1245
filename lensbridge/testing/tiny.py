"""Tiny random models of any transformers class: nothing is downloaded.

Sizes differ from one another on purpose, and multipliers are not 1, so that a description that
mixes two up or forgets one shows. Weights are of order one, gains and biases included.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from lensbridge.errors import LoadError
from lensbridge.spec import Architecture

VOCAB = 97
HEADS, KV_HEADS, HEAD_DIM, ODD_HEAD_DIM = 4, 2, 8, 12
WIDTH, NEURONS, EXPERT_NEURONS = HEADS * HEAD_DIM, 44, 20
CONTEXT = 48

SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input", "embedding_vocab_size"),
        VOCAB,
    ),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "emb_dim", "dim"), WIDTH),
    **dict.fromkeys(("word_embed_proj_dim",), WIDTH),
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers",
         "encoder_layers", "num_decoder_layers", "num_encoder_layers"),
        2,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
         "encoder_attention_heads"),
        HEADS,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), KV_HEADS),
    **dict.fromkeys(("head_dim", "kv_channels", "d_kv"), ODD_HEAD_DIM),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff",
         "ffn_hidden_size", "hidden_dim"),
        NEURONS,
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length",
         "max_source_positions", "max_target_positions"),
        CONTEXT,
    ),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size"), 4),
    "embedding_size": 24,
    # mixtures of experts
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("n_shared_experts", "moe_num_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size",
         "shared_intermediate_size", "intermediate_size_mlp"),
        EXPERT_NEURONS,
    ),
    **dict.fromkeys(("n_group", "topk_group", "interleave_moe_layer_step"), 1),
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
    "decoder_sparse_step": 1,
    # latent attention
    "q_lora_rank": 14, "kv_lora_rank": 18, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6,
       "v_head_dim": 8,
    # state-space and linear attention
    "state_size": 6, "mamba_d_state": 6, "mamba_n_heads": 8, "mamba_d_head": 8,
       "mamba_n_groups": 1, "mamba_chunk_size": 4, "chunk_size": 4, "lru_width": WIDTH,
       "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
       "linear_value_head_dim": 10, "use_mamba_kernels": False, "time_step_rank": 5,
    # multipliers, caps, scales
    "residual_multiplier": 0.6, "embedding_multiplier": 1.7, "attention_multiplier": 0.4,
       "logits_scaling": 1.6, "logit_scale": 0.45, "scale_emb": 1.8, "scale_depth": 1.2,
       "dim_model_base": 20, "lm_head_multiplier": 0.7, "key_multiplier": 0.8,
       "attention_out_multiplier": 0.65, "ssm_out_multiplier": 0.75, "ssm_in_multiplier": 0.85,
       "attention_in_multiplier": 1.15, "attn_logit_softcapping": 3.0,
       "final_logit_softcapping": 4.0, "query_pre_attn_scalar": 10, "clip_qkv": 4.0,
    # what is optional, switched on
    "attention_bias": True, "mlp_bias": True, "attn_bias": True, "qkv_bias": True,
       "use_qkv_bias": True,
    # ids
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
       "sep_token_id": 3, "cls_token_id": 4, "forced_eos_token_id": None,
    # other
    "type_vocab_size": 2, "rotary_dim": 4, "hidden_size_per_layer_input": 6,
       "image_size": 12, "patch_size": 4, "num_channels": 3, "projection_dim": 20,
       "num_mel_bins": 8, "image_token_id": 90, "image_token_index": 90, "boi_token_index": 91,
       "eoi_token_index": 92, "video_token_id": 93, "vision_start_token_id": 94,
       "vision_end_token_id": 95, "reference_compile": False, "laurel_rank": 8,
}  # fmt: skip
"""What a config field is set to where a config has it."""

ALTERNATIVES: tuple[dict[str, Any], ...] = (
    {},
    {"head_dim": HEAD_DIM, "d_kv": HEAD_DIM, "kv_channels": HEAD_DIM},
    {"num_key_value_heads": HEADS, "num_kv_heads": HEADS, "head_dim": HEAD_DIM},
    {"attention_bias": False, "mlp_bias": False, "qkv_bias": False, "head_dim": HEAD_DIM},
)
"""What is tried in turn: not every class takes sizes that differ."""

BY_TYPE: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_bigcode": {"multi_query": True},
    "opt": {"word_embed_proj_dim": WIDTH},
    "bloom": {"n_head": HEADS},
    "falcon": {"num_kv_heads": KV_HEADS, "bias": True},
    "t5": {"feed_forward_proj": "gated-gelu", "num_decoder_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1, "num_key_value_heads": KV_HEADS},
    "falcon_h1": {"mamba_d_ssm": 64},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "num_key_value_heads": HEADS,
               "n_mamba_heads": 8, "mamba_ngroups": 1},
    "rwkv": {"attention_hidden_size": WIDTH, "intermediate_size": NEURONS},
    "gemma3n_text": {"num_kv_shared_layers": 0, "altup_num_inputs": 2},
    "deepseek_v2": {"num_key_value_heads": HEADS},
    "deepseek_v3": {"num_key_value_heads": HEADS},
    "minicpm3": {"num_key_value_heads": HEADS},
    "glm4_moe_lite": {"num_key_value_heads": HEADS},
    "dbrx": {
        "attn_config": {"kv_n_heads": KV_HEADS, "clip_qkv": 4.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": EXPERT_NEURONS, "moe_num_experts": 4, "moe_top_k": 2,
                       "hidden_size": WIDTH},
    },
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 6},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}},
        "head_dim": ODD_HEAD_DIM},
    "dots3_note_text": {
        "num_key_value_heads": HEADS, "head_dim": 16, "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS, "swa_q_lora_rank": 14, "swa_kv_lora_rank": 18,
        "swa_head_dim": 16, "swa_qk_nope_head_dim": 10, "swa_v_head_dim": 8,
        "layer_types": ["indexed_attention", "sliding_attention"]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"],
                         "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": {"num_key_value_heads": HEADS, "num_layers": 2, "head_dim": 6,
                      "zero_expert_num": 2, "ffn_hidden_size": NEURONS},
    "kimi_linear": {"num_key_value_heads": HEADS, "linear_head_dim": 8, "linear_num_heads": 4,
                    "layer_types": ["linear_attention", "full_attention"]},
    "bailing_hybrid": {"num_key_value_heads": HEADS, "layer_group_size": 2, "head_dim": 8},
    "reformer": {
        "is_decoder": True, "attn_layers": ["local", "lsh"], "axial_pos_shape": [4, 8],
        "axial_pos_embds_dim": [16, 16], "num_buckets": 2, "num_hashes": 1,
        "lsh_attn_chunk_length": 4, "local_attn_chunk_length": 4, "attention_head_size": 8,
        "feed_forward_size": NEURONS, "max_position_embeddings": 32},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    **{name: {"num_key_value_heads": HEADS, "head_dim": 6} for name in ("axk1", "youtu")},
    **{
        name: {"rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
        for name in ("qwen2_vl_text", "qwen2_5_vl_text")
    },
    "xlstm": {"hidden_size": 64, "num_heads": 4, "qk_dim_factor": 1.0, "v_dim_factor": 1.0,
              "ffn_round_up_to_multiple_of": 4, "chunk_size": 16},
    "siglip_text_model": {"projection_size": 24},
    "gemma3": {"mm_tokens_per_image": 9},
    "idefics3": {"scale_factor": 3},
    "paligemma": {"projection_dim": WIDTH},
    "smolvlm": {"scale_factor": 3},
    "internvl_vision": {"image_size": [16, 16], "patch_size": [4, 4]},
    "zamba": {
        "num_hidden_layers": 6, "attention_head_dim": 16, "num_key_value_heads": HEADS,
        "layers_block_type": ["linear_attention", "hybrid"] * 3, "attn_layer_period": 2,
        "attn_layer_offset": 1},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "qwen4_exp_text": {
        "ple_layer_ids": [1], "ngram_vocab_size_base": 64, "heads_per_ngram": 2,
        "split_ngram_parts": 1, "hc_count": 2, "hc_lowrank": 8, "ple_embed_dim": WIDTH,
        "ngram_size": 2, "make_ngram_vocab_size_divisible_by": 1,
        "layer_types": ["linear_attention", "full_attention"], "indexer_n_heads": 2,
        "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
        "indexer_compress_ratio": 2},
    "mllama_text_model": {"cross_attention_layers": [1]},
}  # fmt: skip
"""What a model type needs beside its sizes."""

VISION: dict[str, Any] = {
    "hidden_size": 24, "embed_dim": 24, "intermediate_size": 28, "num_attention_heads": 3,
    "num_heads": 3, "num_hidden_layers": 2, "depth": 2, "image_size": 12, "patch_size": 4,
    "projection_dim": WIDTH,
}  # fmt: skip
"""Sizes of a tower for images, where they are another config's part."""


def model_class(architecture: Architecture, name: str | None = None) -> Any:
    """The transformers class that an architecture describes: the named one, or its first.

    Raises:
        LoadError: transformers has no such class.
    """
    wanted = name or architecture.classes[0]
    try:
        return attrgetter(wanted)(import_module("transformers"))
    except AttributeError as error:
        from transformers import PreTrainedModel

        for one in _subclasses(PreTrainedModel):
            if one.__name__ == wanted:
                return one
        raise LoadError(
            f"transformers has no class {wanted!r}, which '{architecture.name}' describes; pass a "
            "config or a model."
        ) from error


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    """Every class that was imported and is of this kind."""
    for one in cls.__subclasses__():
        yield one
        yield from _subclasses(one)


def tiny_config(config_class: Any, **fields: Any) -> Any:
    """A tiny config of a class.

    Args:
        config_class: a transformers config class.
        fields: what to set beside, and instead of, the tables above.
    """
    return (
        config_class(**_settings(config_class, SIZES), **fields)
        if not fields
        else config_class(**{**_settings(config_class, SIZES), **fields})
    )


def _settings(config_class: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    names = _fields(config_class)
    found = {name: value for name, value in sizes.items() if name in names}
    found.update(_one_layer_of_each_kind(config_class, names))
    for name, part in _parts(config_class):
        found[name] = part(**_settings(part, {**SIZES, **VISION} if "vision" in name else SIZES))
    return {**found, **BY_TYPE.get(str(config_class.model_type), {})}


def _one_layer_of_each_kind(config_class: Any, names: set[str]) -> dict[str, Any]:
    """Where a config lists kinds of layers: one of each that its default has, two at least."""
    for field in ("layer_types", "layers_block_type"):
        if field in names and "num_hidden_layers" in names:
            kinds = vars(config_class()).get(field) or ()
            found = list(dict.fromkeys(kinds))
            if found:
                found = found if len(found) > 1 else found * 2
                return {field: found, "num_hidden_layers": len(found)}
    return {}


def _fields(config_class: Any) -> set[str]:
    if dataclasses.is_dataclass(config_class):
        return {field.name for field in dataclasses.fields(config_class)}
    return set(inspect.signature(config_class.__init__).parameters)


def _parts(config_class: Any) -> Iterator[tuple[str, Any]]:
    """The classes of the configs inside a config: those of its default."""
    if not config_class.sub_configs:
        return
    default = vars(config_class())
    for name in config_class.sub_configs:
        if default.get(name) is not None:
            yield name, type(default[name])


def tiny_model(
    architecture: Architecture,
    class_name: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    kernel: str | None = None,
    seed: int = 0,
    **fields: Any,
) -> nn.Module:
    """A tiny random model of a class that an architecture describes.

    Args:
        architecture: its `requires` are set in the config.
        class_name: which of its classes; None: the first.
        dtype: of the weights.
        kernel: attention implementation; None: the model's own choice.
        seed: of the weights.
        fields: config fields to set.

    Raises:
        LoadError: none of the sizes that are tried fits.
    """
    cls = model_class(architecture, class_name)
    wanted = {**dict(architecture.requires), **fields}
    errors: list[str] = []
    for alternative in ALTERNATIVES:
        fitting = {k: v for k, v in alternative.items() if k in _fields(cls.config_class)}
        try:
            model = tiny_from(cls, {**fitting, **wanted}, dtype, kernel, seed)
            with torch.no_grad():
                model(**inputs_for(model))
        except (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError) as error:
            errors.append(f"{type(error).__name__}: {error}".partition("\n")[0])
            continue
        return model
    raise LoadError(
        f"No tiny {cls.__name__} could be built: {'; '.join(dict.fromkeys(errors))}. Pass a config "
        "or a model."
    )


def tiny_from(
    cls: Any, fields: Mapping[str, Any], dtype: torch.dtype, kernel: str | None, seed: int
) -> nn.Module:
    """One tiny model of a class, with random weights."""
    config = tiny_config(cls.config_class, **fields)
    return from_config(cls, config, dtype, kernel, seed)


def from_config(
    cls: Any, config: Any, dtype: torch.dtype, kernel: str | None, seed: int
) -> nn.Module:
    """A model of a config, with random weights of order one."""
    options = {} if kernel is None else {"attn_implementation": kernel}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = cls._from_config(config, **options).eval()
    randomize(model, seed)
    experts = getattr(model, "set_experts_implementation", None)
    if dtype != torch.float32 and experts is not None:
        experts("eager")  # the grouped kernel wants float32, or widths that tiny models lack
    return model.to(dtype)


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Give every weight a value of order one, gains, biases and scalar buffers included."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor, size: float) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like) * size

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(noise(parameter, 0.3))
            else:
                parameter.copy_(noise(parameter, 1.5 / parameter.shape[-1] ** 0.5))
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.numel() == 1 and float(buffer) == 1.0:
                buffer.mul_(0.8)


def inputs_for(model: nn.Module, batch: int = 2, length: int = 7) -> dict[str, torch.Tensor]:
    """Random inputs for a model: what its forward takes of ids, pictures and sounds."""
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
        found["decoder_input_ids"] = _ids(config, batch, length - 2, generator)
    if main == "input_ids" and "pixel_values" in takes and "vision_config" in config.sub_configs:
        found.update(_with_pictures(model, found[main], generator))
    return {name: value.to(like.device) for name, value in found.items()}


def _with_pictures(
    model: Any, ids: torch.Tensor, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Pictures beside ids, whose places among them are as many as the tower gives features."""
    places = model.config.to_dict()
    if "image_size" not in (
        places["vision_config"] or {}
    ):  # none, or pictures of any size, cut up beforehand
        return {}
    shape, dtype = _shape(model.config, "pixel_values", len(ids)), next(model.parameters()).dtype
    token = places.get("image_token_id", places.get("image_token_index"))
    pixels = torch.randn(shape, generator=generator).to(dtype)
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
