"""Head detection for models of this package."""

from collections.abc import Callable
from functools import wraps
from typing import get_args

from torch import Tensor

from lensbridge.analysis import detection
from lensbridge.compat.transformer_lens.raised import asserting
from lensbridge.compat.transformer_lens.translation import translated


def _of_one_row(pattern_of: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The pattern of one row of ids without its batch axis: `[1, pos]` -> `[query, key]`."""

    @wraps(pattern_of)
    def run(tokens: Tensor) -> Tensor:
        return pattern_of(tokens[0] if tokens.ndim == 2 and len(tokens) == 1 else tokens)

    return run


detect_head = asserting(translated(detection.detect_head))
compute_head_attention_similarity_score = asserting(
    detection.compute_head_attention_similarity_score
)
get_duplicate_token_head_detection_pattern = _of_one_row(
    detection.get_duplicate_token_head_detection_pattern
)
get_induction_head_detection_pattern = _of_one_row(detection.get_induction_head_detection_pattern)
get_previous_token_head_detection_pattern = _of_one_row(
    detection.get_previous_token_head_detection_pattern
)
get_supported_heads = detection.get_supported_heads
HeadName, ErrorMeasure = detection.HeadName, detection.ErrorMeasure
HEAD_NAMES = get_args(HeadName)
