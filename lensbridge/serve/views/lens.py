"""The logit lens of every layer and position."""

from typing import Any

from lensbridge.serve.questions import Lens
from lensbridge.serve.subject import Subject
from lensbridge.serve.views.python import assigned, program
from lensbridge.serve.worker import Job


def lens(subject: Subject, asked: Lens, job: Job) -> dict[str, Any]:
    """The likeliest tokens that each layer's stream predicts at each position.

    Tokens are told by number in `names`, since the same ones occur many times.
    """
    prompt = subject.read(asked.prompt)
    k = min(asked.k, subject.model.cfg.d_vocab_out)
    result = subject.model.logit_lens(
        prompt.given, positions=None, top_k=k, return_type="probs", incl_mid=asked.middle
    )
    assert result.ids is not None  # because of top_k
    ids, values = result.ids[:, 0].tolist(), result.values[:, 0].tolist()
    kind = 'return_type="probs"' + (", incl_mid=True" if asked.middle else "")
    return {
        "tokens": prompt.labels,
        "rows": [row_name(label) for label in result.labels],
        "ids": ids,
        "probabilities": values,
        "entropy": result.entropy[:, 0].tolist(),
        "names": subject.labels(one for row in ids for cell in row for one in cell),
        "python": program(
            subject,
            assigned("prompt", prompt),
            f"lens = model.logit_lens(prompt, positions=None, top_k={k}, {kind})",
            "probabilities, tokens = lens.values[:, 0], lens.ids[:, 0]  # row, position, rank",
            "for row, ids in zip(lens.labels, tokens[:, -1]):",
            '    print(f"{row:>12}", '
            + ("model.to_str_tokens(ids))" if subject.has_tokenizer else "ids.tolist())"),
        ),
    }


def row_name(label: str) -> str:
    """A row of the lens in words.

    Example:
        >>> row_name("3_pre"), row_name("3_mid"), row_name("final_post")
        ('before layer 3', 'within layer 3', 'output')
    """
    layer, _, where = label.partition("_")
    if layer == "final":
        return "output"
    return f"{'within' if where == 'mid' else 'before'} layer {layer}"
