"""Descriptions that leave something out which the model has: the kit names it."""

from dataclasses import replace

import pytest
from lensbridge_adapters.albert import ALBERT
from lensbridge_adapters.big_bird import BIG_BIRD
from lensbridge_adapters.clip import CLIP, CLIP_TEXT, CLIP_VISION, CLIP_VISION_WITH_PROJECTION

from lensbridge.conformance.tiny import tiny_model
from lensbridge.spec import Architecture
from lensbridge.testing import CHECKS, conformance

pytestmark = pytest.mark.usefixtures("one_thread")

NAMED = ("embeddings make the stream", "nothing is left out")


@pytest.mark.parametrize(
    ("architecture", "left_out", "told"),
    [
        (ALBERT, {"head_hidden": None}, "head_hidden"),
        (ALBERT, {"embed_norm": None}, "hook_resid_pre"),
        (CLIP, {"final_norm": None}, "final_norm"),
        (CLIP_TEXT, {"final_norm": None}, "final_norm"),
        (CLIP_VISION, {"embed": None}, "hook_embed"),
        (CLIP_VISION_WITH_PROJECTION, {"pooler": None}, "pooler"),
        (BIG_BIRD, {"pooler": "bert.activationx"}, "pooler"),
    ],
    ids=lambda one: one.name if isinstance(one, Architecture) else str(one),
)
def test_what_is_left_out_is_named(
    architecture: Architecture, left_out: dict[str, str | None], told: str
) -> None:
    less = replace(architecture, **left_out)
    checks = [one for one in CHECKS if one.name in NAMED]
    failed = conformance(tiny_model(architecture), architecture=less, checks=checks).failures
    assert any(told in row.detail for row in failed), [row.detail for row in failed]
