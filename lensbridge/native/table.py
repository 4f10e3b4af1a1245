"""A table of rows that are looked up: the embedding of tokens or of positions."""

import torch
from torch import Tensor, nn

from lensbridge.native.holding import Held, execution_device, held, opaque, proof, read


def table_held(module: nn.Module) -> Held:
    """How the rows of a table are held. The first time, two of them are looked up."""
    found = held(module)
    if found.holding not in ("plain", "offloaded"):
        return found
    if getattr(module, "max_norm", None) is not None:
        return opaque("rescaled in place whenever a row is looked up (max_norm)", "as stored")
    why = proof.hindrance(module, "weight", _KIND)
    return opaque(f"not used as it is: {why}") if why else found


def table_rows(module: nn.Module) -> Tensor:
    """Shapes: `[row, d_model]`: the parameter itself where it is plain, otherwise a copy."""
    inner = _inner(module)
    rows, width = getattr(inner, "num_embeddings", None), getattr(inner, "embedding_dim", None)
    shape = None if rows is None or width is None else (int(rows), int(width))
    return read(module, "weight", lambda: _looked_up(module), table_held(module), shape)


def _inner(module: nn.Module) -> nn.Module:
    """The table inside a layer of PEFT."""
    found: nn.Module = getattr(module, "base_layer", getattr(module, "original_module", module))
    return found


def _looked_up(module: nn.Module) -> Tensor:
    """All rows as the module gives them; as they are stored where it takes no ids."""
    inner = _inner(module)
    weight = inner._parameters.get("weight")
    count = getattr(inner, "num_embeddings", None) or (0 if weight is None else len(weight))
    if getattr(inner, "max_norm", None) is None:
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
