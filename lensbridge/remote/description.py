"""What a server says of its model: sizes, points, tokenizer, limits, versions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lensbridge.errors import InputError, RemoteError
from lensbridge.native.config import LensConfig
from lensbridge.points.point_names import PointNames
from lensbridge.remote.limits import Limits
from lensbridge.remote.operations import OPERATIONS
from lensbridge.remote.protocol import PROTOCOL
from lensbridge.versions import installed


@dataclass(frozen=True)
class TokenizerFacts:
    """What a client knows of the tokenizer.

    Args:
        bos: id of the token in front of texts; None: there is none.
        eos: id of the token that ends a text.
        pad: id that fills short rows.
        default_prepend_bos: what `prepend_bos=None` means.
        default_padding_side: what `padding_side=None` means.
    """

    bos: int | None
    eos: int | None
    pad: int | None
    default_prepend_bos: bool
    default_padding_side: str


@dataclass(frozen=True)
class Description:
    """A model behind a server.

    Args:
        cfg: sizes and choices; its device is the CPU, where results come to.
        vocabulary: the names of its points.
        tokenizer: None where there is none.
        limits: how much one request may ask for.
        operations: what the server can be asked.
        versions: of lensbridge, torch and transformers there.
        device: the device that computes.
    """

    cfg: LensConfig
    vocabulary: PointNames
    tokenizer: TokenizerFacts | None
    limits: Limits
    operations: tuple[str, ...]
    versions: Mapping[str, str | None]
    device: str


def told(model: Any, limits: Limits, name: str | None = None) -> dict[str, Any]:
    """What a server says of its model, as JSON.

    Args:
        model: a `LensModel`.
        limits: of the server.
        name: what the model is called; None: as in its config, without the path of a folder.
    """
    cfg, known = model.cfg, model.vocabulary
    sizes = {**cfg.to_dict(), "dtype": str(cfg.dtype).removeprefix("torch.")}
    own = cfg.model_name
    sizes["model_name"] = name or (Path(own).name if Path(own).is_absolute() else own)
    return {
        "protocol": PROTOCOL,
        "cfg": {**sizes, "device": "cpu"},
        "device": str(cfg.device),
        "points": {
            "index": list(known.names),
            "absent": known.absent,
            "depths": known.depths,
            "gated": known.gated,
            "main_names": sorted(known.main_names),
        },
        "tokenizer": _facts(model),
        "limits": asdict(limits),
        "operations": list(OPERATIONS),
        "versions": {one: installed(one) for one in ("lensbridge", "torch", "transformers")},
    }


def _facts(model: Any) -> dict[str, Any] | None:
    tokens = model.tokens
    if tokens.tokenizer is None:
        return None
    return {
        "bos": tokens.special("bos"),
        "eos": tokens.special("eos"),
        "pad": tokens.pad_token_id,
        "default_prepend_bos": tokens.default_prepend_bos,
        "default_padding_side": tokens.default_padding_side,
    }


def understood(given: Any, where: str) -> Description:
    """A description from what a server says.

    Args:
        given: the JSON.
        where: the address, for messages.

    Raises:
        RemoteError: it is no server of lensbridge, or speaks another protocol.
    """
    protocol = given.get("protocol") if isinstance(given, dict) else None
    if protocol != PROTOCOL:
        raise RemoteError(
            f"{where} speaks {protocol!r}, and this version of lensbridge speaks {PROTOCOL!r}. "
            "Install the same version on both sides."
        )
    try:
        return _description(given)
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
        raise RemoteError(
            f"{where} does not describe its model as {PROTOCOL} says "
            f"({type(error).__name__}: {error})."
        ) from error


def _description(given: dict[str, Any]) -> Description:
    sizes, points, facts = given["cfg"], given["points"], given["tokenizer"]
    about = {"device": torch.device("cpu"), "dtype": getattr(torch, sizes["dtype"]), "hf": None}
    names = [one.name for one in fields(LensConfig)]
    known = {one.name for one in fields(Limits)}
    return Description(
        LensConfig(**{name: about.get(name, sizes.get(name)) for name in names}),
        PointNames(
            tuple(points["index"]),
            dict(points["absent"]),
            dict(points["depths"]),
            bool(points["gated"]),
            frozenset(points["main_names"]),
        ),
        None if facts is None else TokenizerFacts(**facts),
        Limits(**{name: value for name, value in given["limits"].items() if name in known}),
        tuple(given["operations"]),
        dict(given["versions"]),
        str(given["device"]),
    )
