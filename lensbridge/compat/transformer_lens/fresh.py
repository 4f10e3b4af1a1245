"""A new model from a config, of a HuggingFace class that computes what the config describes."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

import lensbridge
from lensbridge.compat.transformer_lens.config_reading import config_of
from lensbridge.compat.transformer_lens.initial_values import draw_weights
from lensbridge.compat.transformer_lens.offers import ENCODER, FREE, OFFERS, Config, Offer
from lensbridge.compat.transformer_lens.opening import default_device
from lensbridge.compat.transformer_lens.raised import assertion
from lensbridge.errors import InputError, UnsupportedArchitectureError
from lensbridge.model import LensModel
from lensbridge.plugins import registry
from lensbridge.spec import Architecture

_BIASED = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
"""Projections that have a bias in TransformerLens in every model."""


def fresh_model(asked: Config, tokenizer: Any, move_to_device: bool) -> tuple[LensModel, Config]:
    """A model with random weights, as lensbridge opens it, and its config.

    Args:
        asked: the config.
        tokenizer: the tokenizer whose vocabulary is used if the config has no `d_vocab`.
        move_to_device: put it on `cfg.device`.

    Raises:
        UnsupportedArchitectureError: no HuggingFace class computes this.
        InputError: several devices, or an unknown `init_mode`.
    """
    if asked.n_devices > 1:
        raise InputError(
            f"A new model is on one device, not on n_devices={asked.n_devices}. from_pretrained "
            "spreads a model that it opens."
        )
    cfg = _with_vocabulary(asked, tokenizer)
    hf_model = _built(cfg)
    place = (cfg.device or default_device()) if move_to_device else "cpu"
    lens = _opened(hf_model.to(device=place, dtype=cfg.dtype))
    plain = _is_plain(hf_model.config)
    kept = {one.name for one in fields(Config)} if plain else FREE - {"attn_scale", "n_params"}
    said = {name: vars(cfg)[name] for name in kept - {"device"}}
    said["original_architecture"] = type(hf_model).__name__
    said["normalization_type"] = cfg.normalization_type
    found = config_of(lens, **said)
    if cfg.init_weights:
        draw_weights(lens, cfg)
    return lens, found


def fresh_encoder(asked: Config, tokenizer: Any, move_to_device: bool) -> tuple[LensModel, Config]:
    """A BERT with random weights, as lensbridge opens it, and its config.

    The arguments are those of `fresh_model`.

    Raises:
        UnsupportedArchitectureError: BERT does not compute this.
    """
    from transformers import BertForMaskedLM

    cfg = _with_vocabulary(asked, tokenizer)
    if cfg.seed is not None:
        torch.manual_seed(cfg.seed)
    hf_model: Any = BertForMaskedLM(_chosen(cfg, (ENCODER,)).build(cfg)).eval()
    place = (cfg.device or default_device()) if move_to_device else "cpu"
    lens = lensbridge.load(hf_model.to(device=place, dtype=cfg.dtype))
    said = {name: vars(cfg)[name] for name in FREE - {"device", "attn_scale", "n_params"}}
    said["original_architecture"] = type(hf_model).__name__
    return lens, config_of(lens, **said, attention_dir=cfg.attention_dir)


def _with_vocabulary(cfg: Config, tokenizer: Any) -> Config:
    if cfg.d_vocab != -1:
        return cfg
    if tokenizer is None:
        raise assertion(InputError)(
            "Must provide a tokenizer if d_vocab is not provided: a new model needs cfg.d_vocab, "
            "or a tokenizer to take it from."
        )
    size = max(tokenizer.get_vocab().values()) + 1
    out = size if cfg.d_vocab_out == -1 else cfg.d_vocab_out
    return replace(cfg, d_vocab=size, d_vocab_out=out)


def _built(cfg: Config) -> Any:
    hf_config = _chosen(cfg).build(cfg)
    # draw_weights draws again, but not the experts
    with nullcontext() if cfg.num_experts else torch.random.fork_rng():
        if cfg.seed is not None:
            torch.manual_seed(cfg.seed)
        model = _of_class(hf_config)
        if not (cfg.tie_word_embeddings or _is_plain(hf_config)):
            model.set_output_embeddings(_head(cfg))
    if hf_config.model_type == "gemma2":
        _plain_gains(model, cfg)
    for name, module in model.named_modules():
        _fit(name.rpartition(".")[2], module, cfg)
    if cfg.normalization_type in ("LNPre", "RMSPre"):
        _freeze_norms(model)
    return model.eval()


def _fit(name: str, module: Any, cfg: Config) -> None:
    """Give a module the weights that TransformerLens's has."""
    if name in ("gate_proj", "up_proj") and cfg.gated_mlp:
        module.bias = None  # TransformerLens adds b_in after the product of the two
    elif name in _BIASED and isinstance(module, nn.Linear) and module.bias is None:
        module.bias = nn.Parameter(torch.zeros(module.out_features))
    elif hasattr(module, "embed_scale"):
        module.embed_scale = torch.ones_like(module.embed_scale)
        module.scalar_embed_scale = 1.0


def _plain_gains(model: Any, cfg: Config) -> None:
    """Norms that multiply by their weight, as TransformerLens's do, not by 1 + weight."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    for path, module in list(model.named_modules()):
        if type(module).__name__ == "Gemma2RMSNorm":
            model.set_submodule(path, LlamaRMSNorm(cfg.d_model, cfg.eps))


def _with_plain_gains(hf_model: nn.Module) -> Architecture:
    """The description of Gemma 2, with such norms."""
    known = registry().select([type(hf_model).__name__], {}).architecture
    block: Any = known.block
    return replace(known, block=replace(block, norms=replace(block.norms, unit_offset=False)))


def _of_class(hf_config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    if not _is_plain(hf_config):
        return AutoModelForCausalLM.from_config(hf_config)
    from lensbridge.compat.transformer_lens.plain import PlainForCausalLM

    return PlainForCausalLM(hf_config)


def _is_plain(hf_config: Any) -> bool:
    return bool(hf_config.model_type == "lensbridge_plain")


def _head(cfg: Config) -> nn.Linear:
    """An unembedding with a bias, as TransformerLens's has."""
    head = nn.Linear(cfg.d_model, cfg.d_vocab_out)
    nn.init.normal_(head.weight, std=cfg.initializer_range)
    nn.init.zeros_(head.bias)
    return head


def _opened(hf_model: nn.Module) -> LensModel:
    config: Any = hf_model.config
    if config.model_type == "gemma2":
        return lensbridge.load(hf_model, architecture=_with_plain_gains(hf_model))
    if not _is_plain(config):
        return lensbridge.load(hf_model)
    from lensbridge.compat.transformer_lens.plain import architecture

    return lensbridge.load(hf_model, architecture=architecture(config))


def _chosen(cfg: Config, offers: Iterable[Offer] = OFFERS) -> Offer:
    judged = [(offer.objections(cfg), offer) for offer in offers]
    fewest, offer = min(judged, key=lambda pair: len(pair[0]))
    if fewest:
        raise UnsupportedArchitectureError(
            f"No HuggingFace class that is known here computes this config. The nearest is "
            f"{offer.name}, which cannot have {', '.join(fewest)}. Change that, or use "
            "transformer_lens itself."
        )
    return offer


def _freeze_norms(model: nn.Module) -> None:
    """Make norms without gain and bias: ones and zeros that training does not change."""
    lens = _opened(model)
    parts = [part for block in lens.native.blocks for part in (block.ln1, block.ln2)]
    for norm in [*parts, lens.native.ln_final]:
        if norm is not None:
            norm.module.requires_grad_(False)
