"""What stands before the first layer and after the last one, and is left out or exchanged."""

from dataclasses import replace

import pytest
from lensbridge_adapters.qwen2_vl import QWEN3_VL
from lensbridge_adapters.rwkv import RWKV
from lensbridge_adapters.siglip import SIGLIP
from lensbridge_adapters.vit import VIT
from lensbridge_adapters.whisper import WHISPER_DECODER
from lensbridge_adapters.xglm import XGLM

from lensbridge.conformance.checks import CHECKS
from lensbridge.conformance.kit import conformance
from lensbridge.conformance.tiny import tiny_model
from lensbridge.spec import Architecture

ENDS = [
    check
    for check in CHECKS
    if check.name
    in (
        "embeddings make the stream",
        "nothing is left out",
        "the stream adds up",
        "the stream flows on",
    )
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (XGLM, {"pos_embed": None}, "XGLMSinusoidalPositionalEmbedding is added to the embeddings"),
        (SIGLIP, {"pooler": None}, "the pooler_output of the main stack is no point"),
        (VIT, {"unembed": VIT.pooler, "pooler": VIT.unembed}, "its output is the logits"),
        (
            WHISPER_DECODER,
            {"dims": replace(WHISPER_DECODER.dims, context=None)},
            "rows, and the description has no context",
        ),
        (
            QWEN3_VL,
            {"towers": tuple(replace(one, embed=None) for one in QWEN3_VL.towers)},
            "the stack reads images, and no point is their embedding",
        ),
        (RWKV, {"interrupted": True}, "the description says that it is not"),
        (RWKV, {"interrupted": False}, "blocks.2.hook_resid_pre"),
        (RWKV, {"embed_norm": None}, "should be hook_resid_pre + hook_mixer_out"),
    ],
    ids=lambda value: value.name if isinstance(value, Architecture) else "",
)
def test_what_is_left_out_is_named(
    right: Architecture, wrong: dict[str, object], told: str
) -> None:
    said = replace(right, **wrong)  # type: ignore[arg-type]
    report = conformance(tiny_model(right), architecture=said, checks=ENDS)
    assert told in "; ".join(row.detail for row in report.rows if row.status == "failed")
