"""Probes in safetensors files, with what is known of them in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lensbridge.analysis.probes.examples import Layer
from lensbridge.analysis.probes.probe import Probe
from lensbridge.errors import InputError

FORMAT = "lensbridge.ProbeResult/1"
_PARTS = ("weight", "bias", "scores")


def save(probes: Mapping[Layer, Probe], about: Mapping[str, Any], path: str | Path) -> None:
    """Write probes.

    Raises:
        InputError: there is no such folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} for {path.name}. Create it first.")
    tensors = {
        f"{i}.{part}": getattr(probe, part).contiguous()
        for i, probe in enumerate(probes.values())
        for part in _PARTS
    }
    first = next(iter(probes.values()))
    dtypes = [str(one.dtype).removeprefix("torch.") for one in probes.values()]
    known = {"layers": list(probes), "classes": first.classes, "dtypes": dtypes, **about}
    save_file(tensors, path, metadata={"format": FORMAT, "probes": json.dumps(known)})


def load(path: str | Path) -> tuple[dict[Layer, Probe], dict[str, Any]]:
    """Read probes, and what else is known of them.

    Raises:
        InputError: it is no file of probes.
    """
    try:
        with safe_open(str(path), "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{path} is no file of probes: ProbeResult.save writes one.")
            known = json.loads(header["probes"])
            classes = tuple(known.pop("classes"))
            dtypes = known.pop("dtypes")
            probes = {
                layer: Probe(
                    file.get_tensor(f"{i}.weight"),
                    file.get_tensor(f"{i}.bias"),
                    classes,
                    file.get_tensor(f"{i}.scores"),
                    getattr(torch, dtypes[i]),
                )
                for i, layer in enumerate(known.pop("layers"))
            }
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as a file of probes: {error}") from error
    return probes, known
