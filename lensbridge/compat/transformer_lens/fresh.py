"""A new model from a config, of a HuggingFace class that computes what the config describes."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

import lensbridge
from lensbridge.compat.transformer_lens.config import config_of
from lensbridge.compat.transformer_lens.offers import FREE, OFFERS, Config, Offer
from lensbridge.compat.transformer_lens.opening import default_device
from lensbridge.errors import InputError, UnsupportedArchitectureError
from lensbridge.model import LensModel


def fresh_model(asked: Config, tokenizer: Any, move_to_device: bool) -> tuple[LensModel, Config]:
    """A model with random weights, as lensbridge opens it, and its config.

    Args:
        asked: the config.
        tokenizer: the tokenizer whose vocabulary is used if the config has no `d_vocab`.
        move_to_device: put it on `cfg.device`.

    Raises:
        UnsupportedArchitectureError: no HuggingFace class computes this.
    """
    cfg = _with_vocabulary(asked, tokenizer)
    hf_model = _built(cfg)
    place = (cfg.device or default_device()) if move_to_device else "cpu"
    lens = _opened(hf_model.to(device=place, dtype=cfg.dtype))
    plain = _is_plain(hf_model.config)
    kept = {one.name for one in fields(Config)} if plain else FREE - {"attn_scale", "n_params"}
    said = {name: vars(cfg)[name] for name in kept - {"device"}}
    said["original_architecture"] = type(hf_model).__name__
    said["normalization_type"] = cfg.normalization_type
    return lens, config_of(lens, **said)


def _with_vocabulary(cfg: Config, tokenizer: Any) -> Config:
    if cfg.d_vocab != -1:
        return cfg
    if tokenizer is None:
        raise InputError("A new model needs cfg.d_vocab, or a tokenizer to take it from.")
    size = max(tokenizer.get_vocab().values()) + 1
    out = size if cfg.d_vocab_out == -1 else cfg.d_vocab_out
    return replace(cfg, d_vocab=size, d_vocab_out=out)


def _built(cfg: Config) -> Any:
    hf_config = _chosen(cfg).build(cfg)
    with torch.random.fork_rng():
        if cfg.seed is not None:
            torch.manual_seed(cfg.seed)
        model = _of_class(hf_config)
        if not (cfg.tie_word_embeddings or _is_plain(hf_config)):
            model.set_output_embeddings(_head(cfg))
    for name, module in model.named_modules():
        if name.endswith(("gate_proj", "up_proj")) and cfg.gated_mlp:
            module.bias = None  # TransformerLens adds b_in after the product of the two
    if cfg.normalization_type in ("LNPre", "RMSPre"):
        _freeze_norms(model)
    return model.eval()


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
    if not _is_plain(config):
        return lensbridge.load(hf_model)
    from lensbridge.compat.transformer_lens.plain import architecture

    return lensbridge.load(hf_model, architecture=architecture(config))


def _chosen(cfg: Config) -> Offer:
    judged = [(offer.objections(cfg), offer) for offer in OFFERS]
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
