"""Tuned lenses: an affine map for each layer, before the model's own final norm and head."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensbridge.errors import InputError
from lensbridge.hooked_model import HookedModel

_PARAMS, _CONFIG, _TYPE = "params.pt", "config.json", "linear_tuned_lens"


@dataclass(frozen=True)
class LayerMap:
    """The map of one layer: `stream + stream @ weight.T + bias`.

    Shapes: weight `[d_model, d_model]`, bias `[d_model]`
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, stream: Tensor) -> Tensor:
        """Shapes: `[..., d_model]` -> `[..., d_model]`"""
        weight, bias = self.weight.to(stream.device), self.bias.to(stream.device)
        wide = stream.to(torch.promote_types(stream.dtype, weight.dtype))
        return (wide + wide @ weight.to(wide).T + bias.to(wide)).to(stream.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class TunedLens:
    """A map of the stream before each layer to what the final norm reads.

    `logit_lens(model, text, lens=tuned)` reads every layer through it.

    Args:
        weight: what is added to the identity, of each layer.
        bias: of each layer.
        losses: the loss of each layer at each step of the fit, in nats; None if it was loaded.
        model_name: of the model that it is for.

    Shapes: weight `[layer, d_model, d_model]`, bias `[layer, d_model]`, losses `[step, layer]`
    """

    weight: Tensor
    bias: Tensor
    losses: Tensor | None = None
    model_name: str = ""

    def __post_init__(self) -> None:
        shape, wanted = tuple(self.weight.shape), tuple(self.bias.shape)
        if len(shape) != 3 or (shape[0], shape[1]) != wanted or shape[1] != shape[2]:
            raise InputError(
                "A tuned lens has weights [layer, d_model, d_model] and biases [layer, d_model], "
                f"not {list(shape)} and {list(wanted)}."
            )

    def __repr__(self) -> str:
        layers, width = self.bias.shape
        return f"TunedLens({layers} layers, d_model {width})"

    def __len__(self) -> int:
        return len(self.weight)

    def __getitem__(self, layer: int) -> LayerMap:
        return LayerMap(self.weight[layer], self.bias[layer])

    def require_fit(self, model: HookedModel) -> None:
        """Refuse a lens of a model of other sizes.

        Raises:
            InputError: it has other layers or another width than the model.
        """
        own, wanted = tuple(self.bias.shape), (len(model.native.blocks), model.cfg.d_model)
        if own != wanted:
            raise InputError(
                f"This tuned lens is of a model with {own[0]} layers of width {own[1]}; the model "
                f"has {wanted[0]} layers of width {wanted[1]}."
            )

    def save(self, folder: str | Path) -> None:
        """Write a folder that the package tuned-lens reads, and `load`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"{i}.weight": one.contiguous() for i, one in enumerate(self.weight.cpu())}
        state |= {f"{i}.bias": one.contiguous() for i, one in enumerate(self.bias.cpu())}
        torch.save({name: one.clone() for name, one in state.items()}, folder / _PARAMS)
        layers, width = self.bias.shape
        config = {
            "base_model_name_or_path": self.model_name,
            "d_model": width,
            "num_hidden_layers": layers,
            "bias": True,
            "base_model_revision": None,
            "unembed_hash": None,
            "lens_type": _TYPE,
        }
        (folder / _CONFIG).write_text(json.dumps(config))

    @classmethod
    def load(cls, folder: str | Path, model: HookedModel | None = None) -> TunedLens:
        """Read a folder with `config.json` and `params.pt`, as tuned-lens writes it.

        Args:
            folder: the folder.
            model: a model that the lens has to fit.

        Raises:
            InputError: there is no such folder, it is of another kind of lens, or of a model of
                other sizes.
        """
        config, state = _read(Path(folder))
        layers, width = int(config["num_hidden_layers"]), int(config["d_model"])
        lacking = [i for i in range(layers) if f"{i}.weight" not in state]
        if lacking or config.get("lens_type", _TYPE) != _TYPE:
            raise InputError(
                f"{folder} is no linear tuned lens of {layers} layers: it is a "
                f"{config.get('lens_type', _TYPE)!r} with {sorted(state)[:4]}..."
            )
        zeros = torch.zeros(width)
        found = cls(
            torch.stack([state[f"{i}.weight"] for i in range(layers)]),
            torch.stack([state.get(f"{i}.bias", zeros) for i in range(layers)]),
            model_name=str(config.get("base_model_name_or_path", "")),
        )
        if model is not None:
            found.require_fit(model)
        return found


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    lacking = [name for name in (_CONFIG, _PARAMS) if not (folder / name).is_file()]
    if lacking:
        raise InputError(
            f"{folder} has no {' and no '.join(lacking)}: a tuned lens is a folder with both, as "
            "tuned-lens and TunedLens.save write it."
        )
    try:
        config = json.loads((folder / _CONFIG).read_text())
        state = torch.load(folder / _PARAMS, map_location="cpu", weights_only=True)
        config["num_hidden_layers"], config["d_model"]
    except Exception as error:  # pickle's and json's own, and what is no mapping
        raise InputError(f"{folder} cannot be read as a tuned lens: {error}") from error
    return config, state


def maps_of(
    lens: TunedLens, model: HookedModel, layers: Sequence[int], labels: Sequence[str]
) -> list[Callable[[Tensor], Tensor]]:
    """The map of each row of a logit lens; the stream after the last layer has none.

    Raises:
        InputError: it is of a model of other sizes, or a row is in the middle of a layer.
    """
    lens.require_fit(model)
    middle = next((label for label in labels if label.endswith("_mid")), None)
    if middle is not None:
        raise InputError(
            f"A tuned lens has no map for {middle}: it is for the streams between layers. Leave "
            "incl_mid out."
        )
    return [lens[layer] if layer < len(lens) else _same for layer in layers]


def _same(stream: Tensor) -> Tensor:
    return stream
