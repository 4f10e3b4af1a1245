"""What the page can show of a model: its sizes, and for each view why it cannot be shown."""

from pathlib import Path
from typing import Any

from lensbridge.serve.subject import Subject
from lensbridge.serve.views.edits import SITES

_ALL = (
    *("predictions", "lens", "attention", "neurons", "attribution"),
    *("edits", "ablation", "comparison", "steering"),
)
_OF_LOGITS = tuple(name for name in _ALL if name not in ("attention", "neurons"))

_COMPARED = ("resid_pre", "attn_out", "mixer_out", "mlp_out", "z")


def told(subject: Subject) -> dict[str, Any]:
    """The model for the page: name, sizes, layers of each view, and what it lacks."""
    model, cfg = subject.model, subject.model.cfg
    return {
        "name": Path(subject.load or cfg.model_name).name,
        "kind": cfg.original_architecture,
        "layers": cfg.n_layers,
        "heads": cfg.n_heads,
        "width": cfg.d_model,
        "parameters": sum(one.numel() for one in model.parameters()),
        "context": cfg.n_ctx,
        "max_tokens": min(subject.limits.max_tokens, cfg.n_ctx or subject.limits.max_tokens),
        "max_new_tokens": subject.limits.max_new_tokens,
        "tokenizer": subject.has_tokenizer,
        "predicts_next": model.native.predicts_next,
        "attention_layers": list(subject.points("pattern")),
        "neuron_layers": list(subject.points("post")),
        "parts": [part for part in SITES if subject.points(SITES[part])],
        "compared": [what for what in _COMPARED if subject.points(what)],
        "absent": absent(subject),
        **_examples(subject),
    }


def absent(subject: Subject) -> dict[str, str]:
    """The views that this model does not have, each with the reason."""
    whole = _why_nothing(subject)
    if whole:
        return dict.fromkeys(_ALL, whole)
    found = {}
    if not subject.points("pattern"):
        found["attention"] = "No layer of this model has attention patterns."
    if not subject.points("post"):
        found["neurons"] = "No layer of this model has an MLP whose neurons can be read."
    why = _why_no_logits(subject)
    if why:
        return {**found, **dict.fromkeys(_OF_LOGITS, why)}
    native = subject.model.native
    if native.has_deep_head:
        found["attribution"] = (
            "The head of this model transforms the stream before the projection, so a logit is no "
            "sum over parts."
        )
    if not native.predicts_next:
        found["steering"] = (
            "This model does not continue a text: it predicts tokens in their place."
        )
    return found


def _why_nothing(subject: Subject) -> str | None:
    native = subject.model.native
    if native.is_encoder_decoder:
        return (
            "This is an encoder-decoder, which reads two texts at once; the page has one prompt. "
            "Use lensbridge from Python: model.run_with_cache(text, decoder_input_ids=...)."
        )
    if native.main_input != "input_ids":
        return (
            f"This model reads {native.main_input}, not text. Use lensbridge from Python: "
            "model.run_with_cache(...)."
        )
    return None


def _why_no_logits(subject: Subject) -> str | None:
    native = subject.model.native
    if native.unembed is None and not native.has_unnamed_head:
        return "This model has no language-model head, so there are no logits."
    if native.logits_axes != "b p v" or (native.head_width or 0) < native.sizes.d_vocab:
        return "The head of this model gives classes, not tokens of its vocabulary."
    return None


def _examples(subject: Subject) -> dict[str, str]:
    """The prompts that the page begins with: they have as many tokens, and differ in one fact."""
    if not subject.has_tokenizer:
        ids = [str(i % max(1, subject.model.cfg.d_vocab)) for i in range(5, 13)]
        return {"prompt": " ".join(ids), "other": " ".join([ids[0], ids[2], *ids[2:]])}
    return {
        "prompt": "The Eiffel Tower is in the city of",
        "other": "The Galata Tower is in the city of",
    }
