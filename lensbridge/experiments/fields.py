"""The fields of an experiment as they are stored, checked."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lensbridge.errors import InputError, suggest
from lensbridge.inputs.chat import are_chats, is_chat, refuse_message
from lensbridge.inputs.prompts import Encoded, is_text, plain_input
from lensbridge.inputs.tokens import as_tensor
from lensbridge.interventions.intervention import Intervention
from lensbridge.metrics import Loss, Metric
from lensbridge.tensors.slices import PosSlice

OF_RUNS = ("logits", "loss")
NOT_DECLARED = {
    "interventions": "an experiment has interventions=... of its own",
    "return_type": "the result has both text and tokens",
    "return_cache": "points=... are those of the inputs",
    "names_filter": "points=... are those of the inputs",
    "device": "results are where the engine leaves them",
    "prepend_bos": "an experiment has prepend_bos=... of its own",
    "return_dict_in_generate": "the result has both text and tokens",
    "verbose": "no progress bar is shown",
}
"""Options of `generate` that an experiment says elsewhere."""


def normalized(experiment: Any) -> dict[str, Any]:
    """The fields of an experiment as they are stored.

    Raises:
        InputError: one that is no data, or that needs another one.
    """
    given = {name: vars(experiment)[name] for name in NORMAL}
    found = {name: NORMAL[name](value) for name, value in given.items()}
    for name in ("sweep", "gradients"):
        if found[name] is not None and found["metric"] is None:
            raise InputError(
                f"{name}=... is of a metric, and the experiment has none. Pass metric=..., such as "
                "LogitDiff(right, wrong) or Loss() of lensbridge.experiments."
            )
    return found


def inputs(given: Any) -> Any:
    """Text, texts, messages, ids as a tensor, or a mapping of tensors.

    Raises:
        InputError: something else.
    """
    given = plain_input(given)
    if isinstance(given, str | list | tuple | Mapping) and not given:
        raise InputError(f"The inputs are {given!r}: there is nothing to run.")
    if isinstance(given, Encoded):
        return {"input_ids": given.ids.cpu(), "attention_mask": given.mask.cpu()}
    if is_chat(given) or are_chats(given):
        return _as_json("inputs", given)
    if is_text(given):
        return given if isinstance(given, str) else list(given)
    refuse_message(given)
    if isinstance(given, Mapping):
        return {str(key): as_tensor(value).cpu() for key, value in given.items()}
    return as_tensor(given).detach().cpu()


def points(given: Any) -> Any:
    """Names, short names and globs, as text and tuples.

    Raises:
        InputError: a function, or something that is no name.
    """
    if given is None or isinstance(given, str):
        return given
    if callable(given):
        raise InputError(
            "A function of names cannot be sent or written to JSON. Write the names of the points, "
            "or a glob such as '*hook_z'."
        )
    if isinstance(given, set):
        given = sorted(given, key=str)
    if isinstance(given, list | tuple):
        several = tuple(one if isinstance(one, int) else points(one) for one in given)
        return several or None
    raise InputError(f"points are names, short names or globs, not {given!r}.")


def interventions(given: Any) -> tuple[Intervention, ...]:
    """Interventions as a tuple.

    Raises:
        InputError: something that is none.
    """
    several = (given,) if isinstance(given, Intervention) else tuple(given or ())
    for one in several:
        if not isinstance(one, Intervention):
            raise InputError(
                f"{one!r} is no intervention. An experiment has those of lensbridge.interventions "
                "(Zero, Replace, Add...); a function would have to run where the model is."
            )
    return several


def metric(given: Any) -> Any:
    """A metric, or several by name; "loss" is `Loss()`.

    Raises:
        InputError: a function, which cannot be written to JSON, or an empty mapping.
    """
    if isinstance(given, Mapping):
        if not given:
            raise InputError("The mapping of metrics is empty: there is nothing to measure.")
        return {str(name): _one_metric(one) for name, one in given.items()}
    return None if given is None else _one_metric(given)


def _one_metric(given: Any) -> Metric:
    found = Loss() if given == "loss" else given
    if not isinstance(found, Metric):
        raise _no_metric(given)
    return found


def _no_metric(given: Any) -> InputError:
    return InputError(
        f"{given!r} is no declared metric. An experiment has those of lensbridge.experiments "
        "(LogitDiff, LogProb, KL...), or several by name; model.sweep and model.gradients take "
        "functions too."
    )


def sweep(given: Any) -> Any:
    """Cells: each an intervention, or a tuple of several; in a mapping, each with a name.

    Raises:
        InputError: no cell, or something that is none.
    """
    if given is None:
        return None
    if isinstance(given, Intervention):
        raise InputError("sweep is a list of cells; for one, pass [intervention].")
    parts = given.values() if isinstance(given, Mapping) else given
    cells = tuple(one if isinstance(one, Intervention) else interventions(one) for one in parts)
    if not cells or not all(cells):
        raise InputError("sweep is empty, or one of its cells is: there is nothing to run.")
    if not isinstance(given, Mapping):
        return cells
    return {str(name): cell for name, cell in zip(given, cells, strict=True)}


def generate(given: Any) -> dict[str, Any] | None:
    """Options of `generate` that are data.

    Raises:
        InputError: an option that is none, or that an experiment says elsewhere.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise InputError(
            'generate is options of model.generate, such as {"max_new_tokens": 8}; not '
            f"{given!r}."
        )
    for name in given:
        if name in NOT_DECLARED:
            raise InputError(f"generate has {name!r}: leave it out, {NOT_DECLARED[name]}.")
    return dict(_as_json("generate", dict(given)))


def pos_slice(given: PosSlice) -> PosSlice:
    """Positions as an int, "last", a slice or a list."""
    if isinstance(given, tuple):
        return slice(*given)
    if isinstance(given, Tensor):
        return given.tolist()
    if isinstance(given, range):
        return list(given)
    return given


def returns(given: Any) -> tuple[str, ...]:
    """What of the run comes back.

    Raises:
        InputError: something that cannot.
    """
    several = (given,) if isinstance(given, str) else tuple(given or ())
    for one in several:
        if one not in OF_RUNS:
            raise InputError(
                f"returns has 'logits' and 'loss', not {one!r}.{suggest(str(one), OF_RUNS)} "
                "Activations, metrics and the rest come back whenever they are asked for."
            )
    return several


def prepend_bos(given: Any) -> bool | None:
    """Whether BOS comes first."""
    return None if given is None else bool(given)


def _as_json(what: str, given: Any) -> Any:
    try:
        return json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} has something that is no data: {error}.") from error


NORMAL: dict[str, Callable[[Any], Any]] = {
    "inputs": inputs,
    "points": points,
    "interventions": interventions,
    "metric": metric,
    "sweep": sweep,
    "gradients": points,
    "generate": generate,
    "pos_slice": pos_slice,
    "returns": returns,
    "prepend_bos": prepend_bos,
}
