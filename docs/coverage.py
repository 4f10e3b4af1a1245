"""Write docs/coverage.md: every model type of transformers, and what lensbridge makes of it.

    python docs/coverage.py --run [TYPE ...]    build, check and record model types (all: minutes)
    python docs/coverage.py --rival [TYPE ...]  the same for TransformerLens, where it is installed
    python docs/coverage.py                     write the page from the record
    python docs/coverage.py --check             exit with 1 if the page or the record is out of date

The record is docs/coverage.json. What is checked on every change: that the page is what the record
says, that every model type is in it, that built-in descriptions are those that are registered now,
and (tests/test_coverage.py) that a sample of the types gives what was recorded.
"""

import json
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

import lensbridge
from lensbridge import LensModel
from lensbridge.conformance.sizes import ALTERNATIVES
from lensbridge.conformance.tiny import tiny_from
from lensbridge.errors import UnsupportedArchitectureError
from lensbridge.inputs.random import inputs_for
from lensbridge.plugins import registry
from lensbridge.testing import conformance

PAGE = Path(__file__).parent / "coverage.md"
RECORD = Path(__file__).parent / "coverage.json"
SECONDS = 300
"""For one model type."""

VISION = ("deit", "dinov2", "vit")
TWO_TOWERS = {
    "clip": "CLIPModel",
    "clip_text_model": "CLIPTextModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipModel",
    "siglip_vision_model": "SiglipVisionModel",
}
MULTIMODAL = [
    "gemma3",
    "idefics3",
    "internvl",
    "llava",
    "mistral3",
    "paligemma",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
]


_DRAFTS = "it reads keys, values and hidden states of the model that it drafts for, and no ids"
_CODES = "its input has one row for each codebook, so its rows are not those of the stream"
REASONS = {
    "dory": "some layers run several times between others that run once, on a unit sphere (nGPT)",
    "gemma3n": "a tower needs timm, which is not installed here; the text layers are described",
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "musicgen": _CODES,
    "musicgen_melody": _CODES,
}
"""Why types are not described for which the error would not tell it."""


@dataclass(frozen=True)
class Kind:
    """One model type in one role.

    Args:
        task: the group on the page.
        type: transformers' name of the model type.
        cls: the model class.
    """

    task: str
    type: str
    cls: str

    @property
    def key(self) -> str:
        """Its name in the record."""
        return f"{self.task}/{self.type}"


def kinds() -> list[Kind]:
    """Everything on the page."""
    from_names = {
        "causal language models": (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, None),
        "encoders": (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, None),
        "encoder-decoders": (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, None),
        "speech": (modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, ("whisper",)),
        "vision": (modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, VISION),
        "vision and text": (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MULTIMODAL),
    }
    found = []
    for task, (names, chosen) in from_names.items():
        for model_type in sorted(names if chosen is None else chosen):
            cls = names[model_type]
            found.append(Kind(task, model_type, cls if isinstance(cls, str) else cls[0]))
    return [*found, *(Kind("two towers", *pair) for pair in TWO_TOWERS.items())]


# --- recording ---------------------------------------------------------------------------------

GROUPS = {
    "stream": "hook_resid_pre",
    "between": "hook_resid_mid",
    "attention": "attn.hook_pattern",
    "heads": "attn.hook_result",
    "neurons": "mlp.hook_post",
    "router": "mlp.hook_router_logits",
    "experts": "mlp.experts.0.hook_post",
    "mixer": "mixer.hook_out",
    "cross-attention": "cross_attn.hook_pattern",
}


def tiny(kind: Kind) -> nn.Module:
    """A tiny random model of a type."""
    cls, errors = getattr(transformers, kind.cls), []
    for sizes in ALTERNATIVES:
        try:
            model = tiny_from(cls, sizes_of(cls, sizes), torch.float32, None, seed=0)
            with torch.no_grad():
                model(**inputs_for(model))
            return model
        except Exception as error:
            errors.append(error)
    raise errors[0]


def sizes_of(cls: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """Those sizes that a class's config has."""
    names = set(cls.config_class().to_dict())
    return {name: value for name, value in sizes.items() if name in names}


def record(kind: Kind) -> dict[str, Any]:
    """What lensbridge makes of a model type: how it is described, what it has, what was checked."""
    about: dict[str, Any] = {"class": kind.cls}
    try:
        model = tiny(kind)
    except Exception as error:
        return {**about, "how": "not built", "reason": REASONS.get(kind.type) or _first_line(error)}
    try:
        lens = lensbridge.load(model)
    except UnsupportedArchitectureError as refused:
        return {**about, "how": "refused", "reason": REASONS.get(kind.type) or _refusal(refused)}
    built_in = lens.cfg.plugin == "lensbridge_adapters"
    report = conformance(model, architecture=lens.architecture)
    counts = Counter(row.status for row in report.rows)
    return {
        **about,
        "how": "built-in" if built_in else "derived",
        "architecture": lens.architecture.name,
        "points": points_of(lens),
        "undescribed": dict(lens.architecture.undescribed),
        "count": len(lens.hook_names),
        "conforms": report.passed,
        "checks": {status: counts[status] for status in ("passed", "skipped", "failed")},
        "failures": [f"{row.check}: {row.detail}" for row in report.failures],
    }


def points_of(lens: LensModel) -> list[str]:
    """Which groups of points a model has, in any of its layers; then its other stacks."""
    found = [
        group
        for group, point in GROUPS.items()
        if any(name.endswith(f".{point}") for name in lens.hook_names)
    ]
    return found + [tower.prefix for tower in lens.native.towers]


def _refusal(error: Exception) -> str:
    """The parts that could not be established, from a message that says much more."""
    lines = str(error).splitlines()
    parts = [line.strip("- ") for line in lines if line.startswith(("- ", "# ")) and ":" in line]
    return "; ".join(dict.fromkeys(parts)) or lines[0]


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


class Late(Exception):  # noqa: N818
    """One type took too long."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `Late` in what takes longer."""

    def ring(number: int, frame: object) -> None:
        raise Late(f"took more than {seconds} seconds")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def run(wanted: Iterable[str], how: Any, field: str | None) -> None:
    """Record types: all that are wanted by name, or all."""
    chosen = set(wanted)
    for kind in kinds():
        if chosen and kind.type not in chosen:
            continue
        try:
            with limited(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                about = how(kind)
        except Exception as error:
            reason = _first_line(error)
            about = f"failed ({reason})" if field else _refused(kind, reason)
        found = load_record()  # another run may have written to it since
        if field is None:
            rival = found.get(kind.key, {}).get("transformer_lens")
            found[kind.key] = about if rival is None else {**about, "transformer_lens": rival}
        else:
            found.setdefault(kind.key, {})[field] = about
        print(
            kind.key, about if field else f"{about['how']} {about.get('conforms', '')}", flush=True
        )
        RECORD.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(load_record()))


def _refused(kind: Kind, reason: str) -> dict[str, Any]:
    return {"class": kind.cls, "how": "refused", "reason": reason}


def rival(kind: Kind) -> str:
    """What TransformerLens makes of a model type, in words."""
    from benchmarks import rival as peer

    model = tiny(kind)
    model.set_attn_implementation("eager")
    given = inputs_for(model)
    with torch.no_grad():
        native = model(**given)
    if "logits" not in native or set(given) != {"input_ids"}:
        return "not tried"
    wanted = native.logits.clone()
    try:
        bridge = peer.build(model)
    except Exception as error:
        return f"refused ({type(error).__name__})"
    try:
        with torch.no_grad():
            logits, cache = bridge.run_with_cache(given["input_ids"])
    except Exception as error:
        return f"fails to run ({type(error).__name__})"
    if logits.shape != wanted.shape or (logits - wanted).abs().max() > 1e-3:
        return "other logits"
    return _pattern_edits(bridge, given["input_ids"], wanted, cache)


def _pattern_edits(bridge: Any, ids: torch.Tensor, wanted: torch.Tensor, cache: Any) -> str:
    names = [name for name in cache if name.endswith("attn.hook_pattern")]
    if not names:
        return "runs, no patterns"
    hook = [(names[0], lambda value, hook: torch.rand_like(value).softmax(-1))]
    try:
        with torch.no_grad():
            edited = bridge.run_with_hooks(ids, fwd_hooks=hook)
    except Exception as error:
        return f"runs, pattern edits fail ({type(error).__name__})"
    return "runs" if (edited - wanted).abs().max() > 1e-6 else "runs, pattern edits do nothing"


def load_record() -> dict[str, Any]:
    """The record as it is."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


# --- the page ----------------------------------------------------------------------------------

HEAD = """\
# Coverage

<!-- Generated by docs/coverage.py from docs/coverage.json. Run: make conformance -->

Every model type in the causal-LM mapping of transformers {version}, and the encoders,
encoder-decoders, vision and multimodal models that have a description. A tiny random model of each
was built, loaded and held against the conformance checks (`lensbridge doctor` runs the same on
a real one). *Built-in*: a description ships with lensbridge. *Derived*: none does; one was derived
from the model's structure and behaviour when it was loaded, and accepted because what it says
passed; a failed check of what is left out names what it does not say.
*Refused*: none passed, so `load` raises and says which part could not be established.

Points: *stream* the residual stream at both ends of each layer, *between* also between the
branches, *attention* q, k, v, scores, pattern and z, *heads* the write of each head, *neurons*,
*router* and *experts* of mixtures, *mixer* state-space and linear-attention layers; then other
stacks than the main one. Where a part of the layers is not described, a sentence says why. The
column for TransformerLens says what its bridge does with the same model: whether it gives the
model's logits and whether an edited pattern changes them.
"""


def page(found: dict[str, Any]) -> str:
    """The page that a record gives."""
    lines = [HEAD.format(version=transformers.__version__), _summary(found)]
    for task in dict.fromkeys(kind.task for kind in kinds()):
        lines += [f"## {task.capitalize()}", "", *_TABLE]
        lines += [
            _row(one, found[one.key]) for one in kinds() if one.task == task and one.key in found
        ]
        lines.append("")
    return "\n".join(lines)


_TABLE = (
    "| model type | described by | points | checks | TransformerLens |",
    "|---|---|---|---|---|",
)


def _summary(found: dict[str, Any]) -> str:
    built = [one for one in found.values() if one["how"] != "not built"]
    counts = Counter(one["how"] for one in built)
    conform = sum(bool(one.get("conforms")) for one in built)
    told = ", ".join(f"{counts[how]} {how}" for how in ("built-in", "derived", "refused"))
    missing = len(found) - len(built)
    return (
        f"Of {len(built)} types that can be built tiny, **{conform} conform** ({told}); "
        f"{missing} more could not be built.\n"
    )


def _row(kind: Kind, about: dict[str, Any]) -> str:
    peer = about.get("transformer_lens", "not tried")
    if about["how"] in ("refused", "not built"):
        return f"| `{kind.type}` | {about['how']}: {_cell(about['reason'])} | | | {peer} |"
    checks = about["checks"]
    told = f"{checks['passed']} passed"
    if checks["failed"]:
        told = f"**{checks['failed']} failed** ({_cell('; '.join(about['failures']))})"
    how = f"{about['how']} `{about['architecture']}`"
    return f"| `{kind.type}` | {how} | {_points(about)} | {told} | {peer} |"


UNDESCRIBED = {
    "residual": "How branches write to the stream",
    "attn": "Attention",
    "mixer": "What mixes positions",
    "mlp": "The MLP",
    "experts": "What its experts compute",
    "pooler": "The pooler",
    "unembed": "The head",
}


def _points(about: dict[str, Any]) -> str:
    """The groups of points, and why a part of the layers has none."""
    reasons = about.get("undescribed", {})
    told = [
        f"*{what} is not described:* {_cell(reasons[part])}."
        for part, what in UNDESCRIBED.items()
        if part in reasons
    ]
    return " ".join([", ".join(about["points"]) + ("." if told else ""), *told])


def _cell(text: str) -> str:
    short = text if len(text) <= 200 else text[:197] + "..."
    return short.replace("|", "/").replace("\n", " ")


def outdated() -> list[str]:
    """What in the page or the record is not what it would be now."""
    found, problems = load_record(), []
    names = {kind.key for kind in kinds()}
    if names != set(found):
        problems.append(f"not the model types of transformers: {sorted(names ^ set(found))}")
    if PAGE.read_text() != page(found):
        problems.append("docs/coverage.md is not what docs/coverage.json gives")
    claimed = {cls for claim in registry().claims for cls in claim.architecture.classes}
    for key, about in found.items():
        if about["how"] == "built-in" and about["class"] not in claimed:
            problems.append(f"{key} has no built-in description any more")
        if about["how"] == "built-in" and not about["conforms"]:
            problems.append(f"{key} has a built-in description that does not conform")
    return problems


def main(asked: list[str]) -> int:
    """Do what was asked; 1 if a check fails."""
    if asked[:1] == ["--check"]:
        problems = outdated()
        print("\n".join(problems) or "docs/coverage.md is up to date")
        return bool(problems)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if asked[:1] == ["--run"]:
        run(asked[1:], record, None)
    elif asked[:1] == ["--rival"]:
        run(asked[1:], rival, "transformer_lens")
    else:
        PAGE.write_text(page(load_record()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
