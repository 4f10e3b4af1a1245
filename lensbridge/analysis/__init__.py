"""Logit lens, direct logit attribution, head detection, singular vectors and other analyses."""

from lensbridge.analysis.attribution import direct_logit_attribution
from lensbridge.analysis.attribution_result import DirectLogitAttribution
from lensbridge.analysis.composition import CompositionScores, composition_scores
from lensbridge.analysis.corpus import TokenRows, TokenStream, tokenize_and_concatenate
from lensbridge.analysis.detection import (
    compute_head_attention_similarity_score,
    detect_head,
    get_duplicate_token_head_detection_pattern,
    get_induction_head_detection_pattern,
    get_previous_token_head_detection_pattern,
    get_supported_heads,
)
from lensbridge.analysis.lens import logit_lens
from lensbridge.analysis.lens_result import LogitLensResult
from lensbridge.analysis.metrics import (
    lm_accuracy,
    lm_cross_entropy_loss,
    logits_to_df,
    sample_logits,
)
from lensbridge.analysis.neuron_card import NeuronCard, neuron_card
from lensbridge.analysis.probes import Probe, ProbeResult, fit_probe
from lensbridge.analysis.prompts import Prediction, PromptResult, test_prompt
from lensbridge.analysis.readout import LogitReadout
from lensbridge.analysis.svd import SingularDirection, SVDInterpreter, singular_readout
from lensbridge.analysis.tuned_lens import LayerMap, TunedLens
from lensbridge.analysis.tuning import fit_tuned_lens
from lensbridge.analysis.unembedding import logit_readout

__all__ = [
    "CompositionScores",
    "DirectLogitAttribution",
    "LayerMap",
    "LogitLensResult",
    "LogitReadout",
    "NeuronCard",
    "Prediction",
    "Probe",
    "ProbeResult",
    "PromptResult",
    "SVDInterpreter",
    "SingularDirection",
    "TokenRows",
    "TokenStream",
    "TunedLens",
    "composition_scores",
    "compute_head_attention_similarity_score",
    "detect_head",
    "direct_logit_attribution",
    "fit_probe",
    "fit_tuned_lens",
    "get_duplicate_token_head_detection_pattern",
    "get_induction_head_detection_pattern",
    "get_previous_token_head_detection_pattern",
    "get_supported_heads",
    "lm_accuracy",
    "lm_cross_entropy_loss",
    "logit_lens",
    "logit_readout",
    "logits_to_df",
    "neuron_card",
    "sample_logits",
    "singular_readout",
    "test_prompt",
    "tokenize_and_concatenate",
]
