"""What a harvest is recognised by: its model, tokenizer, data, settings and library."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import lensbridge
from lensbridge.harvest.differences import FORMAT
from lensbridge.harvest.job import Job, axes_of
from lensbridge.harvest.spec import Keep
from lensbridge.hooked_model import HookedModel

_SAMPLES = 32
"""Values of each parameter, evenly spaced, that are hashed."""


def identity(job: Job) -> dict[str, Any]:
    """Everything that the bytes of a shard depend on, as JSON."""
    reduce = job.spec.reduce
    return {
        "format": FORMAT,
        "model": of_model(job.model),
        "tokenizer": of_tokenizer(job.model.tokens.tokenizer),
        "data": job.source.fingerprint(),
        "points": dict(axes_of(job)),
        "rows": _of_rows(job),
        "keep": _of_keep(job.spec.keep),
        "reduce": None if reduce is None else reduce.describe(),  # type: ignore[union-attr]
        "stored": _of_shards(job),
        "library": of_library(),
    }


def _of_rows(job: Job) -> dict[str, Any]:
    rows = job.spec.rows
    return {
        "length": job.length,
        "packing": rows.packing,
        "separator": rows.separator,
        "bos": rows.bos,
        "default_bos": job.model.tokens.default_prepend_bos,
    }


def _of_keep(keep: Keep) -> dict[str, Any]:
    positions = keep.positions
    return {
        "bos": keep.bos,
        "pad": keep.pad,
        "special": keep.special,
        "positions": str(positions) if isinstance(positions, slice) else _listed(positions),
    }


def _of_shards(job: Job) -> dict[str, Any]:
    return {
        "dtype": None if job.dtype is None else str(job.dtype).removeprefix("torch."),
        "batch": job.spec.batch,
        "shard_tokens": job.spec.shard_tokens,
        "max_tokens": job.spec.max_tokens,
    }


def _listed(positions: Any) -> list[int] | None:
    return None if positions is None else [int(one) for one in positions]


def of_library() -> dict[str, str]:
    """The versions of what computes."""
    return {
        "lensbridge": lensbridge.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def of_model(model: HookedModel) -> dict[str, Any]:
    """What a model is recognised by: its config, and some values of every parameter."""
    cfg = model.cfg
    return {
        "name": cfg.model_name,
        "class": cfg.original_architecture,
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "sha256_of_some_weights": _weights(model.hf_model),
    }


def of_module(module: nn.Module) -> dict[str, Any]:
    """What a module is recognised by."""
    return {"class": type(module).__qualname__, "sha256_of_some_weights": _weights(module)}


def of_tensor(values: Any) -> dict[str, Any]:
    """What a tensor or an array is recognised by: all of its values."""
    given = torch.as_tensor(values).detach().cpu().contiguous()
    data = given.flatten().view(torch.uint8).numpy().tobytes()
    return {
        "dtype": str(given.dtype).removeprefix("torch."),
        "shape": list(given.shape),
        "sha256": sha256(data).hexdigest(),
    }


def _weights(module: nn.Module) -> str:
    """A hash of some values of every parameter that is in memory."""
    found = sha256()
    for name, parameter in module.named_parameters():
        found.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if not parameter.is_meta:
            found.update(_some(parameter.detach()))
    return found.hexdigest()


def _some(values: Tensor) -> bytes:
    flat = values.flatten()
    chosen = flat[:: max(1, flat.numel() // _SAMPLES)].cpu().contiguous()
    return chosen.view(torch.uint8).numpy().tobytes()


def of_tokenizer(known: Any) -> dict[str, Any] | None:
    """What a tokenizer is recognised by; None where there is none."""
    if known is None:
        return None
    backend = getattr(known, "backend_tokenizer", None)
    words = sorted(known.get_vocab().items())
    text = json.dumps(words) if backend is None else backend.to_str()
    return {
        "class": type(known).__name__,
        "sha256": sha256(text.encode()).hexdigest(),
        "special": {role: str(token) for role, token in known.special_tokens_map.items()},
        "chat_template": known.chat_template if isinstance(known.chat_template, str) else None,
    }
