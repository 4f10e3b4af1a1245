"""Direct logit attribution: what each part adds to a token's logit."""

from typing import Any

from lensbridge.analysis import direct_logit_attribution
from lensbridge.serve.questions import Attribution
from lensbridge.serve.subject import Prompt, Subject
from lensbridge.serve.views.predictions import logits_at
from lensbridge.serve.views.python import assigned, at, program, token
from lensbridge.serve.worker import Job


def attribution(subject: Subject, asked: Attribution, job: Job) -> dict[str, Any]:
    """What each part adds to the logit of a token, or to the difference of two."""
    prompt = subject.read(asked.prompt)
    position = prompt.position(asked.position)
    logits = logits_at(subject, prompt.given, position)
    answer = subject.target(asked.target, logits)
    against = None if asked.against in (None, "") else subject.target(asked.against, logits)
    result = direct_logit_attribution(
        subject.model, prompt.given, answer, against, unit=asked.unit, pos=position
    )
    rows = zip(result.labels, result.attribution[:, 0].tolist(), strict=True)
    return {
        "tokens": prompt.labels,
        "position": position,
        "target": subject.token(answer),
        "against": None if against is None else subject.token(against),
        "rows": [{"label": part_name(label), "value": value} for label, value in rows],
        "bias": float(result.bias[0]),
        "logit": float(result.logit[0]),
        "python": _python(subject, asked, prompt, position, answer, against),
    }


def _python(
    subject: Subject,
    asked: Attribution,
    prompt: Prompt,
    position: int,
    answer: int,
    against: int | None,
) -> str:
    lines = [] if against is None else [token(subject, "against", against)]
    other = "" if against is None else "against, "
    return program(
        subject,
        assigned("prompt", prompt),
        at(prompt, position),
        token(subject, "answer", answer),
        *lines,
        "parts = direct_logit_attribution(",
        f'    model, prompt, answer, {other}unit="{asked.unit}", pos=position',
        ")",
        "for label, value in zip(parts.labels, parts.attribution[:, 0].tolist()):",
        '    print(f"{value:8.3f}", label)',
        imports="from lensbridge.analysis import direct_logit_attribution",
    )


def part_name(label: str) -> str:
    """A part of the model in words.

    Example:
        >>> part_name("3_attn_out"), part_name("0_mlp_out"), part_name("L2H1"), part_name("L3")
        ('attention 3', 'MLP 0', 'head 2.1', 'layer 3')
        >>> part_name("embed"), part_name("pos_embed"), part_name("remainder")
        ('token embedding', 'position embedding', 'everything else')
    """
    known = {
        "embed": "token embedding",
        "pos_embed": "position embedding",
        "remainder": "everything else",
    }
    if label in known:
        return known[label]
    if label.startswith("L") and label[1:].replace("H", "").isdigit():
        layer, _, head = label[1:].partition("H")
        return f"head {layer}.{head}" if head else f"layer {layer}"
    layer, _, part = label.partition("_")
    parts = {"attn_out": "attention", "mlp_out": "MLP", "mixer_out": "mixer"}
    return f"{parts[part]} {layer}" if layer.isdigit() and part in parts else label
