"""A table of rows that are looked up: the embedding of tokens or of positions."""

from numbers import Integral

import torch
from torch import Tensor, nn

from lensbridge.native.holding import Held, execution_device, held, opaque, proof, read


def table_held(module: nn.Module) -> Held:
    """How the rows of a table are held. The first time, two of them are looked up."""
    found = held(module)
    if found.holding not in ("plain", "offloaded"):
        return found
    if _rescales(module):
        return opaque("rescaled in place whenever a row is looked up (max_norm)", "as stored")
    why = proof.hindrance(module, "weight", _KIND)
    return opaque(f"not used as it is: {why}") if why else found


def table_rows(module: nn.Module) -> Tensor:
    """Shapes: `[row, d_model]`: the parameter itself where it is plain, otherwise a copy."""
    inner = _inner(module)
    rows, width = rows_of(inner), width_of(inner)
    shape = None if rows is None or width is None else (rows, width)
    return read(module, "weight", lambda: _looked_up(module), table_held(module), shape)


def rows_of(module: nn.Module | None) -> int | None:
    """How many rows a table says that it has; None where it does not say."""
    return _said(module, "num_embeddings")


def width_of(module: nn.Module | None) -> int | None:
    """How wide a table says that its rows are; None where it does not say."""
    return _said(module, "embedding_dim")


def padding_of(module: nn.Module | None) -> int | None:
    """The row of a table that is for padding; None where it has none."""
    return _said(module, "padding_idx")


def _said(module: nn.Module | None, name: str) -> int | None:
    found = getattr(module, name, None)
    return int(found) if isinstance(found, Integral) else None


def _rescales(module: nn.Module) -> bool:
    """Whether a table changes a row whenever it is looked up."""
    return getattr(module, "max_norm", None) is not None


def _inner(module: nn.Module) -> nn.Module:
    """The table inside a layer of PEFT."""
    found: nn.Module = getattr(module, "base_layer", getattr(module, "original_module", module))
    return found


def _looked_up(module: nn.Module) -> Tensor:
    """All rows as the module gives them; as they are stored where it takes no ids."""
    inner = _inner(module)
    weight = inner._parameters.get("weight")
    count = rows_of(inner) or (0 if weight is None else len(weight))
    if not _rescales(inner):
        device = execution_device(inner) or next(module.parameters()).device
        try:
            with proof.settled(module):
                rows = module.forward(torch.arange(count, device=device))
        except Exception:  # a forward with other arguments
            rows = None
        if isinstance(rows, Tensor) and rows.shape[0] == count and rows.ndim == 2:
            return rows
    return read(inner, "weight").detach().clone()


def _prove(module: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two rows, which a table of a known class may look up with an offset and multiply."""
    if type(module).__module__.startswith("transformers.models.") and not _looks_up(module):
        return weight[:1], weight[:1], weight[:1]
    ids = torch.tensor([len(weight) // 2, len(weight) - 1], device=weight.device)
    found, wanted = type(module).forward(module, ids), weight[ids]
    scale = (found * wanted).sum() / (wanted * wanted).sum().clamp_min(1e-30)
    wanted = wanted * scale.to(wanted.dtype)
    return found, wanted, 4 * wanted.abs().amax(-1, keepdim=True).expand_as(wanted)


def _looks_up(module: nn.Module) -> bool:
    return type(module).forward is nn.Embedding.forward


_KIND = proof.Kind(
    "look up its rows",
    ("weight",),
    ("torch.nn.modules.sparse.Embedding.", "transformers.models."),
    _prove,
)
