"""Rows of the table of points, and groups of rows that several parts of a model have."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One kind of point: a row of the table.

    Args:
        name: the canonical name, with `{i}` for the layer.
        axes: one letter for each axis.
        meaning: what the value is.
        found_in: the architectures that have it.
        on_request: whether "cache everything" leaves it out, so that it has to be named: it is
            large, or a copy.
        derived: whether it is computed from native tensors; an edit recomputes what depends on it.
        by_full_name: whether its short name alone means another row.
    """

    name: str
    axes: str
    meaning: str
    found_in: str = "every"
    on_request: bool = False
    derived: bool = False
    by_full_name: bool = False


def norm_points(
    prefix: str, what: str, found_in: str = "every", by_full_name: bool = False
) -> tuple[Point, ...]:
    """The three points of a norm."""
    return (
        Point(
            f"{prefix}.hook_scale",
            "b p 1",
            f"divisor of the {what}: sqrt(variance + eps), or sqrt(mean square + eps) for RMSNorm",
            found_in,
            derived=True,
            by_full_name=by_full_name,
        ),
        Point(
            f"{prefix}.hook_normalized",
            "b p m",
            f"the {what}'s output before its gain and bias",
            found_in,
            derived=True,
            by_full_name=by_full_name,
        ),
        Point(
            f"{prefix}.hook_out",
            "b p m",
            f"the {what}'s output",
            found_in,
            by_full_name=by_full_name,
        ),
    )


def input_point(letter: str, axes: str, what: str) -> Point:
    """The stream as each head reads it for its queries, keys or values."""
    return Point(
        f"blocks.{{i}}.hook_{letter}_input",
        axes,
        f"residual stream as the {what}s read it, before the norm; one copy per head",
        "pre-norm attention",
        on_request=True,
        derived=True,
    )


def kernel_points(at: str, what: str, found_in: str, by_full_name: bool) -> tuple[Point, ...]:
    """What an attention makes of queries, keys and values."""

    def point(last: str, axes: str, meaning: str, **flags: bool) -> Point:
        name = f"blocks.{{i}}.{at}.hook_{last}"
        return Point(name, axes, meaning, found_in, by_full_name=by_full_name, **flags)

    return (
        point(
            "attn_scores",
            "b h q k",
            f"scaled, masked scores{what} before softmax; -inf where masked",
        ),
        point("pattern", "b h q k", f"attention probabilities{what}, after softmax"),
        point("z", "b p h d", f"pattern-weighted values{what}, per head"),
        point(
            "result",
            "b p h m",
            "what each head writes to the residual stream, before b_O; through the norm and "
            "multiplier after attention, if the model has them",
            on_request=True,
            derived=True,
        ),
    )


def neuron_points(
    at: str, what: str, rows: str, found_in: str, flags: dict[str, bool]
) -> tuple[Point, ...]:
    """The points inside an MLP that a mixture of experts has."""

    def point(last: str, axes: str, meaning: str) -> Point:
        return Point(
            f"blocks.{{i}}.{at}.hook_{last}",
            f"{rows} {axes}",
            meaning,
            found_in,
            by_full_name=True,
            **flags,
        )

    return (
        point("in", "m", f"input of {what}"),
        point("pre", "f", f"{what}: before the activation"),
        point("pre_linear", "f", f"{what}: linear branch, if it is gated"),
        point("post", "f", f"{what}: the neurons"),
        point("out", "m", f"{what}: its output, before it is multiplied by a weight"),
    )


def sae_point(last: str, axes: str, meaning: str) -> Point:
    """A point inside an SAE that is spliced in."""
    name, found_in = f"{{point}}.hook_sae_{last}", "points where an SAE is spliced in"
    return Point(name, axes, meaning, found_in, derived=True, by_full_name=True)
