"""TrainedSAE: a sparse autoencoder that `lensbridge.saes.fit` trained, in SAELens's files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lensbridge.errors import InputError

Kind: TypeAlias = Literal["topk", "standard"]
"""topk: the k largest of each entry are kept. standard: ReLU, trained with an L1 penalty."""

_FORM = "6.0.0"
"""The version of SAELens with whose form of files SAEs are written."""

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


@dataclass(frozen=True)
class Metadata:
    """Where an SAE belongs.

    Args:
        hook_name: the point that it was trained on.
        model_name: the model.
    """

    hook_name: str
    model_name: str | None = None


@dataclass(frozen=True)
class Config:
    """The sizes and kind of an SAE, under SAELens's names.

    Args:
        architecture: its kind.
        d_in: width of the activations.
        d_sae: number of features.
        k: active features of an entry; 0 for "standard".
        metadata: where it belongs.
    """

    architecture: Kind
    d_in: int
    d_sae: int
    k: int
    metadata: Metadata


class TrainedSAE(nn.Module):
    """A sparse autoencoder.

    `encode` gives `relu((x - b_dec) @ W_enc + b_enc)`, for "topk" only the k largest of each entry;
    `decode` gives `features @ W_dec + b_dec`.

    Args:
        cfg: sizes, kind and place.

    Shapes: `W_enc` `[d_in, d_sae]`, `W_dec` `[d_sae, d_in]`, `b_enc` `[d_sae]`, `b_dec` `[d_in]`
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_enc = nn.Parameter(torch.zeros(cfg.d_in, cfg.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(cfg.d_sae, cfg.d_in))
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))

    def encode(self, x: Tensor) -> Tensor:
        """The features of activations. Shapes: `[..., d_in]` -> `[..., d_sae]`"""
        features = ((x - self.b_dec) @ self.W_enc + self.b_enc).relu()
        if self.cfg.architecture == "standard":
            return features
        found = features.topk(self.cfg.k, dim=-1)
        return torch.zeros_like(features).scatter(-1, found.indices, found.values)

    def decode(self, features: Tensor) -> Tensor:
        """The activations that features reconstruct. Shapes: `[..., d_sae]` -> `[..., d_in]`"""
        return features @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of activations. Shapes: `[..., d_in]` -> `[..., d_in]`"""
        return self.decode(self.encode(x))

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write it as SAELens reads it (`SAE.load_from_disk`), and `TrainedSAE.load`."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        cfg: dict[str, Any] = {
            **{name: value for name, value in asdict(self.cfg).items() if name != "k"},
            **({"k": self.cfg.k} if self.cfg.architecture == "topk" else {}),
            "dtype": str(self.W_dec.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
        }
        cfg["metadata"]["sae_lens_version"] = _FORM
        (path / CONFIG).write_text(json.dumps(cfg, indent=2) + "\n", encoding="utf-8")
        weights = {name: one.detach().cpu().contiguous() for name, one in self.state_dict().items()}
        save_file(weights, path / WEIGHTS)
        return path

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> TrainedSAE:
        """What `save` wrote.

        Raises:
            InputError: the folder has no such SAE.
        """
        path = Path(folder)
        try:
            cfg = json.loads((path / CONFIG).read_text(encoding="utf-8"))
            about = Metadata(cfg["metadata"]["hook_name"], cfg["metadata"].get("model_name"))
            sizes = cfg["architecture"], cfg["d_in"], cfg["d_sae"], cfg.get("k", 0)
            found = cls(Config(*sizes, about))
            weights = load_file(path / WEIGHTS)
            found.to(weights["W_dec"].dtype).load_state_dict(weights)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"{path} has no SAE that `save` wrote: {error!r}.") from error
        return found
