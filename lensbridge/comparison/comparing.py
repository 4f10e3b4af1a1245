"""`lensbridge.compare`: a model beside its fine-tune."""

from typing import Any

from lensbridge.comparison.outputs import prompt_changes
from lensbridge.comparison.result import Comparison
from lensbridge.comparison.side import sides_of
from lensbridge.comparison.weights import weight_changes
from lensbridge.errors import InputError


def compare(
    a: Any,
    b: Any,
    prompts: Any = None,
    *,
    weights: bool = True,
    top_k: int = 5,
    batch_size: int = 8,
    prepend_bos: bool | None = None,
) -> Comparison:
    """Compare a model with its fine-tune.

    Weights are read one at a time. They are what the model computes with: weights with adapters
    count as they act, and quantized ones dequantized.

    Args:
        a: the base: a `LensModel`, or anything that `load` takes.
        b: the fine-tune. If it is a PEFT model on the very model of `a` (or if `a` and `b` are the
            same PEFT model), its adapters are switched off for `a`.
        prompts: text, token ids or prompt objects on which to compare what the models compute.
        weights: whether to compare the weights.
        top_k: how many of the tokens whose probability changed most to keep at each position.
        batch_size: how many prompts are run at once.
        prepend_bos: BOS before text; None means a's default.

    Returns:
        The changes of all weights, and on prompts those of the residual stream and the
        predictions. `print` shows a summary.

    Raises:
        InputError: two architectures, sizes or tokenizers that do not correspond, or the same
            model twice.

    Example:
        >>> import copy
        >>> import lensbridge
        >>> base = lensbridge.load("demo")
        >>> tuned = copy.deepcopy(base)
        >>> _ = tuned.W_O[2].data.mul_(1.5)
        >>> found = lensbridge.compare(base, tuned, "The Eiffel Tower is in the city of")
        >>> found.weights.rows[0].name, round(found.weights.rows[0].change, 3)
        ('blocks.2.attn.W_O', 0.5)
    """
    if not weights and prompts is None:
        raise InputError("There is nothing to compare: pass prompts, or weights=True.")
    if top_k < 1 or batch_size < 1:
        raise InputError(f"top_k and batch_size are 1 or more, not {top_k} and {batch_size}.")
    one, other = sides_of(a, b)
    outputs = None
    if prompts is not None:
        outputs = prompt_changes(one, other, prompts, top_k, batch_size, prepend_bos)
    found = weight_changes(one, other) if weights else None
    return Comparison(one.name, other.name, found, outputs)
