"""Head detection for models of this package."""

from typing import get_args

from lensbridge.analysis import detection
from lensbridge.compat.transformer_lens.translation import translated

detect_head = translated(detection.detect_head)
compute_head_attention_similarity_score = detection.compute_head_attention_similarity_score
get_duplicate_token_head_detection_pattern = detection.get_duplicate_token_head_detection_pattern
get_induction_head_detection_pattern = detection.get_induction_head_detection_pattern
get_previous_token_head_detection_pattern = detection.get_previous_token_head_detection_pattern
get_supported_heads = detection.get_supported_heads
HeadName, ErrorMeasure = detection.HeadName, detection.ErrorMeasure
HEAD_NAMES = get_args(HeadName)
