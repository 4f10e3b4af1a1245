"""Weights that do not write along a direction of the residual stream."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from lensbridge.errors import InputError, WeightError
from lensbridge.hooked_model import HookedModel
from lensbridge.native.parts import MLPPart, MoEPart, OpaquePart

_WRITERS = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")


def abliterated(
    model: HookedModel, direction: Tensor, names: Sequence[str] | str | None = None
) -> dict[str, Tensor]:
    """New values of everything that writes to the residual stream, without a direction.

    A model with these weights computes what it would compute if the direction were projected out of
    the embeddings and of the output of every attention and MLP ("abliteration").

    Args:
        model: the model.
        direction: of any length; or several, in columns.
        names: which weights, or globs of them ("blocks.*.attn.W_O"); None: all `W_E`, `W_pos`,
            `W_O`, `b_O`, `W_out` and `b_out` of the main stack.

    Returns:
        Values for `model.edited` and `model.edit_weights`. Where embedding and head are tied, pass
        `untied=True` there to leave the head as it is.

    Shapes: direction `[d_model]`, or `[d_model, k]`

    Raises:
        InputError: the direction is zero or of another width.
        WeightError: without `names`, something else writes to the stream, or a norm comes between a
            weight and the stream, so that the projection would not be exact.

    Source: Arditi et al. 2024, "Refusal in language models is mediated by a single direction".

    Example:
        >>> import lensbridge
        >>> from lensbridge.editing import abliterated
        >>> model = lensbridge.load("demo")
        >>> direction = model.W_U[:, model.to_single_token(" Paris")].detach()
        >>> with model.edited(abliterated(model, direction), untied=True):
        ...     _, cache = model.run_with_cache("The Eiffel Tower is in the city of")
        >>> bool((cache["resid_post", -1] @ direction).abs().max() < 1e-4)
        True
    """
    basis = _basis(direction, model.cfg.d_model)
    return {name: _without(model.weight(name), basis) for name in _names(model, names)}


def _basis(direction: Tensor, width: int) -> Tensor:
    """Shapes: `[d_model]` or `[d_model, k]` -> `[d_model, k]`, orthonormal in float64."""
    given = torch.as_tensor(direction).detach().double()
    columns = given[:, None] if given.ndim == 1 else given
    if columns.ndim != 2 or len(columns) != width or not 0 < columns.shape[1] <= width:
        raise InputError(
            f"A direction is [{width}], or several in the columns of [{width}, k], not "
            f"{list(given.shape)}."
        )
    U, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    if not bool(sizes[-1] > 1e-9 * sizes[0]):
        raise InputError("The direction is zero, or the directions depend on one another.")
    return U


def _without(weight: Tensor, basis: Tensor) -> Tensor:
    wide = weight.detach().as_subclass(Tensor).double()
    basis = basis.to(wide.device)
    return (wide - (wide @ basis) @ basis.T).to(weight.dtype)


def _names(model: HookedModel, asked: Sequence[str] | str | None) -> list[str]:
    if asked is not None:
        patterns = [asked] if isinstance(asked, str) else list(asked)
        return _chosen(model, patterns)
    hindrances = list(_hindrances(model))
    if hindrances:
        raise WeightError(
            f"The direction cannot be taken out of the weights alone: {'; '.join(hindrances[:3])}. "
            "Project it out of the stream with lensbridge.interventions.Project, or pass names= to "
            "edit some weights nevertheless."
        )
    return list(_writers(model))


def _chosen(model: HookedModel, patterns: Sequence[str]) -> list[str]:
    found = [name for name in model.weight_names if any(fnmatchcase(name, one) for one in patterns)]
    lacking = [one for one in patterns if not any(fnmatchcase(name, one) for name in found)]
    wrong = [name for name in found if name.rpartition(".")[2] not in _WRITERS]
    if lacking or wrong:
        raise WeightError(
            f"{(lacking or wrong)[0]!r} is no weight that writes to the residual stream: these are "
            f"{', '.join(_WRITERS)}, by the names of model.weight_names."
        )
    return found


def _writers(model: HookedModel) -> Iterator[str]:
    """The weights of the main stack that write, without biases that the model does not have."""
    prefix = f"{model.native.main.prefix}."
    front = model.native.front_of(model.native.main)
    for name, one in model.components.weights.items():
        path, _, last = name.rpartition(".")
        inside = path.startswith(prefix) or path in (f"{front}embed", f"{front}pos_embed")
        absent = last.startswith("b_") and one.source.stored is None and not bool(one.read().any())
        if last in _WRITERS and inside and not absent:
            yield name


def _hindrances(model: HookedModel) -> Iterator[str]:
    """What else writes to the stream of the main stack, or changes what is written."""
    main = model.native.main
    if main.ln_embed is not None:
        yield "the embeddings go through a norm"
    if main.embed is None:
        yield "the description names no token embedding"
    for i, block in enumerate(main.blocks):
        here = f"{main.prefix}.{i}"
        after = [slot for slot in ("ln1_post", "ln2_post") if slot in block.norms]
        if after:
            yield f"{here} has {after[0]} between a branch and the stream"
        if block.residual is None:
            yield f"{here} normalizes the stream itself"
        if block.mixer is not None or block.per_layer is not None:
            yield f"{here} has a part that writes with weights that have no name"
        if isinstance(block.mlp, MLPPart) and not block.mlp.writes_neurons:
            yield f"a gate of the MLP of {here} multiplies each channel of what W_out writes"
        if isinstance(block.mlp, MoEPart) and block.mlp.out_bias is not None:
            yield f"the MLP of {here} adds a bias that has no name"
        if isinstance(block.mlp, OpaquePart) or _has_unnamed_experts(block.mlp):
            yield f"the MLP of {here} is not described"


def _has_unnamed_experts(mlp: MLPPart | MoEPart | OpaquePart | None) -> bool:
    return isinstance(mlp, MoEPart) and mlp.experts is None
